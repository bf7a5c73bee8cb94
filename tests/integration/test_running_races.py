"""qrun of what no leader can start: it is said at once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hpcmesos.api_schema import CommandReply, CommandRequest
from hpcmesos.master.auth import Caller, Role
from hpcmesos.master.services import running
from hpcmesos.master.services.running import qrun
from hpcmesos.master.services.site import Site
from hpcmesos.model import Cause, JobState
from hpcmesos.queue.leader_store import LeaderStore
from hpcmesos.queue.records import AttemptRecord, JobKey, Move

from .api_kit import ObedientLeader
from .race_kit import meanwhile
from .test_queue_elements import an_element, submit_array

pytest_plugins = ["tests.integration.database_kit", "tests.integration.race_kit"]

Q, R, C = JobState.QUEUED, JobState.RUNNING, JobState.COMPLETE


@pytest.fixture(autouse=True)
def obedient(leader: LeaderStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObedientLeader]:
    """It starts nothing, and nobody has patience with it."""
    monkeypatch.setattr(running, "_PATIENCE", 1.0)
    with ObedientLeader(leader) as one:
        yield one


def run(site: Site, job: str) -> CommandReply:
    return qrun(site, Caller("op", role=Role.OPERATOR), CommandRequest(argv=[job]))


def test_a_job_that_is_deleted_meanwhile(site: Site, leader: LeaderStore, obedient: ObedientLeader) -> None:
    seq = submit_array(site.store, leader)
    with leader.transaction() as transaction:
        assert transaction.apply_starts([an_element(seq, 3)]) == {JobKey(seq, 3)}
        transaction.finish_attempts([AttemptRecord(key=an_element(seq, 3).attempt, cause=Cause.NODE_LOST)])
        again = Move(seq=seq, index=3, source=R, target=Q, event="requeued", changes={})
        assert transaction.move_jobs([again])

    def delete() -> None:
        move = Move(seq=seq, index=3, source=Q, target=C, event="deleted", changes={"cause": Cause.DELETED})
        with leader.transaction() as transaction:
            assert transaction.move_jobs([move])

    with meanwhile(site.store, "FROM nodes", delete):
        reply = run(site, f"{seq}[3]")
    assert (reply.code, reply.stderr.count("\n")) == (170, 1)
    assert "invalid state for job - COMPLETE" in reply.stderr
    assert [row.kind for row in obedient.taken] == ["submit", "run"], "one that has run before can be started"


def test_an_element_that_has_not_begun(site: Site, leader: LeaderStore, obedient: ObedientLeader) -> None:
    seq = submit_array(site.store, leader)
    with leader.transaction() as transaction:
        assert transaction.apply_starts([an_element(seq, 0)]) == {JobKey(seq, 0)}
    reply = run(site, f"{seq}[3]")
    assert (reply.code, reply.stderr.count("\n")) == (168, 1)
    assert f"{seq}[3].hpcm has not begun yet: elements begin in their order" in reply.stderr
    assert "run" not in [row.kind for row in obedient.taken]
