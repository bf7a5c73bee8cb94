"""Attempts on a machine that fails them: whatever happens, the end is told."""

from __future__ import annotations

import asyncio
import errno
import os
import pwd
import threading
from pathlib import Path
from typing import Any

import pytest

from hpcmesos.launch.attempt import Attempt
from hpcmesos.launch.crew import Crew
from hpcmesos.launch.docker_sockets import Sockets
from hpcmesos.launch.enclosure import Trees
from hpcmesos.launch.files import Directories
from hpcmesos.launch.journal import Entry, Journal
from hpcmesos.launch.order import Order
from hpcmesos.launch.output import Output
from hpcmesos.launch.owners import Owners
from hpcmesos.launch.processes import Children, Launch
from hpcmesos.launch.scopes import Scopes
from hpcmesos.launch.secrets import Secrets
from hpcmesos.launch.services import Services
from hpcmesos.launch.settings import Config
from hpcmesos.launch.shells import Command

ME = pwd.getpwuid(os.geteuid()).pw_name


class NoProcesses(Children):
    def spawn(self, launch: Launch, on_exit: Any) -> Any:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")


def services(state: Path, told: list[dict[str, Any]]) -> Services:
    (state / "attempts").mkdir()
    values = dict.fromkeys(Config.__dataclass_fields__, "") | {"proxy_patience": 60.0}  # type: ignore[dict-item]  # fields of all types
    config = Config(**values | {"state": str(state), "node": "n1", "cgroup": None, "limits": {}})  # type: ignore[arg-type]  # fields of all types
    journal = Journal(str(state / "journal"))
    children = NoProcesses()
    directories = Directories(config, children)
    return Services(
        config,
        children,
        journal,
        directories,
        Secrets(config),
        Trees("HPCMESOS_SOCKET=/nowhere"),
        told.append,
        print,
        Scopes(config, children),
        Sockets(config, children, ""),
    )


def spec(**changes: Any) -> dict[str, Any]:
    member = {
        "node": "n1",
        "address": "127.0.0.1",
        "peer_port": 1,
        "cpus": 1,
        "mem": 0,
        "slots": 1,
        "gpus": [],
    }
    value = {
        "attempt": "12.hpcm#1", "job": "12.hpcm", "number": 1, "index": None, "name": "test", "queue": "batch",
        "server": "hpcm", "owner": ME, "submit_host": "h", "walltime": None, "kill_delay": 1.0, "environment": {},
        "gpubind": "rank", "me": 0, "members": [member], "mpi_network": None, "job_path": [], "workdir": "/",
        "umask": 0o022, "shell": "/bin/sh", "argv": None, "script": "", "script_args": [], "stdout": None,
        "stderr": None, "join": "n", "names_resolve": False,
    }  # fmt: skip
    return value | changes


def test_a_job_for_which_there_is_no_process_ends(tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []

    async def run() -> None:
        attempt = Attempt(services(tmp_path, told), spec(), Owners().resolve(ME))
        attempt.prepare()
        attempt.ready()
        attempt.go()
        await asyncio.gather(*attempt.services.tasks)

    asyncio.run(run())
    ended = told[-1]
    assert (ended["event"], ended["cause"], ended["head"], ended["code"]) == (
        "ended",
        "START_FAILED",
        True,
        None,
    )
    assert "Resource temporarily unavailable" in ended["message"]


def test_a_disk_that_fails_does_not_keep_an_end_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []

    def broken(entry: Entry, record: dict[str, Any]) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    async def run() -> None:
        attempt = Attempt(services(tmp_path, told), spec(), Owners().resolve(ME))
        attempt.prepare()
        attempt.ready()
        monkeypatch.setattr(Entry, "end", broken)
        attempt.end(Order("DELETED"))
        await asyncio.gather(*attempt.services.tasks)

    asyncio.run(run())
    assert [event["event"] for event in told] == ["ready", "ended"]


def none_left(thread: threading.Thread) -> None:
    """What Thread.start is where this user has as many threads as he may."""
    raise RuntimeError("can't start new thread")


def test_where_no_thread_can_be_started_an_end_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, Any]] = []

    async def run() -> None:
        attempt = Attempt(services(tmp_path, told), spec(), Owners().resolve(ME))
        attempt.prepare()
        attempt.ready()
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", none_left)
            patch.setattr(Output, "overflows", lambda output: True)
            attempt.end(Order("DELETED"))
            await asyncio.wait_for(asyncio.gather(*attempt.services.tasks), 30)

    asyncio.run(run())
    assert [event["event"] for event in told] == ["ready", "ended"]


