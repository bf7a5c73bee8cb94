"""The ranks of one step on this node: started by the shepherd itself, with PMI-1 served on an inherited descriptor."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from hpcmesos.gang import mpi
from hpcmesos.launch import enclosure, environment, programs, protocol, streams, tasks
from hpcmesos.launch.attempt import Attempt
from hpcmesos.launch.births import Birth
from hpcmesos.launch.channel import Channel
from hpcmesos.launch.pmi import Local, PmiError
from hpcmesos.launch.processes import Launch, Report
from hpcmesos.launch.shells import answer

_LAST_WORDS = 0.5
"""Seconds without a byte after which the pipes of a step that is over are left to whoever else holds them."""


class _Member:
    """One rank. ``task``: of a framework, which it is; ``status``: its wait status once it has ended."""

    def __init__(self, number: int, local_rank: int, gpus: list[str], task: dict[str, Any] | None) -> None:
        self.number = number
        self.local_rank = local_rank
        self.gpus = gpus
        self.task = task
        self.status: int | None = None
        self.birth: Birth
        self.lent: list[int] = []  # descriptors that are its own, once it runs
        self.pmi: socket.socket

    @property
    def prefix(self) -> bytes:
        return self.number.to_bytes(4, "big")

    def take_back(self) -> None:
        """It has what it needs, or needs it no more."""
        for fd in self.lent:
            os.close(fd)
        self.lent = []


class Crew:
    """Speaks with ``run``: what ranks say and how they end goes there; signals, input and the end come from there."""

    def __init__(self, attempt: Attempt, request: dict[str, Any], channel: Channel) -> None:
        self._attempt = attempt
        self._request = request
        self._channel = channel
        self._loop = asyncio.get_running_loop()
        self._step = str(request["step"])
        self._size = int(request["size"])
        numbers = [int(number) for number in request["ranks"]]
        if not all(0 <= number < self._size < 2**31 for number in numbers):
            raise ValueError("ranks that the step does not have")
        self._pmi = Local(numbers, self._size, str(request["space"]), str(request["mapping"]))
        share = [gpu["uuid"] for gpu in attempt.spec["members"][attempt.spec["me"]]["gpus"]]
        self._members = [
            _Member(number, local, self._gpus(share, local, len(numbers)), self._task(local))
            for local, number in enumerate(numbers)
        ]
        self._pumps: set[asyncio.Task[None]] = set()
        self._stdin: asyncio.StreamWriter | None = None
        self._giving: asyncio.Task[None] | None = None  # of the input that came last
        self._started: list[_Member] = []
        self._unborn: set[int] = set()
        self._gated = True
        self._early: set[int] = set()  # signals that came before the gates were open
        self._news = asyncio.Event()
        self._trouble = ""  # why a rank could not be started
        self._ending = False

    def _gpus(self, share: list[str], local: int, size: int) -> list[str]:
        if wanted := int(self._request.get("gpus_per_rank") or 0):
            return share[local * wanted : (local + 1) * wanted]
        if self._attempt.spec["gpubind"] == "none" or not share:
            return share
        return mpi.rank_gpus(share, local, size)[0]

    def _task(self, local: int) -> dict[str, Any] | None:
        return tasks.choose(known, local) if (known := self._attempt.workspace.tasks) else None

    async def run(self) -> None:
        """Starts the ranks and serves them until the step is to end or ``run`` is gone; nothing of them is left."""
        if not self._attempt.live:
            self._channel.say(answer(error=f"the job on this node is {self._attempt.phase}"))
            return
        self._attempt.note_mpi()
        serving = [m.number for m in self._members if m.task and m.task.get("serves")]
        if serving:
            self._channel.say({"serving": serving})
        try:
            for member in self._members:
                if self._attempt.live:
                    await self._start(member)
            await self._serve()
        except Exception as trouble:  # whatever it is, the ranks that have started must not stay
            self._trouble = str(trouble) or repr(trouble)
        await self._end()
        self._channel.say(answer(0, error=self._trouble or None))

    async def _serve(self) -> None:
        """Opens the gates once all are there, unless ``run`` or the attempt ends before that; until the end."""
        obeying = self._loop.create_task(self._obey())
        obeying.add_done_callback(lambda _: self._news.set())
        try:
            await self._until(lambda: not self._unborn or obeying.done())
            if not obeying.done() and not self._trouble:
                if self._attempt.live:
                    self._open_gates()
                else:
                    self._trouble = f"the job on this node is {self._attempt.phase}"
            if not self._trouble:
                await obeying
        finally:
            obeying.cancel()

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Every birth and every end may make it true."""
        while not condition():
            self._news.clear()
            await self._news.wait()

    # --- the start --------------------------------------------------------------------------------------------------

    async def _start(self, member: _Member) -> None:
        attempt = self._attempt
        pipes: list[int] = []
        member.pmi, theirs = socket.socketpair()
        try:
            stdin = streams.pipe(pipes) if self._request.get("stdin") == member.number else None
            stdout, stderr = streams.pipe(pipes), streams.pipe(pipes)
            stdio = (stdin[0] if stdin else None, stdout[1], stderr[1])
            launch = self._launch(member, theirs.fileno(), stdio)
            self._bear(member, launch)
        except BaseException:
            self._unborn.discard(member.number)
            member.pmi.close()
            theirs.close()
            for opened in pipes:
                os.close(opened)
            raise
        self._started.append(member)
        member.lent = [theirs.detach(), *(fd for fd in stdio if fd is not None)]
        if member.number not in self._unborn:
            member.take_back()
        gpus = member.task["gpus"] if member.task else member.gpus
        attempt.hear_rank(self._about(member, "rank", gpus=gpus), attempt.services.config.node)
        if stdin:
            self._stdin = await streams.writer(stdin[1])
        for fd, kind in ((stdout[0], protocol.STDOUT), (stderr[0], protocol.STDERR)):
            pumping = streams.pump(fd, self._channel, kind, member.prefix)
            self._pumps.add(self._loop.create_task(pumping))
        member.pmi.setblocking(False)
        self._loop.add_reader(member.pmi.fileno(), self._hear, member)

    def _bear(self, member: _Member, launch: Launch) -> None:
        """By the starter, if it can be, or by a fork."""
        attempt = self._attempt

        def born() -> None:
            self._unborn.discard(member.number)
            member.take_back()
            self._news.set()

        def stillborn(error: Exception | None) -> None:
            if error:
                self._trouble = self._trouble or f"cannot start rank {member.number}: {error}"
            born()

        member.birth = Birth(
            attempt.services.children,
            Report(),
            on_born=born,
            on_exit=partial(self._exited, member),
            retry=lambda: launch if attempt.live and not self._ending else None,
            on_failure=stillborn,
        )
        self._unborn.add(member.number)
        member.birth.begin(launch, attempt.workspace.enclosure, quickly=launch.view is None)

    def _open_gates(self) -> None:
        self._gated = False
        for member in self._members:
            member.birth.open_gate()
        for number in self._early:
            self._signal(number)

    def _launch(self, member: _Member, pmi: int, stdio: tuple[int | None, int, int]) -> Launch:
        attempt = self._attempt
        environ = self._environment(member)
        command = [str(word) for word in self._request["command"]]
        if member.task:
            environ |= member.task["environ"]
            command = [tasks.fill(word, member.task["values"]) for word in command]
        return Launch(
            program=command[0],
            argv=command,
            environ=environ,
            directories=(self._request.get("cwd") or attempt.owner.home, attempt.owner.home),
            owner=attempt.owner,
            umask=attempt.spec["umask"],
            cgroups=attempt.workspace.enclosure.procs,
            view=attempt.workspace.view,
            stdio=stdio,
            inherit=("PMI_FD", pmi),
            # Ranks that run while the others are being made keep the node busy waiting for them.
            gated=True,
        )

    def _environment(self, member: _Member) -> dict[str, str]:
        given = {str(key): str(value) for key, value in dict(self._request.get("environ") or {}).items()}
        environ = {key: value for key, value in given.items() if not key.startswith(mpi.FOREIGN)}
        rank, local, locals_ = str(member.number), str(member.local_rank), str(len(self._members))
        values = {
            **environment.of_command(self._attempt.workspace, environ),
            "CUDA_VISIBLE_DEVICES": ",".join(member.gpus),
            "HPCMESOS_STEP": self._step,
            "HPCMESOS_RANK": rank,
            "RANK": rank,
            "WORLD_SIZE": str(self._size),
            "LOCAL_RANK": local,
            "LOCAL_WORLD_SIZE": locals_,
            "PMI_RANK": rank,
            "PMI_SIZE": str(self._size),
            "MPI_LOCALRANKID": local,
            "MPI_LOCALNRANKS": locals_,
        }
        values["PYTHONPATH"] = programs.python_path(values.get("PYTHONPATH", ""))
        return values

    def _about(self, member: _Member, operation: str, **more: Any) -> dict[str, Any]:
        return {"op": operation, "step": self._step, "rank": member.number, **more}

    # --- while they run ---------------------------------------------------------------------------------------------

    def _hear(self, member: _Member) -> None:
        """What a rank says over PMI."""
        try:
            data = member.pmi.recv(protocol.CHUNK)
            if not data:
                raise ConnectionResetError
            if reply := self._pmi.hear(member.number, data):
                member.pmi.send(reply)
        except BlockingIOError:  # a rank that asks and does not listen will not be told
            return
        except (OSError, PmiError) as error:
            self._loop.remove_reader(member.pmi.fileno())
            if isinstance(error, PmiError):
                self._channel.say({"broken": f"rank {member.number} speaks no PMI-1: {error}"})
            return
        if self._pmi.abort:
            rank, code, text = self._pmi.abort
            about = {"op": "rank_end", "step": self._step, "rank": rank, "code": code & 0xFF, "signal": None}
            self._attempt.hear_rank(about | {"dragged": self._ending}, self._attempt.services.config.node)
            self._channel.say({"abort": code, "rank": rank, "text": text})
        elif (puts := self._pmi.complete()) is not None:
            self._channel.say({"barrier": puts})
        else:
            self._look_for_missing()

    def _look_for_missing(self) -> None:
        if (rank := self._pmi.missing()) is not None:
            self._channel.say({"broken": f"rank {rank} has ended, and others wait for it"})

    def _exited(self, member: _Member, status: int, usage: resource.struct_rusage) -> None:
        member.status = status
        self._attempt.charge(usage)
        self._hear_the_rest(member)
        code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
        number = os.WTERMSIG(status) if code is None else None
        about = self._about(member, "rank_end", code=code, signal=number, dragged=self._ending)
        self._attempt.hear_rank(about, self._attempt.services.config.node)
        self._pmi.leave(member.number)
        self._channel.say(
            {
                "rank": member.number,
                "code": code,
                "signal": number,
                "error": member.birth.report.failure or None,
                "open": self._pmi.left_open(member.number),
            }
        )
        self._look_for_missing()
        self._news.set()

    def _hear_the_rest(self, member: _Member) -> None:
        """An abort is said just before the end."""
        self._hear(member)
        self._loop.remove_reader(member.pmi.fileno())
        member.pmi.close()

    async def _obey(self) -> None:
        """Until ``run`` asks for the end, or is gone."""
        while frame := await self._channel.receive():
            kind, body = frame
            if kind == protocol.STDIN:
                self._check_turn()
                self._giving = self._loop.create_task(self._give(body))
                self._pumps.add(self._giving)
                self._giving.add_done_callback(self._pumps.discard)
            elif kind == protocol.STDIN_END:
                self._close_stdin()
            elif kind == protocol.MESSAGE:
                message = protocol.decode(body)
                if "end" in message:
                    return
                if "barrier" in message:
                    self._release(message["barrier"])
                elif number := int(message.get("signal", 0)):
                    self._signal(number)

    def _check_turn(self) -> None:
        """Raises FrameError: it has not waited until the last piece was taken, which would fill our memory."""
        if self._giving and not self._giving.done():
            raise protocol.FrameError("input came before the last of it was taken")

    def _release(self, puts: dict[str, str]) -> None:
        answer = self._pmi.release({str(key): str(value) for key, value in puts.items()})
        for member in self._members:
            with suppress(OSError):
                member.pmi.send(answer)

    def _signal(self, number: int) -> None:
        """Who is not there yet hears it when it begins."""
        if self._gated:
            self._early |= {number} & signal.valid_signals()
            return
        for member in self._members:
            if member.status is None:
                with suppress(ProcessLookupError):
                    os.killpg(member.birth.pid, number)

    async def _give(self, data: bytes) -> None:
        """Input for a rank; ``run`` sends the next piece when this one is taken."""
        taken = self._stdin is not None
        if self._stdin:
            self._stdin.write(data)
            try:
                await self._stdin.drain()
            except OSError:
                taken = False
        self._channel.say({"taken": taken})

    def _close_stdin(self) -> None:
        if self._stdin:
            self._stdin.close()
            self._stdin = None

    # --- the end ----------------------------------------------------------------------------------------------------

    async def _end(self) -> None:
        self._ending = True  # what ends from now on did not fail by itself
        self._close_stdin()
        await self._until(lambda: not self._unborn)  # what is not there yet cannot be killed
        started = [member for member in self._started if member.birth.pid]
        leaders = [member.birth.pid for member in started]
        await enclosure.clear_step(self._attempt.workspace.enclosure, self._step, leaders)
        reaped = self._until(lambda: all(member.status is not None for member in started))
        with suppress(TimeoutError):
            await asyncio.wait_for(reaped, enclosure.UNKILLABLE)
        await self._pump_out()

    async def _pump_out(self) -> None:
        """What the ranks wrote last, unless a stranger holds a pipe and is silent."""
        while self._pumps:
            before = self._channel.sent
            done, self._pumps = await asyncio.wait(self._pumps, timeout=_LAST_WORDS)
            if self._pumps and not done and self._channel.sent == before and not self._channel.blocked:
                break
        for pumping in self._pumps:
            pumping.cancel()
