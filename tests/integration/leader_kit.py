"""A planner over a real database with links that only record; agents are played by the test."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from hpcmesos import wire
from hpcmesos.config import MasterSettings
from hpcmesos.master.events import Asked, Event, InboxHint, LinkDown, LinkUp, Received
from hpcmesos.master.links_client import Answer, Question
from hpcmesos.master.planner import Planner
from hpcmesos.model import Chunk, JobState, Request
from hpcmesos.queue.leader_store import LeaderStore
from hpcmesos.queue.records import JobRecord, NewJob, NodeRecord
from hpcmesos.queue.store import Store
from tests.integration.invariants import check_invariants

if TYPE_CHECKING:
    from tests.integration.database_kit import Database

T = TypeVar("T")
GIB = 2**30


def wait_until(
    probe: Callable[[], T], what: str, timeout: float = 10.0, show: Callable[[], Any] | None = None
) -> T:
    """The first true answer of ``probe``; fails with the last state seen."""
    deadline = time.monotonic() + timeout
    while True:
        if found := probe():
            return found
        assert time.monotonic() < deadline, f"{what} within {timeout} s; last: {show() if show else found!r}"
        time.sleep(0.005)


def settings(tmp_path: Path, url: str, **changes: Any) -> MasterSettings:
    return MasterSettings(database_url=url, state=tmp_path / "state", socket=tmp_path / "api.sock", **changes)


def gpu(node: str, index: int, state: str = "free") -> wire.Gpu:
    return wire.Gpu(uuid=f"SIM-{node}-{index}", index=index, model="simulated", simulated=True, state=state)


def hello(
    node: str, gpus: int = 2, boot: str = "boot1", attempts: Iterable[wire.AttemptReport] = ()
) -> wire.Hello:
    """What the agent of a node with 8 CPUs and 16 GiB says first."""
    inventory = wire.Inventory(cpus=8, memory=16 * GIB, gpus=tuple(gpu(node, i) for i in range(gpus)))
    return wire.Hello(
        protocol=wire.PROTOCOL,
        node=node,
        boot_id=boot,
        address="127.0.0.1",
        peer_port=1000,
        version="1",
        inventory=inventory,
        attempts=tuple(attempts),
    )


def report(attempt: str, phase: str, head: bool = True) -> wire.AttemptReport:
    return wire.AttemptReport(attempt=attempt, phase=phase, head=head)


def request(nodes: int = 1, gpus: int = 1) -> Request:
    return Request((Chunk(count=nodes, cpus=1, gpus=gpus),))


def new_job(wanted: Request | None = None, **changes: Any) -> NewJob:
    values: dict[str, Any] = {
        "name": "job",
        "owner": "ann",
        "server": "hpcm",
        "queue": "batch",
        "request": wanted or request(),
        "script": b"#!/bin/sh\ntrue\n",
        "submission": {"environment": {"A": "1"}, "umask": 0o77},
    }
    return NewJob(**values | changes)


class RecordingLinks:
    """Links that keep what they are given."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, wire.ToAgent]] = []
        self.dropped: list[str] = []

    def send(self, messages: Iterable[tuple[str, wire.ToAgent]]) -> None:
        self.sent.extend(messages)

    def drop_all(self, why: str) -> None:
        self.dropped.append(why)

    def take(self) -> list[tuple[str, wire.ToAgent]]:
        """What was sent since the last call."""
        sent, self.sent = self.sent, []
        return sent


