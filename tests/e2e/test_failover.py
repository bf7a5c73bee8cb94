"""PostgreSQL's primary is killed, its synchronous standby promoted, and the old primary comes back as a stranger."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from hpcmesos.queue import postgres
from tests.e2e.cluster_kit import wait_until
from tests.e2e.conftest import running
from tests.e2e.trouble_kit import ReplicatedCluster, Submitter, check_all_ran_once, starts_again


@pytest.fixture
def replicated() -> Iterator[ReplicatedCluster]:
    with running(ReplicatedCluster()) as cluster:
        assert isinstance(cluster, ReplicatedCluster)
        yield cluster


@pytest.mark.full
def test_failover_to_the_synchronous_standby_and_a_stranger(replicated: ReplicatedCluster) -> None:
    gate = replicated.work() / "gate"
    long_job = replicated.qsub(f"#!/bin/sh\nwhile [ ! -e {gate} ]; do sleep 0.1; done\nexit 3\n")
    replicated.wait_state(long_job, "R")
    with Submitter(replicated) as flow:
        flow.more(5)
        replicated.kill_primary()
        before = len(flow.jobs)
        replicated.promote()
        starts_again(replicated)
        flow.more(5)
        replicated.bring_back_old_primary()
        replicated.renew_processes()  # whoever connects now has the stranger first in its list
        flow.more(5)
    check_all_ran_once(replicated, flow.jobs)
    numbers = [int(job.split(".")[0]) for job in flow.jobs]
    # One may have been answered as the primary died, and one asked for again, which was taken before.
    assert all(number > 10_000 for number in numbers[before + 2 :]), "the last ones may have been lost"
    gate.touch()
    ended = replicated.wait(long_job)
    assert (ended["Exit_status"], ended["run_count"]) == (3, 1)
    stranger = postgres.url_of(replicated.sockets[0], postgres.OWNER)
    with psycopg.connect(stranger) as connection:
        late = connection.execute("SELECT count(*) FROM jobs WHERE seq > 10000").fetchone()
    assert late == (0,), "nothing of ours went to the stranger"


@pytest.mark.full
def test_nobody_leads_on_a_primary_that_was_overtaken(replicated: ReplicatedCluster) -> None:
    """It lives on and nobody has fenced it; so does the leader whose lease it keeps."""

    def led() -> bool:
        with psycopg.connect(postgres.url_of(replicated.sockets[0], postgres.OWNER)) as connection:
            row = connection.execute("SELECT expires_at > clock_timestamp() FROM leadership").fetchone()
            return bool(row and row[0])

    assert led()
    term = replicated.ask("SELECT term FROM leadership")
    replicated.promote()
    wait_until(lambda: not led(), "the old leader has ended", 15)
    leading = "SELECT term > {} AND expires_at > clock_timestamp() FROM leadership"
    wait_until(lambda: replicated.ask(leading.format(term)) is True, "somebody leads on the new primary", 15)
    starts_again(replicated)
    assert not led()
    replicated.kill_primary()
    starts_again(replicated)
