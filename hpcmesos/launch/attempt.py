"""One attempt on this node, from PREPARE until it is forgotten; see docs/architecture.md."""

from __future__ import annotations

import asyncio
import base64
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from hpcmesos.gang import mpi
from hpcmesos.launch import display, enclosure, files, limits, ports, preflight, proxies, scopes, tasks
from hpcmesos.launch.births import Birth
from hpcmesos.launch.clock import boottime
from hpcmesos.launch.container import SHELL, Container, PrivateTmp, View
from hpcmesos.launch.journal import Entry, Journal
from hpcmesos.launch.load import Load
from hpcmesos.launch.output import TAIL, Output
from hpcmesos.launch.owners import Owner
from hpcmesos.launch.processes import Children, Launch, Outputs
from hpcmesos.launch.secrets import Secrets
from hpcmesos.launch.settings import Config
from hpcmesos.launch.site_scripts import ABORT, Result, Scripts
from hpcmesos.launch.steps import Steps, checked
from hpcmesos.launch.terminal import Terminal
from hpcmesos.launch.walltime import Walltime

NODE_LOST = "NODE_LOST"
_TRIM = 1.0
"""Seconds between two looks at how much a script has written."""
_HURRY = 5.0
"""Seconds of grace, at most, when a member is lost: the whole gang has to be gone 30 s after the loss."""


@dataclass(frozen=True, slots=True)
class Order:
    """Why and how an attempt is to end. ``kill_delay``: seconds from SIGTERM to SIGKILL; 0: SIGKILL at once."""

    cause: str
    kill_delay: float = 0.0
    message: str = ""
    culprit: str | None = None

    @property
    def remark(self) -> str:
        """For the job's own log: ``job killed: NODE_LOST of node7: not heard for 20 s``."""
        if self.cause == "WALLTIME":
            return self.message
        whose = f" of {self.culprit}" if self.culprit else ""
        return f"job killed: {self.cause}{whose}" + (f": {self.message}" if self.message else "")

    @classmethod
    def lost(cls, culprit: str, message: str, kill_delay: float) -> Order:
        return cls(NODE_LOST, min(kill_delay, _HURRY), message, culprit)


class Gang(Protocol):
    """The other members, as this one sees them."""

    def end(self, order: Order) -> None:
        """This part ends: says so, and why."""
        ...

    def suspect(self) -> str | None:
        """The node that this member blames for a loss that nobody has explained; only a head has an opinion."""
        ...

    async def prologues(self) -> tuple[str, int, str] | None:
        """Has the other members run theirs: node, code and text of one that did not end well."""
        ...

    async def confirm(self) -> None:
        """Comes back once every other member has been heard from now on, or when the attempt is ended."""
        ...

    def rank(self, message: dict[str, Any], node: str) -> None:
        """Passes on what a rank reported, to where its step is kept."""
        ...

    def sweep(self, step: str, origin: str) -> None:
        """A step is over: the other members end what is left of it; ``origin``: the node that says so."""
        ...


@dataclass(slots=True)
class Services:
    """What attempts share."""

    config: Config
    children: Children
    journal: Journal
    directories: files.Directories
    secrets: Secrets
    trees: enclosure.Trees
    emit: Callable[[dict[str, Any]], None]
    uncontain: Callable[[str], None]  # the container of an attempt is over
    scopes: scopes.Scopes
    load: Load = field(default_factory=Load)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)  # the loop itself keeps none alive


