"""Attempts of one job on one node, as a leader writes them: they begin, are lost with their node, or end the job."""

from __future__ import annotations

from typing import Any

from hpcmesos.model import Cause, JobState, Request
from hpcmesos.queue.leader_store import LeaderStore
from hpcmesos.queue.records import (
    AttemptKey,
    AttemptRecord,
    JobRecord,
    Move,
    NewJob,
    NodeRecord,
    Release,
    ShareRecord,
    StartRecord,
)
from hpcmesos.queue.store import Store

NODE = "n1"


def submitted(store: Store, leader: LeaderStore, *nodes: str, **values: Any) -> JobRecord:
    """A job that waits, and nodes for it."""
    with leader.transaction() as transaction:
        for node in nodes or (NODE,):
            transaction.upsert_node(NodeRecord(name=node, cpus=4, mem=1000))
    new = {"name": "a", "owner": "ann", "server": "hpcm", "queue": "batch", "request": Request(), **values}
    job = store.job(store.submit(NewJob(**new)).seq)
    assert job is not None
    return job


def begin(leader: LeaderStore, job: JobRecord, number: int, node: str = NODE) -> None:
    key = AttemptKey(job.seq, None, number)
    share = ShareRecord(attempt=key, node=node, position=0, cpus=1, mem=0, slots=1)
    with leader.transaction() as transaction:
        assert transaction.apply_starts([StartRecord(attempt=key, shares=(share,))]) == {key.job}


def lose(leader: LeaderStore, job: JobRecord, number: int, node: str = NODE, **told: Any) -> None:
    """The attempt's node is away, and the job waits for another one."""
    end = AttemptRecord(key=AttemptKey(job.seq, None, number), cause=Cause.NODE_LOST, code=-3, **told)
    _finish(leader, end, node, JobState.QUEUED, "requeued")


def end(
    leader: LeaderStore,
    job: JobRecord,
    number: int,
    node: str = NODE,
    *,
    index: int | None = None,
    **told: Any,
) -> None:
    """The attempt's end is the job's, or its element's."""
    end = AttemptRecord(key=AttemptKey(job.seq, index, number), cause=Cause.OK, code=0, **told)
    _finish(leader, end, node, JobState.COMPLETE, "ended")


def _finish(leader: LeaderStore, end: AttemptRecord, node: str, target: JobState, event: str) -> None:
    seq, over = end.key.seq, target is JobState.COMPLETE
    changes = {"exit_status": 0, "cause": Cause.OK} if over else {}
    move = Move(
        seq=seq, index=end.key.index, source=JobState.RUNNING, target=target, event=event, changes=changes
    )
    with leader.transaction() as transaction:
        transaction.finish_attempts([end])
        transaction.release_shares([Release(attempt=end.key, node=node)])
        assert transaction.move_jobs([move])