class Bench:
    """One leader's planner, driven by hand; ``now`` is its clock."""

    def __init__(self, store: Store, leader: LeaderStore, settings: MasterSettings) -> None:
        self.store = store
        self.leader = leader
        self.settings = settings
        self.now = 1000.0
        self.numbers = 0
        self.links = RecordingLinks()
        self.planner = self.new_planner()

    def new_planner(self) -> Planner:
        self.links = RecordingLinks()
        return Planner(self.settings, self.leader, self.links, SimpleQueue(), lambda: self.now)

    def take_over(self) -> None:
        """Another planner takes the place of this one, knowing only the database."""
        self.planner = self.new_planner()

    def turn(self, *events: Event) -> list[tuple[str, wire.ToAgent]]:
        """One turn and what it sent; a second one does what follows from its commit."""
        self.planner.turn([*events, InboxHint()])
        self.planner.turn([])
        return self.links.take()

    def pass_time(self, seconds: float) -> list[tuple[str, wire.ToAgent]]:
        self.now += seconds
        return self.turn()

    def up(self, *nodes: str, **more: Any) -> list[tuple[str, wire.ToAgent]]:
        return self.turn(*(self.link_up(hello(node, **more)) for node in nodes))

    def link_up(self, said: wire.Hello) -> LinkUp:
        self.numbers += 1
        return LinkUp(said.node, self.numbers, said)

    def down(self, node: str) -> list[tuple[str, wire.ToAgent]]:
        link = self.planner._desk.cluster.nodes[node].link
        assert link is not None
        return self.turn(LinkDown(node, link, "test"))

    def say(self, *messages: tuple[str, wire.ToLeader]) -> list[tuple[str, wire.ToAgent]]:
        return self.turn(*(Received(node, message) for node, message in messages))

    def submit(self, wanted: Request | None = None, **changes: Any) -> int:
        return self.store.submit(new_job(wanted, **changes)).seq

    def wish(self, kind: str, seq: int | None, **payload: Any) -> list[tuple[str, wire.ToAgent]]:
        self.store.wish(kind, seq, "ann", payload)
        return self.turn()

    def job(self, seq: int) -> JobRecord:
        job = self.store.job(seq)
        assert job is not None
        return job

    def state(self, seq: int) -> JobState:
        return self.job(seq).state

    def node(self, name: str) -> NodeRecord:
        return next(node for node in self.store.nodes() if node.name == name)

    def run(self, seq: int) -> list[str]:
        """Plays PREPARE to STARTED of a job that has just started; answers its nodes, head first."""
        attempt = self.attempt(seq)
        nodes = [share.node for share in self.store.shares([seq], live_only=True)]
        sent = self.say(*((node, wire.Ready(attempt=attempt)) for node in nodes))
        assert sent == [(nodes[0], wire.Go(attempt=attempt))]
        self.say((nodes[0], wire.Started(attempt=attempt, pid=1, started_at=time.time())))
        return nodes

    def gang(self, *nodes: str, size: int = 2, **changes: Any) -> tuple[int, str]:
        """These nodes come up, and a job runs on the first ``size`` of them: its number and its attempt."""
        self.up(*nodes)
        seq = self.submit(request(size), **changes)
        self.turn()
        self.run(seq)
        return seq, self.attempt(seq)

    def attempt(self, seq: int) -> str:
        return f"{seq}.hpcm#{self.job(seq).attempt}"

    def why(self, seq: int) -> tuple[str, str] | None:
        """Code and text of why it waits; None: it does not."""
        answers: list[Answer] = []
        self.turn(Asked(Question(why=[seq]), answers.append))
        return answers[0].why.get(seq)


@pytest.fixture
def bench(store: Store, leader: LeaderStore, database: Database, tmp_path: Path) -> Iterator[Bench]:
    """The invariants hold afterwards."""
    bench = Bench(store, leader, settings(tmp_path, database.leader))
    yield bench
    assert check_invariants(database.owner, drained=True) == []


def kinds(sent: Iterable[tuple[str, wire.ToAgent]]) -> list[tuple[str, str]]:
    return [(node, type(message).__name__) for node, message in sent]


def ended(attempt: str, cause: str = "OK", head: bool = True, **more: Any) -> wire.Ended:
    values: dict[str, Any] = (
        {"ended_at": time.time()} | ({"code": 0} if head and cause == "OK" else {}) | more
    )
    return wire.Ended(attempt=attempt, head=head, cause=cause, **values)
