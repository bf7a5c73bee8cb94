"""Limits of how many jobs may be there, while several come in at once."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from sqlalchemy import event

from hpcmesos.api_schema import CommandRequest, Submission, SubmitRequest
from hpcmesos.errors import DatabaseUnavailable, KeyReused, TooManyJobs
from hpcmesos.master.auth import Caller
from hpcmesos.master.services.site import Site
from hpcmesos.master.services.submit import many, qsub
from hpcmesos.queue.engine import begin
from hpcmesos.queue.leader_store import LeaderStore
from hpcmesos.queue.records import JobFilter, QueueRecord
from hpcmesos.queue.room import _LIMITS, Kind, bounded, claim_room
from hpcmesos.queue.store import Store
from tests.integration.leader_kit import new_job

from .race_kit import meanwhile

pytest_plugins = ["tests.integration.database_kit", "tests.integration.race_kit"]

ANN = Caller("ann")
COUNTS = "count(*)"


def submit(site: Site, queue: str, count: int, key: str | None = None) -> list[str]:
    """The ids of so many jobs of one request."""
    jobs = [Submission(["-q", queue, "--", "prog"]) for _ in range(count)]
    return many(site, ANN, SubmitRequest(jobs=jobs, cwd="/", environ={"HOME": "/"}, key=key)).ids


def submit_one(site: Site, queue: str, *words: str, key: str | None = None) -> str:
    argv = ["-q", queue, *words, "--", "prog"]
    return qsub(site, ANN, CommandRequest(argv=argv, cwd="/", environ={"HOME": "/"}, key=key)).stdout


def queues(store: Store) -> list[str]:
    """Where each of the jobs is."""
    return [job.queue for job in store.jobs(JobFilter())]


def put(leader: LeaderStore, name: str, **attributes: str) -> None:
    with leader.transaction() as transaction:
        transaction.put_queue(QueueRecord(name=name, attributes=attributes))


@pytest.mark.parametrize(
    ("queue", "server"),
    [
        ({"max_queuable": "3"}, {}),
        ({"max_user_queuable": "3"}, {}),
        ({"max_queued": "[p:PBS_GENERIC=3]"}, {}),
        ({}, {"max_queued": "[o:PBS_ALL=3]"}),
        ({"max_queuable": "3"}, {"max_queued": "[u:PBS_GENERIC=9]"}),
    ],
)
def test_no_more_come_in_than_may_be_there(
    site: Site, leader: LeaderStore, queue: Mapping[str, str], server: Mapping[str, str]
) -> None:
    put(leader, "few", **queue)
    with leader.transaction() as transaction:
        transaction.put_server(server)
    refused = pytest.raises(TooManyJobs, match=r"job 1: .*3 jobs of at most 3")
    with meanwhile(site.store, COUNTS, lambda: submit(site, "few", 2)), refused:
        submit(site, "few", 2)
    assert queues(site.store) == ["few", "few"]
    refused = pytest.raises(TooManyJobs, match="3 jobs of at most 3")
    with meanwhile(site.store, COUNTS, lambda: submit(site, "few", 1)), refused:
        submit_one(site, "few")
    assert queues(site.store) == ["few"] * 3


def test_who_is_outrun_gets_what_is_left(site: Site, leader: LeaderStore) -> None:
    put(leader, "few", max_queuable="3")
    put(leader, "more")
    put(leader, "way", queue_type="Route", route_destinations="few,more")
    with meanwhile(site.store, COUNTS, lambda: submit(site, "few", 2)):
        submit(site, "way", 2)
    assert queues(site.store) == ["few", "few", "few", "more"]
    with meanwhile(site.store, COUNTS, lambda: submit(site, "more", 1)):
        submit_one(site, "way")
    assert queues(site.store)[4:] == ["more", "more"]


def test_a_twin_that_comes_in_first_is_the_answer(site: Site, leader: LeaderStore) -> None:
    """A client that has lost the answer asks again, while its first request is at work."""
    put(leader, "few", max_queuable="1")
    first: list[str] = []
    with meanwhile(site.store, COUNTS, lambda: first.extend(submit(site, "few", 1, "key"))):
        assert submit(site, "few", 1, "key") == first
    assert queues(site.store) == ["few"]


def test_many_at_the_same_moment(store: Store) -> None:
    """In whatever order they name what is limited, they do not wait for each other for ever."""
    kinds: list[Kind] = [(("queue", "batch"),), (("owner", "ann"),), ()]

    def submit(number: int) -> bool:
        turned = kinds[number % 3 :] + kinds[: number % 3]
        try:
            store.submit_many([new_job()] * 30, room=dict.fromkeys(turned, 30))
        except TooManyJobs:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(submit, range(24))) == 2
    assert len(queues(store)) == 60


def test_where_no_limit_is_set_nothing_is_locked_nor_counted(site: Site) -> None:
    said: list[str] = []

    def hear(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        said.append(statement)

    event.listen(site.store._engine, "after_cursor_execute", hear)
    submit_one(site, "batch")
    assert len(queues(site.store)) == 1
    assert not [statement for statement in said if "advisory" in statement or COUNTS in statement]


def test_who_freezes_while_he_is_let_in_holds_up_others_for_seconds(
    site: Site, leader: LeaderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(leader, "few", max_queuable="3")
    with (
        closing(Store(site.settings.database_url)) as other,
        pytest.raises(DatabaseUnavailable),
        begin(other._engine) as frozen,
    ):
        bounded(frozen)
        claim_room(frozen, {(("queue", "few"),): 3})
        monkeypatch.setitem(_LIMITS, "lock_timeout", "60s")  # the other one's end is what is waited for
        submit(site, "few", 2)
    assert queues(site.store) == ["few", "few"]


def test_far_from_a_limit_nobody_is_counted_twice(site: Site, leader: LeaderStore) -> None:
    put(leader, "wide", max_queuable="50000")
    counted = []

    def count(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        counted.append(COUNTS in statement)

    event.listen(site.store._engine, "after_cursor_execute", count)
    submit(site, "wide", 2)
    event.remove(site.store._engine, "after_cursor_execute", count)
    assert sum(counted) == 1


def test_a_second_try_is_not_refused_for_what_the_first_one_filled(site: Site, leader: LeaderStore) -> None:
    put(leader, "few", max_queuable="3")
    first = submit_one(site, "few", "-t", "0-4", key="a"), submit(site, "few", 2, key="b")
    again = submit_one(site, "few", "-t", "0-4", key="a"), submit(site, "few", 2, key="b")
    assert again == first
    assert len(queues(site.store)) == 3
    with pytest.raises(TooManyJobs):
        submit_one(site, "few", key="c")
    with pytest.raises(KeyReused):
        submit_one(site, "few", key="a")
