"""Any order of starts, ends, releases and reports keeps the books: nothing twice, nothing lost."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpcmesos.model import Cause, GpuState, JobState, Request
from hpcmesos.queue.leader_store import LeaderStore, LeaderTransaction
from hpcmesos.queue.records import (
    AttemptKey,
    AttemptRecord,
    GpuRecord,
    JobRecord,
    Move,
    NewJob,
    NodeRecord,
    Release,
    ShareRecord,
    StartRecord,
)
from hpcmesos.queue.store import Store

from .invariants import check_invariants

if TYPE_CHECKING:
    from .database_kit import Database

pytest_plugins = ["tests.integration.database_kit"]

NODES = ("n1", "n2", "n3")
GPUS = 3
JOBS = 4

shares = st.tuples(st.sampled_from(NODES), st.integers(0, 3), st.sets(st.integers(0, GPUS - 1), max_size=2))
gangs = st.lists(shares, min_size=1, max_size=3, unique_by=lambda share: share[0])
job = st.integers(0, JOBS - 1)
gpu = st.builds(lambda node, index: f"{node}-g{index}", st.sampled_from(NODES), st.integers(0, GPUS - 1))
actions = st.one_of(
    st.tuples(st.just("start"), st.lists(st.tuples(job, gangs), min_size=1, max_size=3)),
    st.tuples(st.just("end"), st.tuples(job, st.sampled_from([JobState.QUEUED, JobState.EXITING]))),
    st.tuples(st.just("release"), st.tuples(job, st.sampled_from(NODES))),
    st.tuples(st.just("report"), st.tuples(gpu, st.sampled_from(GpuState))),
    st.tuples(st.just("register"), st.tuples(st.sampled_from(NODES), st.integers(1, GPUS))),
)


def node_record(name: str, gpus: int = GPUS) -> NodeRecord:
    cards = tuple(GpuRecord(uuid=f"{name}-g{i}", node=name, index=i) for i in range(gpus))
    return NodeRecord(name=name, cpus=4, mem=100, gpus=cards)


class Books:
    """Runs actions against a database with three nodes and four jobs."""

    def __init__(self, store: Store, leader: LeaderStore) -> None:
        self._store, self._leader = store, leader
        new = NewJob(name="j", owner="alice", server="hpcm", queue="batch", request=Request())
        self._seqs = [done.seq for done in store.submit_many([new] * JOBS)]
        with leader.transaction() as transaction:
            for name in NODES:
                transaction.upsert_node(node_record(name))
                transaction.set_gpu_states({card.uuid: GpuState.FREE for card in node_record(name).gpus})

    def _job(self, index: int) -> JobRecord:
        found = self._store.job(self._seqs[index])
        assert found is not None
        return found

    def start(
        self, transaction: LeaderTransaction, wanted: list[tuple[int, list[tuple[str, int, set[int]]]]]
    ) -> None:
        records = []
        for index, members in wanted:
            record = self._job(index)
            key = AttemptKey(record.seq, None, record.attempt + 1)
            parts = tuple(
                ShareRecord(
                    attempt=key,
                    node=name,
                    position=position,
                    cpus=cpus,
                    mem=cpus * 20,
                    slots=1,
                    gpus=tuple(f"{name}-g{i}" for i in cards),
                )
                for position, (name, cpus, cards) in enumerate(members)
            )
            records.append(StartRecord(attempt=key, shares=parts))
        started = transaction.apply_starts(records)
        assert len(started) <= len(records)

    def end(self, transaction: LeaderTransaction, what: tuple[int, JobState]) -> None:
        record = self._job(what[0])
        moved = transaction.move_jobs(
            [Move(seq=record.seq, index=None, source=JobState.RUNNING, target=what[1], event="ended")]
        )
        if moved:
            transaction.finish_attempts([AttemptRecord(key=record.attempt_key, cause=Cause.OK, code=0)])

    def release(self, transaction: LeaderTransaction, what: tuple[int, str]) -> None:
        record = self._job(what[0])
        for number in range(1, record.attempt + 1):
            if number == record.attempt and record.state is JobState.RUNNING:
                continue
            transaction.release_shares([Release(attempt=AttemptKey(record.seq, None, number), node=what[1])])

    def report(self, transaction: LeaderTransaction, what: tuple[str, GpuState]) -> None:
        transaction.set_gpu_states(dict([what]))

    def register(self, transaction: LeaderTransaction, what: tuple[str, int]) -> None:
        transaction.upsert_node(node_record(*what))

    def check(self, url: str) -> None:
        assert check_invariants(url) == []
        for record in self._store.nodes():
            counts = Counter(card.state for card in record.gpus)
            assert sum(counts.values()) == GPUS
            assert len(record.gpus) == GPUS


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(todo=st.lists(actions, min_size=3, max_size=25))
def test_the_books_balance_after_every_action(
    database: Database, store: Store, patient_leader: LeaderStore, todo: list[tuple[str, object]]
) -> None:
    wipe(patient_leader)
    books = Books(store, patient_leader)
    for name, argument in todo:
        with patient_leader.transaction() as transaction:
            getattr(books, name)(transaction, argument)
    books.check(database.owner)


def wipe(leader: LeaderStore) -> None:
    """Examples share the test's database: what the last one left is ended and released."""
    state, _ = leader.load()
    with leader.transaction() as transaction:
        transaction.finish_attempts([AttemptRecord(key=a.key, cause=Cause.DELETED) for a in state.attempts])
        transaction.release_shares([Release(attempt=s.attempt, node=s.node) for s in state.shares])
        transaction.move_jobs(
            [
                Move(
                    seq=record.seq,
                    index=None,
                    source=record.state,
                    target=JobState.COMPLETE,
                    event="deleted",
                    changes={"exit_status": 271},
                )
                for record in state.jobs
            ]
        )
