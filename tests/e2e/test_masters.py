"""Two masters on one database: whichever is killed, stopped or frozen, the other goes on, and nothing is lost."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import psycopg
import pytest

from tests.e2e.cluster_kit import LiveCluster, wait_until
from tests.e2e.conftest import left_as_found, running
from tests.e2e.trouble_kit import check_all_ran_once

TRUE = "#!/bin/sh\ntrue\n"


@dataclass
class Leading:
    """Who leads; ``master``: the process that supervises it."""

    pid: int
    term: int

    @property
    def master(self) -> int:
        with open(f"/proc/{self.pid}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[1])


def leading(cluster: LiveCluster, above: int = 0) -> Leading:
    """The leader of a later term than ``above``, as soon as there is one."""

    def look() -> Leading | None:
        with psycopg.connect(cluster.database_url) as connection:
            row = connection.execute(
                "SELECT holder, term FROM leadership WHERE expires_at > clock_timestamp()"
            ).fetchone()
        assert row is None or isinstance(row[0], str)
        return Leading(int(row[0].rpartition(":")[2]), row[1]) if row and row[1] > above else None

    return wait_until(look, "a leader")


def master_named(cluster: LiveCluster, pid: int) -> str:
    return next(name for name in cluster.described.master_names if cluster.pid(name) == pid)


@pytest.fixture(scope="module")
def pair() -> Iterator[LiveCluster]:
    with running(LiveCluster(agents=2, gpus=4, extra=("--masters", "2"))) as cluster:
        yield cluster


@pytest.fixture
def cluster(pair: LiveCluster) -> Iterator[LiveCluster]:
    """Both masters are there, before and after the test."""
    with left_as_found(pair):
        leading(pair)
        yield pair


class Submitting:
    """Submits a job every 0.1 s until left; ``longest``: the slowest qsub, in seconds.

    ``submit``: submits one and answers its id; unless given, qsub of a job that does nothing.
    """

    def __init__(self, cluster: LiveCluster, submit: Callable[[], str] | None = None) -> None:
        self.jobs: list[str] = []
        self.longest = 0.0
        self._submit = submit or (lambda: cluster.qsub(TRUE))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._failure: BaseException | None = None

    def _run(self) -> None:
        try:
            while not self._stop.wait(0.1):
                began = time.monotonic()
                self.jobs.append(self._submit())
                self.longest = max(self.longest, time.monotonic() - began)
        except BaseException as error:
            self._failure = error

    def __enter__(self) -> Submitting:
        self._thread.start()
        wait_until(lambda: len(self.jobs) > 2 or self._failure, "jobs flow")
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def more(self, count: int) -> None:
        """Returns after so many more submissions."""
        before = len(self.jobs)
        wait_until(lambda: len(self.jobs) >= before + count or self._failure, "jobs flow")


@pytest.fixture
def long_job(cluster: LiveCluster) -> Iterator[str]:
    """Runs while the test does; must end as if nothing had been."""
    gate = cluster.work() / "gate"
    job = cluster.qsub(f"#!/bin/sh\nwhile [ ! -e {gate} ]; do sleep 0.1; done\nexit 3\n")
    cluster.wait_state(job, "R")
    yield job
    gate.touch()
    ended = cluster.wait(job)
    assert (ended["Exit_status"], ended["run_count"]) == (3, 1)


@pytest.mark.usefixtures("long_job")
def test_a_leader_is_killed_while_jobs_flow(cluster: LiveCluster) -> None:
    first = leading(cluster)
    with Submitting(cluster) as flow:
        os.kill(first.pid, signal.SIGKILL)
        second = leading(cluster, above=first.term)
        flow.more(3)
    assert second.pid != first.pid
    check_all_ran_once(cluster, flow.jobs)


@pytest.mark.usefixtures("long_job")
def test_a_master_is_lost_with_its_socket_and_comes_back(cluster: LiveCluster) -> None:
    first = leading(cluster)
    lost = first.master
    name = master_named(cluster, lost)
    with Submitting(cluster) as flow:
        os.kill(lost, signal.SIGKILL)
        second = leading(cluster, above=first.term)
        flow.more(3)
        assert second.master != lost
        cluster.up()
        assert cluster.pid(name) != lost
        os.kill(second.master, signal.SIGKILL)
        third = leading(cluster, above=second.term)
        assert third.master == cluster.pid(name)
        flow.more(3)
    check_all_ran_once(cluster, flow.jobs)
    cluster.up()


@pytest.mark.usefixtures("long_job")
def test_a_master_that_is_told_to_stop_hands_over(cluster: LiveCluster) -> None:
    first = leading(cluster)
    told = first.master
    name = master_named(cluster, told)
    log = cluster.state / "log" / f"{name}.log"
    logged = log.stat().st_size
    with Submitting(cluster) as flow:
        os.kill(told, signal.SIGTERM)
        leading(cluster, above=first.term)
        flow.more(3)
    cluster.up()  # it may not have ended yet: then it is started again once it has
    check_all_ran_once(cluster, flow.jobs)
    wait_until(lambda: not os.path.exists(f"/proc/{told}"), "the master ends")
    said = log.read_bytes()[logged:]
    assert b"stepped down" in said and b"ending:" not in said
    assert master_named(cluster, cluster.pid(name)) == name


@pytest.mark.usefixtures("long_job")
def test_a_frozen_leader_is_replaced_and_commits_nothing_when_it_thaws(cluster: LiveCluster) -> None:
    with psycopg.connect(cluster.database_url, autocommit=True) as connection:
        connection.execute(AUDIT)
        first = leading(cluster)
        old = connection.execute(
            "SELECT array_agg(pid) FROM pg_stat_activity WHERE application_name = 'hpcmesos-leader'"
        ).fetchone()
        assert old is not None and old[0]
        with Submitting(cluster) as flow:
            os.kill(first.pid, signal.SIGSTOP)
            try:
                second = leading(cluster, above=first.term)
                flow.more(3)
                wrote = connection.execute(
                    "SELECT count(*) FROM audit WHERE term = %s", [first.term]
                ).fetchone()
            finally:
                os.kill(first.pid, signal.SIGCONT)
            wait_until(lambda: not os.path.exists(f"/proc/{first.pid}"), "the old leader ends")
            flow.more(3)
        check_all_ran_once(cluster, flow.jobs)
        by_old = connection.execute("SELECT count(*) FROM audit WHERE term = %s", [first.term]).fetchone()
        mixed = connection.execute(
            "SELECT count(*) FROM audit WHERE term > %s AND pid = ANY(%s)", [first.term, old[0]]
        ).fetchone()
        by_new = connection.execute("SELECT count(*) FROM audit WHERE term = %s", [second.term]).fetchone()
    assert by_old == wrote, "a term that is over writes nothing"
    assert mixed == (0,), "no connection of the old leader writes"
    assert by_new is not None and by_new[0] > 0


AUDIT = """
CREATE TABLE audit (pid integer, term bigint);
GRANT INSERT ON audit TO PUBLIC;
CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO audit SELECT pg_backend_pid(), term FROM leadership;
    RETURN NULL;
END $$;
CREATE TRIGGER audit AFTER INSERT ON events FOR EACH STATEMENT EXECUTE FUNCTION audit();
"""
"""Who wrote events, and in whose term."""
