"""One attempt on this node, from PREPARE until it is forgotten; see docs/architecture.md."""

from __future__ import annotations

import asyncio
import base64
import os
import resource
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from hpcmesos.launch import display, enclosure, ending, files, own_log, prelude, proxies, script
from hpcmesos.launch.births import Birth
from hpcmesos.launch.ending import Ending
from hpcmesos.launch.members import Gang
from hpcmesos.launch.order import NODE_LOST, Order
from hpcmesos.launch.output import TAIL, Output
from hpcmesos.launch.owners import Owner
from hpcmesos.launch.prelude import Prelude
from hpcmesos.launch.processes import Launch
from hpcmesos.launch.services import Services
from hpcmesos.launch.site_scripts import Scripts, joined
from hpcmesos.launch.steps import Steps, checked
from hpcmesos.launch.terminal import Terminal
from hpcmesos.launch.walltime import Walltime
from hpcmesos.launch.workspace import Workspace

_TRIM = 1.0
"""Seconds between two looks at how much a script has written."""
_TELL_STARTED = 0.05
"""Seconds that a start is kept back when nobody waits for it."""


class Attempt:
    """Phases: preparing, ready, running, ending, ended. Only the head's part has a script."""

    def __init__(self, services: Services, spec: dict[str, Any], owner: Owner) -> None:
        self.services = services
        self.spec = spec
        self.owner = owner
        self.id: str = spec["attempt"]
        self.head: bool = spec["me"] == 0  # here the script runs
        self.phase = "preparing"
        self.output = Output()
        self.terminal: Terminal | None = None
        if self.head and spec.get("interactive"):
            self._make_terminal()
        self.workspace = Workspace(services, spec, owner)
        self.output.spool = self.workspace.paths.directory
        self.output.limit = int(spec.get("log_limit") or 0)
        self.steps = Steps(spec["me"], sum(int(member["slots"]) for member in spec["members"]))
        self.turn = asyncio.Lock()
        """Of its processes one at a time has us hold a large request."""
        self.proxies = proxies.Watch(
            services.config.proxy_patience, lambda: self.workspace.enclosure.pids(), self.output.note
        )
        self.gang: Gang | None = None
        self.scripts = Scripts(self.workspace)
        self.ended: dict[str, Any] | None = None
        self._mpi_since: int | None = None
        self._prelude = Prelude()
        self._started: dict[str, Any] | None = None
        self._ending = Ending()
        self._hurry = False
        self._killed = False
        self._wake = asyncio.Event()
        self._birth = Birth(
            services.children,
            self.output.opened,
            on_program=self._executed,
            on_exit=self._exited,
            retry=self._retried,
            on_failure=self._stillborn,
        )
        self._written = 0  # bytes of the larger stream, at the end
        self._telling: asyncio.TimerHandle | None = None  # that the script runs
        self._walltime = Walltime(self._over_walltime, self._warn)

    def _make_terminal(self) -> None:
        self.terminal = Terminal(self._start, self._abandon)
        self.output.sink = self.terminal.note
        if self.spec.get("x11"):
            path = os.path.join(files.attempt_directory(self.services.config, self.id), display.FILE)
            self.terminal.display = display.Display(path, self.terminal.tell_of_display)

    @property
    def live(self) -> bool:
        """Its processes may be started."""
        return self.phase in ("ready", "running")

    # --- PREPARE ----------------------------------------------------------------------------------------------------

    def prepare(self, secrets: Mapping[str, str | None] | None = None) -> None:
        """Journal, directory, secrets, cgroup. Whatever it raises (OSError, mostly), nothing of it is left then."""
        try:
            self.workspace.make(secrets or {})
        except BaseException:
            self.phase = "ended"
            raise

    def ready(self) -> None:
        """Everything of it is here, and a member has joined its head; told once."""
        if self.phase == "preparing":
            self.phase = "ready"
            self.scripts.begun = not self.head
            self.services.emit({"event": "ready", "attempt": self.id})

    def discard(self) -> None:
        """Nothing was started: leaves no trace, and nothing can be started any more."""
        self.phase = "ended"
        self.workspace.discard()

    # --- the script -------------------------------------------------------------------------------------------------

    def go(self) -> None:
        """Starts the script on the head, after its prelude if it has one; anywhere else, or a second time, it only
        says what is."""
        if self.phase == "ready" and self.head:
            self.phase = "running"
            self.services.work(self._play()) if self._has_prelude() else self._begin()
        elif self._started:
            self.services.emit(self._started)

    async def prologue_of_member(self) -> tuple[int, str]:
        """Runs the parallel prologue here; code and text of its end."""
        results = await self.scripts.prologue() if self.phase == "ready" else []
        return (results[-1].code, str(results[-1])) if results else (0, "")

    def _has_prelude(self) -> bool:
        return self.gang is not None or prelude.wanted(self.workspace, self.scripts)

    async def _play(self) -> None:
        try:
            played = await prelude.run(
                self.workspace,
                self.scripts,
                self.gang,
                running=lambda: self.phase == "running",
                interactive=self.terminal is not None,
            )
            if isinstance(played, Order):
                self.end(played)
                return
            self._prelude = played
            if self.phase == "running":
                self._begin()
        except Exception as error:  # a job that neither runs nor ends must not stay
            self.end(Order("START_FAILED", 0.0, f"cannot prepare the job: {error!r}"))

    def _begin(self) -> None:
        """A job with a terminal starts when somebody is there."""
        if self.terminal:
            self.terminal.open()
        else:
            self._start()

    def _abandon(self, reason: str) -> None:
        self.end(Order("DELETED", self.spec["kill_delay"], reason))

    def _start(self) -> None:
        if self.phase != "running":
            return
        self._walltime.begin()
        started_at = time.time()
        try:
            self.workspace.journal.append({"phase": "running", "at": started_at})
            self.scripts.begun = True
            own = self.terminal or self.workspace.view or any(self._prelude.output)
            self._birth.begin(self._launch(), self.workspace.enclosure, quickly=not own)
        except Exception as error:  # no process, no memory, no disk: a job that runs nowhere must not stay
            self.end(Order("START_FAILED", 0.0, f"cannot start the job: {error}"))
            return
        self._watch_walltime()
        self._trim()
        self._started_at = started_at

    def _launch(self) -> Launch:
        return script.launch(self.workspace, self.terminal, self._prelude.output)

    def _retried(self) -> Launch | None:
        """What to start when the starter could not."""
        self._wake.set()
        return self._launch() if self.phase == "running" else None

    def _stillborn(self, error: Exception | None) -> None:
        self._wake.set()
        if error and self.phase == "running":
            self.end(Order("START_FAILED", 0.0, f"cannot start the job: {error}"))

    def _executed(self) -> None:
        """The script's program runs, or could not."""
        if self.terminal:
            self.terminal.opened()
        opened = self.output.opened
        self._started = {
            "event": "started",
            "attempt": self.id,
            "pid": self._birth.pid,
            "started_at": self._started_at,
            "stdout_path": opened.stdout_path,
            "stderr_path": opened.stderr_path,
        }
        if not opened.failure:
            if self.spec.get(
                "go"
            ):  # who let it begin at once waits for no word: a short script is over by then
                later = asyncio.get_running_loop().call_later
                self._telling = later(_TELL_STARTED, self.services.emit, self._started)
            else:
                self.services.emit(self._started)
            if self._prelude.ring:
                self.output.note(f"=>> hpcmesos: {self._prelude.ring}")

    def _exited(self, status: int, usage: resource.struct_rusage) -> None:
        self._ending.status = status
        self.charge(usage)
        self._wake.set()
        if self.gang and self.phase == "running":
            self.services.work(self._confirm(self.gang))
        else:
            self._close()

    async def _confirm(self, gang: Gang) -> None:
        """A script whose other members are gone ends with any code: what counts is whether one was lost."""
        self._walltime.leave()
        await gang.confirm()
        self._close()

    # --- while it runs ----------------------------------------------------------------------------------------------

    def charge(self, usage: resource.struct_rusage) -> None:
        """Adds the usage of a process of this attempt that was reaped."""
        self._ending.charge(usage)

    def hear_rank(self, message: dict[str, Any], node: str) -> None:
        """A rank on ``node`` has started or ended: kept here, and passed on to whoever else keeps its step.

        Raises ValueError, KeyError or TypeError for what is no such report.
        """
        message = checked(message)
        here = node == self.services.config.node
        if here and message["op"] == "rank_end":
            message["starved"] = (
                message["signal"] == signal.SIGKILL and self.workspace.enclosure.out_of_memory()
            )
        record = self.steps.rank if message["op"] == "rank" else self.steps.rank_end
        record(message, node)
        if self.gang and (self.head or here):
            self.gang.rank(message, node)

    def note_mpi(self) -> None:
        """MPI is started on this node; when that began tells later whose litter is ours."""
        if self._mpi_since is None:
            self._mpi_since = int(time.time())

    def sweep(self, step: str, origin: str | None = None) -> None:
        """A step is over: nothing of it stays, on any member. ``origin``: the node that says so; None: this one."""
        if not self.live:
            return
        if self.gang and (self.head or not origin):
            self.gang.sweep(step, origin or self.services.config.node)
        self.services.work(enclosure.clear_step(self.workspace.enclosure, step))

    def signal(self, number: int) -> None:
        """Sends a signal to every process of this part; not to what serves them."""
        if self.live:
            self.workspace.enclosure.signal(number)

    def alter(self, walltime: int | None, streams: str, text: str, suspended: bool | None = None) -> None:
        """Another walltime (s from the start, None: no limit), or with ``streams`` a line for the script's output.

        ``suspended``: whether the processes stand still from now on; None: no word of it.
        """
        if streams:
            if self.phase == "running":
                for letter in streams:
                    self.output.note(text, {"o": "stdout", "e": "stderr"}[letter])
            return
        self.spec["walltime"] = walltime
        if suspended is not None and self.live:
            self._suspend(suspended)
        self._watch_walltime()

    def _suspend(self, suspended: bool) -> None:
        if suspended != self._walltime.still:
            self.workspace.enclosure.freeze(suspended)
            self._walltime.stand_still(suspended)

    def _watch_walltime(self) -> None:
        if self.phase == "running":
            _, ahead = self.spec.get("warning") or (0, None)
            self._walltime.watch(self.spec["walltime"], ahead)

    def _trim(self) -> None:
        """Again and again while the script may write."""
        if self.output.limit and not self._over():
            self.output.trim()
            asyncio.get_running_loop().call_later(_TRIM, self._trim)

    def _over_walltime(self) -> None:
        line = f"job killed: walltime {int(self._walltime.elapsed)} exceeded limit {self.spec['walltime']}"
        self.end(Order("WALLTIME", self.spec["kill_delay"], line))

    def _warn(self) -> None:
        """The end of the walltime is near, and the job wants to hear of it: as ``qsig`` would tell it."""
        number, _ = self.spec["warning"]
        self._remark(f"signal {number}: the walltime of {self.spec['walltime']} s ends soon")
        self.signal(number)

    def _remark(self, text: str) -> None:
        """Our own word in the log of a script that runs: what is done to it, and why."""
        if self.head and self.phase == "running":
            self.output.note(f"=>> hpcmesos: {text}")

    # --- the end ----------------------------------------------------------------------------------------------------

    def end(self, order: Order) -> None:
        """Ends this part; a second order changes nothing but the hurry."""
        if self.phase == "ended":
            return
        if self.phase == "ending":
            if order.kill_delay == 0:
                self.scripts.stop()  # an epilogue too, or a file on its way
            self._hurry = order.kill_delay == 0 and not self._killed
            self._wake.set()
            return
        if order.cause == NODE_LOST and not order.culprit and self.gang:
            order = replace(order, culprit=self.gang.suspect())
        self._ending.order = order
        self._remark(order.remark)
        self._close()

    def _close(self) -> None:
        if self.phase in ("ending", "ended"):
            return
        self.phase = "ending"
        self._suspend(False)  # what stands still hears no signal
        self.scripts.stop()
        self._walltime.leave()
        order = self._ending.order
        if order:
            self.steps.closing = True
        if self.gang:
            self.gang.end(order or Order(self._cause()))
        self.services.work(self._finish())

    async def _finish(self) -> None:
        if self._birth.unknown:
            await self._wait_for_child()
        if self._ending.order and not self._over():
            await self._ask_to_end(self._ending.order.kill_delay)
        self.steps.closing = self._killed = True
        self._hurry = False
        left = await enclosure.clear(self.workspace.enclosure)
        if self.workspace.docker:
            await self.workspace.docker.close()
            left = await enclosure.clear(self.workspace.enclosure)  # what was being started
        if self._mpi_since is not None:
            self._clean_up_after_mpi(self._mpi_since)
        if self.head:
            await self._wait_over(enclosure.UNKILLABLE)  # it has ended; SIGCHLD may still be on its way
        self._walltime.end()
        if self.scripts.begun and self.scripts.wanted("epilogue"):
            try:
                left = [*left, *await self._epilogue()]
            except Exception as error:  # the end of the job is what counts
                own_log.write(f"{self.id}: the epilogue failed: {error!r}")
        self._ending.stuck = tuple(left)
        await self._tell_end()

    async def _wait_for_child(self) -> None:
        """What the starter was asked is begun or given up: who is not there hears no SIGTERM."""
        while self._birth.unknown and not self.workspace.enclosure.own():
            await asyncio.sleep(0.002)

    async def _ask_to_end(self, kill_delay: float) -> None:
        """By a signal, if there is time for it."""
        if kill_delay > 0:
            self.workspace.enclosure.signal(signal.SIGTERM)
            if self.terminal:  # an interactive shell ends with its line, and ignores SIGTERM
                self.workspace.enclosure.signal(signal.SIGHUP)
            await self._wait_over(kill_delay)
        self._ending.forced = not self._over()

    def _clean_up_after_mpi(self, since: int) -> None:
        litter = (self.owner.uid, since, time.time())
        if not proxies.clean(*litter):
            self.services.work(proxies.clean_again(*litter))

    async def _epilogue(self) -> list[int]:
        """Runs the epilogues, and answers what they leave of the job's processes."""
        from hpcmesos.model import Cause  # few sites have one
        from hpcmesos.queue.states import exit_status

        code, number = self._ending.codes
        cause = self._cause()
        status = exit_status(Cause(cause), code, number, self._ending.forced)
        results = await self.scripts.epilogue(status, self._usage(), lost=cause == NODE_LOST)
        for stream, text in zip(("stdout", "stderr"), joined(results), strict=True):
            self.output.append(text, stream)
        for result in results:
            if result.code:
                own_log.write(f"{self.id}: {result}")
        failed = [str(result) for result in results if result.staging and result.code]
        self._ending.unstaged = "; ".join(failed)
        return await enclosure.clear(self.workspace.enclosure)

    def _usage(self) -> dict[str, float]:
        return {
            **self._ending.usage(self.workspace.enclosure),
            "walltime": self._walltime.elapsed if self._birth.pid else 0.0,
            "session": self._birth.pid,
        }

    def _over(self) -> bool:
        """The head is over with its script, another member with its processes."""
        if self.head:
            return not (self._birth.pid or self._birth.unknown) or self._ending.status is not None
        return self.workspace.enclosure.deserted()

    async def _wait_over(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self._over() and not self._hurry and (left := deadline - time.monotonic()) > 0:
            self._wake.clear()
            try:
                async with asyncio.timeout(left if self.head else min(left, 0.05)):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def _cause(self) -> str:
        return self._ending.cause(self.workspace.enclosure, self.output.opened.failure)

    async def _tell_end(self) -> None:
        if self.terminal:
            await self.terminal.finish(*self._ending.codes)
        tables = self.steps.tables()
        cause = self._cause()
        if cause == "OOM":
            self.output.note(f"=>> hpcmesos: job killed: {self._of_memory()}")
        left_out = 0
        if self.output.overflows():
            with suppress(RuntimeError):  # no thread can be started: the end is told all the same
                left_out = await asyncio.to_thread(self.output.close_gaps)
        stdout, stderr, self._written = await self.output.patiently(self.output.tails, (b"", b"", 0))
        ended = self._report(cause, tables, left_out, (stdout, stderr))
        try:
            self.workspace.journal.end(ended)
            await self.services.journal.synced()
        except OSError as error:  # the disk is gone; the report is not, for as long as this shepherd lives
            own_log.write(f"the end of {self.id} cannot be written down: {error}")
        self.workspace.leave()
        if self._telling:
            self._telling.cancel()
        self.ended = ended
        self.phase = "ended"
        self.services.emit(ended)

    def _report(
        self, cause: str, tables: tuple[Any, Any], left_out: int, tails: tuple[bytes, bytes]
    ) -> dict[str, Any]:
        """``tables``: of ranks and of steps. ``tails``: the last of stdout and stderr."""
        known, opened = self._ending, self.output.opened
        code, number = known.codes
        return ending.report(
            self.id,
            head=self.head,
            cause=cause,
            code=code,
            signal=number,
            forced=known.forced,
            culprit=known.order.culprit if known.order else None,
            message=known.message(opened.failure or (self._of_memory() if cause == "OOM" else ""), left_out),
            started_at=self._started["started_at"] if self._started else None,
            usage=self._usage(),
            ranks=tables[0],
            steps=tables[1],
            stdout_tail=base64.b64encode(tails[0]).decode(),
            stderr_tail=base64.b64encode(tails[1]).decode(),
            stdout_path=opened.stdout_path,
            stderr_path=opened.stderr_path,
            undelivered=opened.undelivered or self._spooled(),
            delivered=self.spec.get("delivered", []),
        )

    def _of_memory(self) -> str:
        return ending.of_memory(self.spec["members"][self.spec["me"]])

    def _spooled(self) -> str:
        """Why output lies in the spool though every place could be opened: nobody named another one."""
        inside = self.workspace.paths.directory + "/"
        opened = self.output.opened
        spooled = [path for path in (opened.stdout_path, opened.stderr_path) if path.startswith(inside)]
        return f"kept on {self.services.config.node}: {' '.join(spooled)}" if spooled else ""

    def still_read(self) -> bool:
        """Whether this node alone has the whole of what an ended attempt has written."""
        return self.ended is not None and bool(self.ended["undelivered"]) and self._written > TAIL

    def forget(self) -> bool:
        """Removes what is left of an attempt that has ended; False while it has not."""
        if self.phase != "ended":
            return False
        self.output.close()
        self.workspace.forget()
        return True

    # --- what the agent hears ---------------------------------------------------------------------------------------

    def summary(self) -> dict[str, Any]:
        """An AttemptReport."""
        gpus = [gpu["uuid"] for gpu in self.spec["members"][self.spec["me"]]["gpus"]]
        return {"attempt": self.id, "phase": self.phase, "head": self.head, "gpus": gpus}

    def replay(self) -> list[dict[str, Any]]:
        """The events by which a new control connection learns where this attempt stands."""
        if self.ended:
            return [self.ended]
        if self.phase == "preparing":
            return []
        ready = {"event": "ready", "attempt": self.id}
        return [ready, self._started] if self._started else [ready]
