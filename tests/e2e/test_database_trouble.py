"""The database is away, full, or refuses connections, the masters' clocks jump: running jobs go on, nothing is lost,
and scheduling is back by itself within 10 s after the fault has cleared.

HPCMESOS_TEST_OUTAGE: seconds for which PostgreSQL and all masters are away together (60). Ten minutes:
`HPCMESOS_TEST_OUTAGE=600 scripts/test -m full tests/e2e/test_database_trouble.py -k everything`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import psycopg
import pytest

from hpcmesos.queue import postgres
from tests.e2e.cluster_kit import wait_until
from tests.e2e.conftest import running
from tests.e2e.trouble_kit import Submitter, TroubleCluster, check_all_ran_once, pass_time, starts_again

FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
SHORT, LONG = 10.0, 60.0
"""Seconds that a fault stays."""
DARKNESS = float(os.environ.get("HPCMESOS_TEST_OUTAGE", LONG))

Fault = Callable[[TroubleCluster], AbstractContextManager[None]]

durations = pytest.mark.parametrize("seconds", [SHORT, pytest.param(LONG, marks=pytest.mark.full)])
long_only = pytest.mark.parametrize("seconds", [pytest.param(LONG, marks=pytest.mark.full)])


@contextlib.contextmanager
def outage(cluster: TroubleCluster) -> Iterator[None]:
    data, sockets = cluster.state / "postgres", cluster.described.sockets / "pg"
    postgres.stop(data, "fast")
    yield
    postgres.start(data, sockets)


@contextlib.contextmanager
def exhausted(cluster: TroubleCluster) -> Iterator[None]:
    """A stranger takes every connection, and ours are lost and have to be made anew."""
    url = postgres.url_of(cluster.described.sockets / "pg", postgres.API)
    with contextlib.ExitStack() as stranger:

        def take_all() -> bool:
            try:
                while True:
                    stranger.enter_context(contextlib.closing(psycopg.connect(url)))
            except psycopg.OperationalError as error:
                return "too many clients" in str(error) or "remaining connection slots" in str(error)

        wait_until(take_all, "every connection is taken")
        with psycopg.connect(cluster.database_url, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'hpcmesos-%'"
            )
        wait_until(take_all, "every connection is taken")
        yield


@contextlib.contextmanager
def full_disk(cluster: TroubleCluster) -> Iterator[None]:
    """PostgreSQL may end by that; then, as systemd would, it is started once there is space."""
    data = cluster.state / "postgres"
    filler = data / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(65536))
    with pytest.raises(psycopg.OperationalError):  # its log cannot grow either
        while True:
            write_much(cluster.database_url)
    yield
    filler.unlink()
    postgres.start(data, cluster.described.sockets / "pg")


def write_much(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE much AS SELECT repeat('x', 1000) FROM generate_series(1, 10000)")
        connection.execute("DROP TABLE much")


class SmallDisk(TroubleCluster):
    """Its database lies on a file system of its own."""

    def __init__(self) -> None:
        super().__init__()
        data = self.state / "postgres"
        data.mkdir(parents=True)
        self.state.chmod(0o711)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160m,mode=0700", "tmpfs", data], check=True)

    def remove(self) -> None:
        subprocess.run(["umount", "-l", self.state / "postgres"], check=True)
        super().remove()


def clock_jump(seconds: int) -> Fault:
    @contextlib.contextmanager
    def fault(cluster: TroubleCluster) -> Iterator[None]:
        set_clock(cluster, seconds)
        yield
        set_clock(cluster, 0)

    return fault


def set_clock(cluster: TroubleCluster, ahead: int) -> None:
    draft = cluster.root / "clock.new"
    draft.write_text(f"{ahead:+d}\n")
    draft.replace(cluster.root / "clock")


def endure(cluster: TroubleCluster, fault: Fault, seconds: float) -> None:
    """Jobs flow before, during and after the fault, and a long one runs all the time."""
    gate = cluster.work() / "gate"
    gate.unlink(missing_ok=True)
    long_job = cluster.qsub(f"#!/bin/sh\nwhile [ ! -e {gate} ]; do sleep 0.1; done\nexit 3\n")
    cluster.wait_state(long_job, "R")
    with Submitter(cluster) as flow:
        with fault(cluster):
            pass_time(seconds)
        starts_again(cluster)
        flow.more(3)
    check_all_ran_once(cluster, flow.jobs)
    gate.touch()
    ended = cluster.wait(long_job)
    assert (ended["Exit_status"], ended["run_count"]) == (3, 1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[TroubleCluster]:
    with running(TroubleCluster()) as made:
        assert isinstance(made, TroubleCluster)
        yield made


@durations
def test_database_away(cluster: TroubleCluster, seconds: float) -> None:
    endure(cluster, outage, seconds)


@long_only
def test_connections_exhausted(cluster: TroubleCluster, seconds: float) -> None:
    endure(cluster, exhausted, seconds)


@long_only
@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounting a small file system")
def test_disk_full(seconds: float) -> None:
    with running(SmallDisk()) as made:
        assert isinstance(made, SmallDisk)
        endure(made, full_disk, seconds)


@pytest.mark.full
@pytest.mark.skipif(not FAKETIME.exists(), reason="no libfaketime")
def test_masters_clocks_jump(cluster: TroubleCluster) -> None:
    set_clock(cluster, 0)
    environ = {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(cluster.root / "clock"),
        "FAKETIME_CACHE_DURATION": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
    cluster.restart_masters(environ=environ)
    for jump in (3600, -3600):
        endure(cluster, clock_jump(jump), LONG)


@pytest.mark.full
def test_everything_but_the_nodes_away(cluster: TroubleCluster) -> None:
    """PostgreSQL and all masters: jobs go on, some end meanwhile, and every end is known afterwards."""
    gate = cluster.work() / "late"
    gate.unlink(missing_ok=True)
    late = cluster.qsub(f"#!/bin/sh\nwhile [ ! -e {gate} ]; do sleep 0.1; done\nexit 5\n")
    early = {cluster.qsub(f"#!/bin/sh\nsleep {DARKNESS / 2}\nexit {code}\n"): code for code in (0, 1, 7)}
    killed = cluster.qsub(f"#!/bin/sh\nsleep {DARKNESS / 2}\nkill -9 $$\n")
    for job in (late, *early, killed):
        cluster.wait_state(job, "R")
    for name in cluster.described.master_names:
        os.kill(cluster.pid(name), signal.SIGKILL)
    postgres.stop(cluster.state / "postgres", "immediate")
    pass_time(DARKNESS)
    assert any(f"/{late}" in line for line in cluster.job_processes()), "the running job goes on"
    cluster.up()
    assert starts_again(cluster, 30) < 30  # masters of this machine are started one by one, and by hand
    assert {job: cluster.wait(job)["Exit_status"] for job in early} == early
    assert cluster.wait(killed)["Exit_status"] == 256 + signal.SIGKILL
    gate.touch()
    assert cluster.wait(late)["Exit_status"] == 5
    for job in (late, *early, killed):
        assert cluster.job(job)["run_count"] == 1
