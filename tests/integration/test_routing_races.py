"""Jobs in route queues that somebody changes while their router has the list of them in its hands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest

from hpcmesos.master.services import wishes
from hpcmesos.master.services.routing import Router
from hpcmesos.master.services.site import Site
from hpcmesos.model import JobState
from hpcmesos.queue.leader_store import LeaderStore
from hpcmesos.queue.records import JobKey, Move, QueueRecord
from tests.integration.leader_kit import new_job

from .api_kit import ObedientLeader
from .race_kit import meanwhile

pytest_plugins = ["tests.integration.database_kit", "tests.integration.race_kit"]

THE_LIST = "FROM jobs"
Q, H, C = JobState.QUEUED, JobState.HELD, JobState.COMPLETE


@pytest.fixture(autouse=True)
def queues(leader: LeaderStore) -> None:
    with leader.transaction() as transaction:
        for name, attributes in (
            ("way", {"queue_type": "Route", "route_destinations": "batch"}),
            ("elsewhere", {}),
        ):
            transaction.put_queue(QueueRecord(name=name, attributes=attributes))


@pytest.fixture
def obedient(leader: LeaderStore) -> Iterator[ObedientLeader]:
    with ObedientLeader(leader) as one:
        yield one


def sent_on(leader: ObedientLeader) -> list[tuple[int | None, object]]:
    return [(row.seq, row.payload["queue"]) for row in leader.taken if row.kind == wishes.MOVE]


@pytest.mark.parametrize(
    ("target", "changes"),
    [
        (H, {"holds": "u"}),
        (Q, {"queue": "elsewhere"}),
        (Q, {"submission": {"resource_list": {"ncpus": "64"}}}),
        (C, {}),
    ],
)
def test_a_job_that_changes_meanwhile_is_left_for_the_next_look(
    site: Site, leader: LeaderStore, obedient: ObedientLeader, target: JobState, changes: Mapping[str, object]
) -> None:
    changed, other = (site.store.submit(new_job(queue="way", owner=name)).seq for name in ("ann", "bob"))

    def change() -> None:
        move = Move(seq=changed, index=None, source=Q, target=target, event="changed", changes=changes)
        with leader.transaction() as transaction:
            assert transaction.move_jobs([move]) == {JobKey(changed)}

    with meanwhile(site.store, THE_LIST, change):
        Router(site).look()
    assert sent_on(obedient) == [(other, "batch")]
