"""Commands of the remote shell: run here, or passed on to the member that they are for."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
from contextlib import suppress
from enum import Enum
from typing import Any

from hpcmesos.launch import environment, protocol, proxies, streams
from hpcmesos.launch.attempt import Attempt
from hpcmesos.launch.channel import Channel
from hpcmesos.launch.processes import Launch, Report, read_report

_GRACE = 2.0
"""Seconds from SIGTERM to SIGKILL for a command whose caller has gone."""
_LAST_WORDS = 0.2
"""Seconds that the output of a command killed by a signal is waited for: others may hold its pipes for ever."""


class End(Enum):
    """How a command was over."""

    ENDED = "it ended"
    KILLED = "it was killed, or its node was lost"
    DESERTED = "its caller went away before that"


def answer(code: int | None = None, number: int | None = None, error: str | None = None) -> dict[str, Any]:
    """The last message of a shell channel."""
    return {"exit": code, "signal": number, "error": error}


class Command:
    """``sh -c COMMAND`` in an attempt on this node, its stdio in frames of ``channel``."""

    def __init__(self, attempt: Attempt, request: dict[str, Any], channel: Channel) -> None:
        self._attempt = attempt
        self._request = request
        self._channel = channel
        self._loop = asyncio.get_running_loop()
        self._exit: asyncio.Future[int] = self._loop.create_future()
        self._report = Report()
        self._pid = 0

    async def run(self) -> End:
        """Starts it, feeds it, and says how it ended."""
        if not self._attempt.live:
            self._channel.say(answer(error=f"the job on this node is {self._attempt.phase}"))
            return End.ENDED
        try:
            stdin, stdout, stderr = self._start()
        except OSError as error:
            self._channel.say(answer(error=f"cannot start the command: {error}"))
            return End.ENDED
        # Frames of input come from the caller until it goes; then the command has to go too.
        feeding = self._loop.create_task(self._feed(stdin))
        pumping = self._loop.create_task(self._pump_both(stdout, stderr))
        try:
            status = await self._exit
            left = feeding.done()
            # sh reports the death of its last command by signal N as code 128 + N.
            killed = os.WIFSIGNALED(status) or os.WEXITSTATUS(status) > 128
            patience = _LAST_WORDS if killed else None
            either: set[asyncio.Future[Any]] = {feeding, pumping}
            await asyncio.wait(either, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
            code = os.WEXITSTATUS(status) if number is None else None
            self._channel.say(answer(code, number, self._report.failure or None))
            await self._channel.drain()
            return End.DESERTED if left else End.KILLED if killed else End.ENDED
        finally:
            feeding.cancel()
            pumping.cancel()

    def _start(self) -> tuple[int | None, int, int]:
        """Forks; answers our ends of the pipes."""
        request, attempt = self._request, self._attempt
        # Of any type, as a process of the job wrote them; whatever is wrong is raised before a pipe is open.
        given = {str(name): str(value) for name, value in dict(request.get("environ") or {}).items()}
        environ, command = environment.of_shell(attempt.workspace, given, str(request["command"]))
        if proxies.is_proxy(str(request["command"])):
            attempt.note_mpi()
        pipes: list[int] = []
        try:
            stdin, stdout, stderr = (
                streams.pipe(pipes) if request.get("stdin") else None,
                streams.pipe(pipes),
                streams.pipe(pipes),
            )
            self._spawn(environ, command, (stdin[0] if stdin else None, stdout[1], stderr[1]))
        except BaseException:
            for opened in pipes:
                os.close(opened)
            raise
        for fd in (stdin[0] if stdin else None, stdout[1], stderr[1]):
            if fd is not None:
                os.close(fd)
        return stdin[1] if stdin else None, stdout[0], stderr[0]

    def _spawn(self, environ: dict[str, str], command: str, stdio: tuple[int | None, int, int]) -> None:
        request, attempt = self._request, self._attempt
        launch = Launch(
            program="/bin/sh",
            argv=["sh", "-c", command],
            environ=environ,
            directories=(request.get("cwd") or attempt.owner.home, attempt.owner.home),
            owner=attempt.owner,
            umask=attempt.spec["umask"],
            cgroups=attempt.workspace.enclosure.procs,
            view=attempt.workspace.view,
            stdio=stdio,
        )
        self._pid, self._connection = attempt.services.children.spawn(launch, self._exited)
        attempt.workspace.enclosure.adopt(self._pid)

    def _exited(self, status: int, usage: resource.struct_rusage) -> None:
        read_report(self._connection, self._report)
        self._connection.close()
        self._attempt.charge(usage)
        if not self._exit.done():
            self._exit.set_result(status)

    async def _pump_both(self, stdout: int, stderr: int) -> None:
        await asyncio.gather(
            streams.pump(stdout, self._channel, protocol.STDOUT),
            streams.pump(stderr, self._channel, protocol.STDERR),
        )

    async def _feed(self, fd: int | None) -> None:
        writer = await streams.writer(fd) if fd is not None else None
        try:
            while frame := await self._channel.receive():
                kind, body = frame
                if kind == protocol.MESSAGE:
                    self._signal(int(protocol.decode(body).get("signal", 0)))
                elif writer and kind == protocol.STDIN:
                    writer.write(body)
                    with suppress(OSError):
                        await writer.drain()
                elif writer and kind == protocol.STDIN_END:
                    writer.close()
                    writer = None
        finally:
            if writer:
                writer.close()
        await self._hang_up()

    async def _hang_up(self) -> None:
        self._signal(signal.SIGTERM)
        await asyncio.wait({self._exit}, timeout=_GRACE)
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if number and not self._exit.done():
            with suppress(ProcessLookupError):
                os.killpg(self._pid, number)


async def relay(caller: Channel, target: Channel, node: str) -> End:
    """Passes frames both ways until the target has said its last or one side is gone."""

    async def forward() -> None:
        while frame := await caller.receive():
            target.send(protocol.frame(*frame))
            await target.drain()
        target.close()

    forwarding = asyncio.get_running_loop().create_task(forward())
    try:
        while frame := await target.receive():
            caller.send(protocol.frame(*frame))
            if not await caller.drain():
                return End.DESERTED
            if frame[0] == protocol.MESSAGE and "exit" in (end := protocol.decode(frame[1])):
                return End.KILLED if end["signal"] or (end["exit"] or 0) > 128 else End.ENDED
        if forwarding.done():
            return End.DESERTED
        caller.say({**answer(error=f"the connection to {node} was lost"), "lost": True})
        await caller.drain()
        return End.KILLED
    finally:
        forwarding.cancel()
        target.close()