def test_a_spec_that_makes_no_sense_leaves_no_trace(tmp_path: Path) -> None:
    attempt = Attempt(services(tmp_path, []), spec(script=5), Owners().resolve(ME))
    with pytest.raises(TypeError):
        attempt.prepare()
    assert not list((tmp_path / "attempts").iterdir())
    assert Journal(str(tmp_path / "journal")).load() == {}


def test_an_output_file_that_its_server_has_forgotten_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, fstat = Output(), os.fstat
    forgotten = output.opened.stdout = os.open(tmp_path / "out", os.O_CREAT | os.O_RDWR)

    def stale(fd: int) -> os.stat_result:
        if fd == forgotten:
            raise OSError(errno.ESTALE, "Stale file handle")
        return fstat(fd)

    monkeypatch.setattr(os, "fstat", stale)
    assert output.tails() == (b"", b"", 0)
    output.note("killed")
    output.close()


def test_a_pipe_gets_no_notes(tmp_path: Path) -> None:
    """It may be full, and then this process would wait for its reader."""
    os.mkfifo(tmp_path / "pipe")
    fd = os.open(tmp_path / "pipe", os.O_RDWR | os.O_NONBLOCK)
    output = Output()
    output.opened.stderr = fd
    output.note("killed")
    with pytest.raises(BlockingIOError):
        os.read(fd, 100)
    output.close()


def test_where_no_thread_can_be_started_nobody_waits_for_a_file_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading.Thread, "start", none_left)
    output = Output()
    output.opened.stderr = os.open(tmp_path / "err", os.O_CREAT | os.O_RDWR)
    output._far = True
    output.note("killed")
    assert asyncio.run(output.patiently(output.tails, None)) is None
    output.close()


class Caller:
    """A channel whose other end says nothing."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []

    def say(self, value: dict[str, Any]) -> None:
        self.told.append(value)


@pytest.mark.parametrize("environ", [{}, {"PATH": 5}])
@pytest.mark.parametrize("kind", [Command, Crew])
def test_a_command_that_cannot_start_costs_no_descriptor(
    tmp_path: Path, environ: dict[str, Any], kind: Any
) -> None:
    caller = Caller()

    async def run() -> int:
        attempt = Attempt(services(tmp_path, []), spec(), Owners().resolve(ME))
        attempt.prepare()
        attempt.ready()
        request = {"command": ["true"], "stdin": kind is Command, "environ": environ}
        request |= {"step": "0.1", "ranks": [0], "size": 1, "space": "s", "mapping": "m"}
        before = len(os.listdir("/proc/self/fd"))
        await kind(attempt, request, caller).run()
        return len(os.listdir("/proc/self/fd")) - before

    assert asyncio.run(run()) == 0
    assert "Resource temporarily unavailable" in caller.told[0]["error"]


def test_ranks_that_a_step_does_not_have_are_refused(tmp_path: Path) -> None:
    async def run(ranks: list[int]) -> None:
        attempt = Attempt(services(tmp_path, []), spec(), Owners().resolve(ME))
        request = {"step": "0.1", "ranks": ranks, "size": 2, "space": "s", "mapping": "m"}
        Crew(attempt, request, Caller())  # type: ignore[arg-type]  # fields of all types

    asyncio.run(run([0, 1]))
    (tmp_path / "attempts").rmdir()
    with pytest.raises(ValueError, match="step"):
        asyncio.run(run([0, 2**40]))