class Attempt:
    """Phases: preparing, ready, running, ending, ended. Only the head's part has a script."""

    def __init__(self, services: Services, spec: dict[str, Any], owner: Owner) -> None:
        self.services = services
        self.spec = spec
        self.owner = owner
        self.id: str = spec["attempt"]
        self.head: bool = spec["me"] == 0
        self.phase = "preparing"
        self.output = Output()
        self.terminal: Terminal | None = None
        if self.head and spec.get("interactive"):
            self.terminal = Terminal(self._start, self._abandon)
            self.output.sink = self.terminal.note
            if spec.get("x11"):
                path = os.path.join(files.attempt_directory(services.config, self.id), display.FILE)
                self.terminal.display = display.Display(path, self.terminal.tell_of_display)
        self.steps = Steps(spec["me"], sum(int(member["slots"]) for member in spec["members"]))
        self.turn = asyncio.Lock()
        """Of its processes one at a time has us hold a large request."""
        self.proxies = proxies.Watch(
            services.config.proxy_patience, lambda: self.enclosure.pids(), self.output.note
        )
        self._mpi_since: int | None = None
        self.gang: Gang | None = None
        self.scripts = Scripts(self)
        self._preamble = (b"", b"")
        self._unstaged = ""  # why files of the job are not where they should be
        self.paths = files.job_paths(services.config, spec)
        self.output.spool, self.output.limit = self.paths.directory, int(spec.get("log_limit") or 0)
        self.tasks: dict[str, Any] = {}  # of a framework, on this node
        self.container: Container | None = None  # of a job with an image, once it is ready
        self.enclosure: enclosure.Enclosure
        self.ended: dict[str, Any] | None = None
        self._started: dict[str, Any] | None = None
        self._journal: Entry
        self._order: Order | None = None
        self._hurry = False
        self._killed = False
        self._forced = False
        self._wake = asyncio.Event()
        self._birth = Birth(
            services.children,
            self.output.opened,
            on_program=self._executed,
            on_exit=self._exited,
            retry=self._retried,
            on_failure=self._stillborn,
        )
        self._status: int | None = None
        self._cpu = 0.0
        self._peak = 0
        self._written = 0  # bytes of the larger stream, at the end
        self._ring = ""
        self._walltime = Walltime(self._over_walltime, self._warn)

    # --- PREPARE ----------------------------------------------------------------------------------------------------

    def prepare(self, secrets: Mapping[str, str | None] | None = None) -> None:
        """Journal, directory, secrets, cgroup. Whatever it raises (OSError, mostly), nothing of it is left then."""
        config = self.services.config
        self._journal = self.services.journal.create(
            self.id, {"spec": self.spec, "boot_id": config.boot_id, "at": time.time()}
        )
        try:
            ports.check(self.spec["members"][self.spec["me"]])
            if self.spec.get("framework"):
                self.tasks = tasks.of_node(self.spec)
            self.services.directories.make(self.spec, self.paths, self.owner, self.tasks)
            self.services.secrets.make(self.id, self.owner, secrets or {})
            if config.cgroup:
                self.enclosure = self._cgroup(self.services.scopes.known(self.devices) or config.cgroup)
            else:
                self.enclosure = enclosure.Tree(self.services.trees, self.id, self.owner.uid)
        except BaseException:
            self.discard()
            raise

    def _cgroup(self, parent: str) -> enclosure.Cgroup:
        config = self.services.config
        wanted = limits.wanted(config.limits, self.spec)
        return enclosure.Cgroup(parent, self.id, config.limits.get("v1", {}), wanted)

    @property
    def devices(self) -> tuple[limits.Device, ...]:
        """Those of the granted GPUs here."""
        return limits.granted(self.services.config.limits, self.spec)

    def hold_below(self, scope: str) -> None:
        """Its cgroup shall be there; nothing of it runs yet. Raises OSError."""
        held = self.enclosure
        if isinstance(held, enclosure.Cgroup) and os.path.dirname(held.directory) != scope:
            held.remove()
            self.enclosure = self._cgroup(scope)

    def ready(self) -> None:
        if self.phase == "preparing":
            self.phase = "ready"
            self.scripts.begun = not self.head
            self.services.emit({"event": "ready", "attempt": self.id})

    def discard(self) -> None:
        """Nothing was started: leaves no trace, and nothing can be started any more."""
        self.phase = "ended"
        if hasattr(self, "enclosure"):
            self.enclosure.remove()
        self.leave_container()
        self.services.directories.remove(self.paths, self.owner)
        self.services.secrets.remove(self.id)
        self.services.journal.remove(self.id)

    def leave_container(self) -> None:
        """Whatever there is of it, or is still being made, is to go."""
        if self.spec.get("image"):
            if self.container:
                self.container.close()
            self.services.uncontain(self.id)

    # --- the script -------------------------------------------------------------------------------------------------

    def go(self) -> None:
        """Starts the script on the head, after the ring if the job wants it; anywhere else, or a second time, it only
        says what is."""
        if self.phase == "ready" and self.head:
            self.phase = "running"
            self._work(self._prepare_script()) if self._has_to_wait() else self._begin()
        elif self._started:
            self.services.emit(self._started)

    async def prologue_of_member(self) -> tuple[int, str]:
        """Runs the parallel prologue here; code and text of its end."""
        results = await self.scripts.prologue() if self.phase == "ready" else []
        return (results[-1].code, str(results[-1])) if results else (0, "")

    def _has_to_wait(self) -> bool:
        return self.spec.get("ring") == "check" or self.gang is not None or self.scripts.wanted("prologue")

    async def _prepare_script(self) -> None:
        try:
            await self._precede()
        except Exception as error:  # a job that neither runs nor ends must not stay
            self.end(Order("START_FAILED", 0.0, f"cannot prepare the job: {error!r}"))

    async def _precede(self) -> None:
        """What comes before the script: prologues, and the ring."""
        here = self.services.config.node
        if self.gang and (failed := await self.gang.prologues()):
            node, code, text = failed
            self._refuse_by_prologue(node, Result(text, code, told=True))
            return
        if self.phase == "running" and self.scripts.wanted("prologue"):
            results = await self.scripts.prologue()
            self._preamble = _joined(results)
            if results[-1].code:
                self._refuse_by_prologue(here, results[-1])
                return
        if self.phase == "running" and self.spec.get("ring") == "check":
            outcome = await preflight.check(self)
            if not outcome.closed:
                self.end(Order("START_FAILED", 0.0, outcome.message, outcome.culprits))
                return
            self._ring = outcome.message
        if self.phase == "running":
            self._begin()

    def _refuse_by_prologue(self, node: str, result: Result) -> None:
        """1, and anything for a person who waits at a terminal: the job is over. Else it runs again, elsewhere."""
        message = f"on {node}, {result}"
        if (result.code == ABORT and not result.staging) or self.terminal:
            self.end(Order("APP", 0.0, message))
        else:
            self.end(Order("START_FAILED", 0.0, message, None if result.staging else node))

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
            self._journal.append({"phase": "running", "at": started_at})
            self.scripts.begun = True
            own = self.terminal or self.view or any(self._preamble)
            self._birth.begin(self._launch(), self.enclosure, quickly=not own)
        except Exception as error:  # no process, no memory, no disk: a job that runs nowhere must not stay
            self.end(Order("START_FAILED", 0.0, f"cannot start the job: {error}"))
            return
        self._watch_walltime()
        self._trim()
        self._started_at = started_at

    def _launch(self) -> Launch:
        spec = self.spec
        program, argv = self._command()
        spool = [os.path.join(self.paths.directory, name) for name in ("stdout", "stderr")]
        workdir = (spec["workdir"],) if spec["workdir"] else ()
        return Launch(
            program=program,
            argv=argv,
            environ=self._script_environment(),
            directories=(*workdir, self.owner.home),
            owner=self.owner,
            umask=spec["umask"],
            cgroups=self.enclosure.procs,
            view=self.view,
            terminal=self.terminal.create(self.owner) if self.terminal else None,
            preamble=self._preamble,
            outputs=Outputs(
                stdout=[*self._place("stdout"), spool[0]],
                stderr=[*self._place("stderr"), spool[1]],
                join=spec["join"],
                truncate=spec["number"] == 1,
            ),
        )

    def _place(self, stream: str) -> list[str]:
        """The final place of a stream; relative ones (``-k``) lie in the owner's home."""
        path = self.spec[stream]
        return [os.path.join(self.owner.home, path)] if path else []

    def _command(self) -> tuple[str, list[str]]:
        if self.spec["argv"] is not None:
            return self.spec["argv"][0], list(self.spec["argv"])
        if shell := self.spec["shell"]:
            if self.terminal:
                return shell, [shell, "-i"]
            return shell, [shell, os.path.join(self.paths.directory, "script"), *self.spec["script_args"]]
        if self.container:
            return SHELL, [os.path.basename(SHELL), "-c", 'exec "$HPCMESOS_ENTER"']
        shell = self.owner.shell
        return shell, [f"-{os.path.basename(shell)}", "-c", 'exec "$HPCMESOS_ENTER"']

    def _script_environment(self) -> dict[str, str]:
        base = self._base()
        image = self.container.environ if self.container else {}
        environ = {**image, **mpi.job_environment(self.spec, self.paths), **self.tasks.get("common", {})}
        if self.container or "PATH" not in self.spec["environment"]:
            environ["PATH"] = f"{environ['PATH']}:{base['PATH']}"
        identity = {key: value for key, value in base.items() if key != "PATH"}
        marks = self._marks()
        if self.spec["argv"] is None and self.spec["shell"] is None:
            marks["HPCMESOS_ENTER"] = os.path.join(self.paths.directory, "enter")
        if self.terminal and self.terminal.display:
            marks |= self.terminal.display.open(self.owner)
        return {**environ, **identity, **marks}

    @property
    def view(self) -> View | None:
        return self.container or self.private_tmp

    @property
    def private_tmp(self) -> PrivateTmp | None:
        """Laid over what the job sees, where the site wants it."""
        return PrivateTmp(self.paths.tmpdir) if self.services.config.private_tmp else None

    def _base(self) -> dict[str, str]:
        """Who the owner is, and where programs are when nobody says so."""
        base = self.owner.environment()
        if self.container:
            base |= {"SHELL": SHELL, "PATH": self.container.environ.get("PATH", base["PATH"])}
        return base

    def shell(self, environ: dict[str, str], command: str) -> tuple[dict[str, str], str]:
        """`environment`, with the task's laid over it; and the command."""
        values = self.environment(environ)
        if self.tasks:
            command = tasks.for_shell(self.tasks, values, command)
        return values, command

    def environment(self, environ: dict[str, str]) -> dict[str, str]:
        """The caller's variables with this host's own laid over them."""
        values = {
            **(self.container.environ if self.container else {}),
            **self._base(),
            **environ,
            **mpi.host_overlay(self.spec, self.paths),
            **self._marks(),
        }
        if self.paths.bin not in values["PATH"].split(":"):
            values["PATH"] = f"{self.paths.bin}:{values['PATH']}"
        return values

    def _marks(self) -> dict[str, str]:
        return {
            "HPCMESOS_ATTEMPT": self.id,
            "HPCMESOS_SOCKET": self.services.config.ranks_socket,
            "HPCMESOS_SHEPHERD": str(os.getpid()),
        }

    @property
    def live(self) -> bool:
        """Its processes may be started."""
        return self.phase in ("ready", "running")

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
            self.services.emit(self._started)
            if self._ring:
                self.output.note(f"=>> hpcmesos: {self._ring}")

    def _exited(self, status: int, usage: resource.struct_rusage) -> None:
        self._status = status
        self.charge(usage)
        self._wake.set()
        if self.gang and self.phase == "running":
            self._work(self._confirm(self.gang))
        else:
            self._close()

    async def _confirm(self, gang: Gang) -> None:
        """A script whose other members are gone ends with any code: what counts is whether one was lost."""
        self._walltime.leave()
        await gang.confirm()
        self._close()

    def charge(self, usage: resource.struct_rusage) -> None:
        """Adds the usage of a process of this attempt that was reaped."""
        self._cpu += usage.ru_utime + usage.ru_stime
        self._peak = max(self._peak, usage.ru_maxrss * 1024)

    def hear_rank(self, message: dict[str, Any], node: str) -> None:
        """A rank on ``node`` has started or ended: kept here, and passed on to whoever else keeps its step.

        Raises ValueError, KeyError or TypeError for what is no such report.
        """
        message = checked(message)
        record = self.steps.rank if message["op"] == "rank" else self.steps.rank_end
        record(message, node)
        here = node == self.services.config.node
        if self.gang and (self.head or here):
            self.gang.rank(message, node)

    def note_mpi(self) -> None:
        """MPI is started on this node; when that began tells later whose litter is ours."""
        if self._mpi_since is None:
            self._mpi_since = int(time.time())

    def sweep(self, step: str, origin: str | None = None) -> None:
        """A step is over: nothing of it stays, on any member."""
        if not self.live:
            return
        if self.gang and (self.head or not origin):
            self.gang.sweep(step, origin or self.services.config.node)
        self._work(enclosure.clear_step(self.enclosure, step))

    def _work(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.services.tasks.add(task)
        task.add_done_callback(self.services.tasks.discard)

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
        self._order = order
        self._remark(order.remark)
        self._close()

    def signal(self, number: int) -> None:
        """Sends a signal to every process of this part; not to what serves them."""
        if self.live:
            self.enclosure.signal(number)

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
            self.enclosure.freeze(suspended)
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

    def _close(self) -> None:
        if self.phase in ("ending", "ended"):
            return
        self.phase = "ending"
        self._suspend(False)  # what stands still hears no signal
        self.scripts.stop()
        self._walltime.leave()
        if self._order:
            self.steps.closing = True
        if self.gang:
            self.gang.end(self._order or Order(self._cause()))
        self._work(self._finish())

    async def _finish(self) -> None:
        order = self._order
        if self._birth.unknown:
            await self._wait_for_child()
        if order and not self._over():
            if order.kill_delay > 0:
                self.enclosure.signal(signal.SIGTERM)
                if self.terminal:  # an interactive shell ends with its line, and ignores SIGTERM
                    self.enclosure.signal(signal.SIGHUP)
                await self._wait_over(order.kill_delay)
            self._forced = not self._over()
        self.steps.closing = self._killed = True
        self._hurry = False
        left = await enclosure.clear(self.enclosure)
        if self._mpi_since is not None:
            litter = (self.owner.uid, self._mpi_since, time.time())
            if not proxies.clean(*litter):
                self._work(proxies.clean_again(*litter))
        if self.head:
            await self._wait_over(enclosure.UNKILLABLE)  # it has ended; SIGCHLD may still be on its way
        self._walltime.end()
        if self.scripts.begun and self.scripts.wanted("epilogue"):
            try:
                left = [*left, *await self._epilogue()]
            except Exception as error:  # the end of the job is what counts
                sys.stderr.write(f"shepherd: {self.id}: the epilogue failed: {error!r}\n")
        message = f"processes that cannot be killed: {' '.join(map(str, left))}" if left else ""
        await self._finished(message)

    async def _epilogue(self) -> list[int]:
        """Runs the epilogues, and answers what they leave of the job's processes."""
        from hpcmesos.model import Cause  # few sites have one
        from hpcmesos.queue.states import exit_status

        code, number = self._codes()
        status = exit_status(Cause(self._cause()), code, number, self._forced)
        results = await self.scripts.epilogue(status, self._usage(), lost=self._cause() == NODE_LOST)
        for stream, text in zip(("stdout", "stderr"), _joined(results), strict=True):
            self.output.append(text, stream)
        for result in results:
            if result.code:
                sys.stderr.write(f"shepherd: {self.id}: {result}\n")
        self._unstaged = "; ".join(str(result) for result in results if result.staging and result.code)
        return await enclosure.clear(self.enclosure)

    def _codes(self) -> tuple[int | None, int | None]:
        """Exit code and signal of the script."""
        status = self._status
        code = os.WEXITSTATUS(status) if status is not None and os.WIFEXITED(status) else None
        return code, os.WTERMSIG(status) if status is not None and os.WIFSIGNALED(status) else None

    def _usage(self) -> dict[str, float]:
        cpu, peak = self.enclosure.usage()
        return {
            "cput": max(cpu, self._cpu),
            "mem": max(peak, self._peak),
            "walltime": self._walltime.elapsed if self._birth.pid else 0.0,
            "session": self._birth.pid,
        }

    async def _wait_for_child(self) -> None:
        """What the starter was asked is begun or given up: who is not there hears no SIGTERM."""
        while self._birth.unknown and not self.enclosure.own():
            await asyncio.sleep(0.002)

    def _over(self) -> bool:
        """The head is over with its script, another member with its processes."""
        if self.head:
            return not (self._birth.pid or self._birth.unknown) or self._status is not None
        return self.enclosure.deserted()

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
        if self._order:
            return self._order.cause
        if isinstance(self.enclosure, enclosure.Cgroup) and self.enclosure.limits.out_of_memory():
            return "OOM"
        if self.output.opened.failure:
            return "START_FAILED"
        if self._status is None or self._status == 0:
            return "OK"
        return "SIGNAL" if os.WIFSIGNALED(self._status) else "APP"

    async def _finished(self, trouble: str) -> None:
        order, opened, (code, number) = self._order, self.output.opened, self._codes()
        if self.terminal:
            await self.terminal.finish(code, number)
        ranks, steps = self.steps.tables()
        cause = self._cause()
        if cause == "OOM":
            self.output.note("=>> hpcmesos: job killed: it wanted more memory than it had asked for")
        left_out = await asyncio.to_thread(self.output.close_gaps) if self.output.overflows() else 0
        stdout, stderr, self._written = await self.output.patiently(self.output.tails, (b"", b"", 0))
        trimmed = f"{left_out} bytes in the middle of the output are left out" if left_out else ""
        messages = [order.message if order else "", opened.failure, trouble, self._unstaged, trimmed]
        ended = {
            "event": "ended",
            "attempt": self.id,
            "head": self.head,
            "cause": cause,
            "code": code,
            "signal": number,
            "forced": self._forced,
            "culprit": order.culprit if order else None,
            "message": "; ".join(filter(None, messages)),
            "started_at": self._started["started_at"] if self._started else None,
            "ended_at": time.time(),
            "ended_boot": boottime(),
            "usage": self._usage(),
            "ranks": ranks,
            "steps": steps,
            "stdout_tail": base64.b64encode(stdout).decode(),
            "stderr_tail": base64.b64encode(stderr).decode(),
            "stdout_path": opened.stdout_path,
            "stderr_path": opened.stderr_path,
            "undelivered": opened.undelivered or self._spooled(),
            "delivered": self.spec.get("delivered", []),
        }
        try:
            self._journal.end(ended)
            await self.services.journal.synced()
        except OSError as error:  # the disk is gone; the report is not, for as long as this shepherd lives
            with suppress(OSError):
                sys.stderr.write(f"shepherd: the end of {self.id} cannot be written down: {error}\n")
        self.enclosure.remove()
        self.services.secrets.remove(self.id)
        self.leave_container()
        self.ended = ended
        self.phase = "ended"
        self.services.emit(ended)

    def _spooled(self) -> str:
        """Why output lies in the spool though every place could be opened: nobody named another one."""
        inside = self.paths.directory + "/"
        spooled = [
            p
            for p in (self.output.opened.stdout_path, self.output.opened.stderr_path)
            if p.startswith(inside)
        ]
        return f"kept on {self.services.config.node}: {' '.join(spooled)}" if spooled else ""

    def still_read(self) -> bool:
        """Whether this node alone has the whole of what an ended attempt has written."""
        return self.ended is not None and bool(self.ended["undelivered"]) and self._written > TAIL

    def forget(self) -> bool:
        """Removes what is left of an attempt that has ended; False while it has not."""
        if self.phase != "ended":
            return False
        self.output.close()
        self.enclosure.remove()  # again: what could not be killed may have gone
        self.services.directories.remove(self.paths, self.owner)
        self.services.journal.remove(self.id)
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


def _joined(results: list[Result]) -> tuple[bytes, bytes]:
    """What they have written, stdout and stderr."""
    return b"".join(result.stdout for result in results), b"".join(result.stderr for result in results)
