"""Attacks on the leader and by false leaders: nodes that speak for others, old terms, database roles, the link."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from cryptography import x509

from hpcmesos import wire
from hpcmesos.agent import state_machine
from hpcmesos.agent.events import CloseLink, FromLeader, FromShepherd, LinkUp, ToShepherd
from hpcmesos.errors import DatabaseUnavailable
from hpcmesos.master import links, links_client, peers, pki, reconcile
from hpcmesos.master.events import Asked, Event
from hpcmesos.queue import leader_store
from hpcmesos.queue.engine import begin
from hpcmesos.queue.leader_store import LeaderStore, LeaderTransaction
from hpcmesos.queue.leadership import Leadership
from hpcmesos.queue.records import QueueRecord
from hpcmesos.queue.store import Store
from tests.integration.database_kit import Database
from tests.integration.leader_kit import Bench, ended, hello, report, request, settings
from tests.security.cases import Case, Switch, Told, Try, both, check, of, replaced

# --- nodes that speak for an attempt in which they have no part


class GangStage:
    """A leader with three nodes; a gang on two of them, prepared or running, and the third beside it."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.bench.up("node1", "node2", "node3")
        self.preparing = self.running = 0

    def renew(self) -> None:
        for seq in (self.preparing, self.running):
            if seq:
                self.bench.wish("delete", seq, index=None, kill_delay=0)
                self._let_go(seq)
        self.running = self._start()
        self.bench.run(self.running)
        self.preparing = self._start()

    def _start(self) -> int:
        seq = self.bench.submit(request(2, 0))
        self.bench.turn()
        return seq

    def _let_go(self, seq: int) -> None:
        for node in self.nodes(seq):
            self.bench.say((node, ended(self.bench.attempt(seq), "DELETED", head=node == self.nodes(seq)[0])))

    def nodes(self, seq: int) -> list[str]:
        """Its members, head first; what is there."""
        return [share.node for share in self.bench.store.shares([seq])][:2]

    def counts(self) -> Any:
        return [
            (self.bench.state(seq), self.bench.job(seq).attempt) for seq in (self.preparing, self.running)
        ]

    def say(self, which: str, inside: bool, message: Callable[[str], wire.ToLeader]) -> Told:
        """A node in the gang (its head) or outside says something of it; whether the leader minds."""
        seq = getattr(self, which)
        members = self.nodes(seq)
        outside = next(node for node in ("node1", "node2", "node3") if node not in members)
        before = self.counts()
        sent = self.bench.say((members[0] if inside else outside, message(self.bench.attempt(seq))))
        heard = [m for _, m in sent if isinstance(m, wire.End | wire.Go)]
        phase = self.bench.planner._desk.cluster.attempts.get(self.bench.attempt(seq))
        started = which == "preparing" and phase is not None and phase.phase.name == "RUNNING"
        return Told(bool(heard) or started or self.counts() != before)


@pytest.fixture
def gang(store: Store, patient_leader: LeaderStore, database: Database, tmp_path: Path) -> GangStage:
    return GangStage(Bench(store, patient_leader, settings(tmp_path, database.leader)))


def told(which: str, message: Callable[[str], wire.ToLeader], guard: str, name: str) -> Case[GangStage]:
    return Case(
        name,
        lambda stage: stage.say(which, False, message),
        lambda stage: stage.say(which, True, message),
        replaced(reconcile, guard, lambda attempt, node: True),
        silent=True,
    )


GANGS = [
    told(
        "running", lambda name: ended(name, "NODE_LOST"), "_had_part", "a loss told by a node without a part"
    ),
    told(
        "running",
        lambda name: ended(name, "OOM", head=False),
        "_had_part",
        "an end told by a node without a part",
    ),
    told(
        "preparing",
        lambda name: wire.Refused(attempt=name, culprit="node1", reason="no"),
        "_has_part",
        "a refusal told by a node without a part",
    ),
    told(
        "preparing",
        lambda name: wire.Started(attempt=name, pid=1, started_at=1.0),
        "_has_part",
        "a start told by a node without a part",
    ),
]


@pytest.mark.parametrize("case", GANGS, ids=lambda case: case.name)
def test_gang(case: Case[GangStage], gang: GangStage, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, gang, monkeypatch)


def test_a_node_cannot_use_up_the_numbers_of_jobs(
    store: Store, patient_leader: LeaderStore, database: Database, tmp_path: Path
) -> None:
    """Numbers of unknown attempts are passed over, for they may be in use; but not whatever a node says."""
    bench = Bench(store, patient_leader, settings(tmp_path, database.leader))
    bench.up("node1", attempts=[report("4000.hpcm#1", "running")])
    first = bench.submit(request(1, 0))
    assert 4000 < first < 100_000
    bench.up("node2", attempts=[report(f"{2**62}.hpcm#1", "running")])
    assert bench.submit(request(1, 0)) < first + 100


# --- old leaders


class Terms:
    """A leader of an old term that does not know it, and the one that leads now."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._numbers = itertools.count()
        first = Leadership(database.leader)
        term = first.try_acquire("first", "127.0.0.1:1")
        assert term is not None
        self.old = LeaderStore(database.leader, term)
        first.close()
        self._now = Leadership(database.leader)
        term = self._now.try_acquire("second", "127.0.0.1:2", 3600.0)
        assert term is not None
        self.new = LeaderStore(database.leader, term)

    def close(self) -> None:
        for one in (self.old, self.new, self._now):
            one.close()

    def renew(self) -> None:
        pass

    def counts(self) -> Any:
        return sorted(queue.name for queue in self.new.queues())

    def write(self, leader: LeaderStore) -> Told:
        def action() -> bool:
            with leader.transaction() as tx:
                tx.put_queue(QueueRecord(name=f"queue{next(self._numbers)}"))
            return True

        try:
            return Told(action())
        except DatabaseUnavailable:  # its connections were ended with its term
            return of(action)
        except leader_store.LostLeadership as error:
            return Told(False, str(error))


@contextlib.contextmanager
def unfenced(self: LeaderStore) -> Iterator[LeaderTransaction]:
    from datetime import UTC, datetime

    with begin(self._engine) as connection:
        yield LeaderTransaction(connection, datetime.now(UTC))


OLD_TERM: Case[Terms] = Case(
    "a change by a leader of an old term",
    lambda stage: stage.write(stage.old),
    lambda stage: stage.write(stage.new),
    replaced(LeaderStore, "transaction", unfenced),
)


def test_old_term(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.closing(Terms(database)) as stage:
        check(OLD_TERM, stage, monkeypatch)


class AgentStage:
    """An agent that has obeyed a leader of timeline 1 and term 5."""

    def renew(self) -> None:
        pass

    def counts(self) -> Any:
        return None

    def obey(self, term: int = 6, timeline: int = 1, node: str = "node1", gpu: str = "") -> Told:
        """Whether a PREPARE of such a leader reaches the shepherd."""
        shepherd = {"event": "hello", "pid": 1, "started_at": 0.0, "peer_port": 7, "attempts": []}
        welcome = wire.Welcome(protocol=1, cluster="c", timeline=timeline, term=term)
        members = [{"node": node, "gpus": [{"uuid": gpu}] if gpu else []}]
        spec = {"attempt": "1.h#1", "me": 0, "members": members}
        state = state_machine.first_state(hello("node1"), 60.0, (1, 5), 100.0)
        said = []
        for event in (
            FromShepherd(shepherd),
            LinkUp(1),
            FromLeader(1, welcome),
            FromLeader(1, wire.Prepare(attempt="1.h#1", spec=spec)),
        ):
            state, effects = state_machine.step(state, event, 100.0)
            said += effects
        closed = [effect.reason for effect in said if isinstance(effect, CloseLink)]
        refused = [m.reason for e in said if isinstance(m := getattr(e, "message", None), wire.Refused)]
        commanded = any(isinstance(e, ToShepherd) and e.message["op"] == "prepare" for e in said)
        return Told(commanded, next(iter([*closed, *refused]), ""))


def welcoming(self: Any, link: int, welcome: wire.Welcome) -> None:
    self._set(obeyed=(welcome.timeline, welcome.term), welcomed=True)


AGENTS: list[Case[AgentStage]] = [
    Case(
        "commands of an old term",
        lambda a: a.obey(term=4),
        lambda a: a.obey(),
        replaced(state_machine._Step, "_on_welcome", welcoming),
    ),
    Case(
        "commands of an old timeline",
        lambda a: a.obey(term=9, timeline=0),
        lambda a: a.obey(),
        replaced(state_machine._Step, "_on_welcome", welcoming),
    ),
    Case(
        "a PREPARE for another node",
        lambda a: a.obey(node="node2"),
        lambda a: a.obey(),
        replaced(state_machine._Step, "_why_not", lambda *words: ""),
    ),
]


@pytest.mark.parametrize("case", AGENTS, ids=lambda case: case.name)
def test_agent(case: Case[AgentStage], monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, AgentStage(), monkeypatch)


# --- the database's roles


@dataclass
class Roles:
    """Statements of one role; ``as_owner``: the guard, that roles may do different things, is off."""

    database: Database
    as_owner: bool = False

    def renew(self) -> None:
        pass

    def counts(self) -> Any:
        with psycopg.connect(self.database.owner) as connection:
            return connection.execute("SELECT count(*), sum(term) FROM leadership").fetchone()

    def run(self, url: str, statement: str) -> Told:
        try:
            with psycopg.connect(self.database.owner if self.as_owner else url) as connection:
                connection.execute(statement)
                connection.rollback()
        except psycopg.Error as error:
            return Told(False, str(error).splitlines()[0])
        return Told(True)


STATEMENTS = {
    "UPDATE jobs SET state = 'C'": "SELECT state FROM jobs",
    "DELETE FROM jobs": "SELECT 1 FROM jobs",
    "UPDATE jobs SET owner = 'ann'": "SELECT owner FROM jobs",
    "DELETE FROM events": "SELECT 1 FROM events",
    "UPDATE leadership SET term = term + 1": "SELECT term FROM leadership",
    "DELETE FROM queues": "SELECT 1 FROM queues",
    "UPDATE nodes SET offline = true": "SELECT 1 FROM nodes",
    "TRUNCATE inbox": "SELECT 1 FROM inbox",
    "CREATE TABLE mine (x int)": "SELECT 1",
    "COPY jobs TO PROGRAM 'cat'": "TABLE jobs",
    "SELECT pg_read_file('/etc/passwd')": "SELECT 1",
}


@pytest.mark.parametrize("statement", STATEMENTS)
def test_role(statement: str, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """An API process that has been taken over, say, writes what only the leader may."""
    stage = Roles(database)
    allowed = STATEMENTS[statement]
    check(
        Case(
            f"the API's role: {statement}",
            lambda stage: stage.run(stage.database.api, statement),
            lambda stage: stage.run(stage.database.api, allowed),
            lambda patch: patch.setattr(stage, "as_owner", True),
        ),
        stage,
        monkeypatch,
    )


# --- the link


@dataclass
class LinkStage:
    """The leader's listener, made anew for every try with the guards that hold then; ``heard``: its events."""

    place: Path
    heard: list[Event] = field(default_factory=list)
    revoked: frozenset[str] = frozenset()

    def renew(self) -> None:
        self.heard.clear()

    def counts(self) -> Any:
        return list(self.heard)

    def context(
        self, organization: str, name: str, foreign: bool = False, lifetime: timedelta = pki.LIFETIME
    ) -> ssl.SSLContext:
        """A client's TLS with such a certificate; ``foreign``: of another authority. No organization: without any."""
        ours = pki.ensure_ca(self.place)
        if not organization:
            return peers.client_context(ours.path)
        ca = pki.ensure_ca(self.place / "foreign") if foreign else ours
        directory = self.place / f"{foreign}-{organization}-{name}"
        paths = pki.ensure_certificate(ca, directory, name, organization, [], lifetime)
        return peers.client_context(ours.path, *paths)

    def revoked_context(self) -> ssl.SSLContext:
        """With a certificate of node1 that has been revoked."""
        context = self.context("agent", "node1")
        path = self.place / "False-agent-node1" / "certificate.pem"
        number = f"{x509.load_pem_x509_certificate(path.read_bytes()).serial_number:x}"
        self.revoked = frozenset({number.zfill(len(number) + len(number) % 2)})
        return context

    @contextlib.contextmanager
    def listening(self) -> Iterator[str]:
        """The address of a leader in a thread."""
        ca = pki.ensure_ca(self.place)
        certificate, key = pki.ensure_certificate(ca, self.place / "tls", "m", "master", [])
        bound, address = links.bind("127.0.0.1:0")
        tls = peers.server_context(certificate, key, ca.path, require_client=True)
        ready, over = threading.Event(), threading.Event()

        async def serve() -> None:
            listener = links.Links(
                wire.Welcome(protocol=1, cluster="c", timeline=1, term=1), 15.0, self._hear
            )
            await listener.start(bound, tls)
            listener.refuse(self.revoked)
            ready.set()
            while not over.is_set():
                await asyncio.sleep(0.005)
            listener.close()
            await asyncio.sleep(0.01)

        thread = threading.Thread(target=lambda: asyncio.run(serve()))
        thread.start()
        ready.wait()
        try:
            yield address
        finally:
            over.set()
            thread.join()

    def _hear(self, event: Event) -> None:
        self.heard.append(event)
        if isinstance(event, Asked):
            event.reply(links_client.Answer(metrics={"x": 1.0}))


Sent = bytes


def dial(
    tls: Callable[[LinkStage], ssl.SSLContext], *frames: Sent, wanted: Callable[[bytes], bool]
) -> Try[LinkStage]:
    """Dials, says that, and looks at what comes back: a frame, or how it is with the link."""

    def run(stage: LinkStage) -> Told:
        stage.revoked = frozenset()
        context = tls(stage)
        with stage.listening() as address:
            got = b""
            with contextlib.suppress(OSError):
                got = _converse(address, context, frames)
        stage.heard.clear()
        return Told(wanted(got), "")

    return run


def _converse(address: str, tls: ssl.SSLContext, frames: tuple[Sent, ...]) -> bytes:
    host, _, port = address.rpartition(":")
    got = b""
    with socket.create_connection((host, int(port)), timeout=5) as plain, tls.wrap_socket(plain) as link:
        link.settimeout(3)  # so long an open link takes; the others are over when a frame or the end has come
        for data in frames:
            link.sendall(data)
        try:
            while data := link.recv(65536):
                got += data
                if len(got) >= 4 + int.from_bytes(got[:4], "big"):
                    return got
            return got + b"closed"
        except TimeoutError:
            return got + b"open"


def welcomed(got: bytes) -> bool:
    with contextlib.suppress(msgspec.MsgspecError, ValueError):
        return isinstance(wire.decode_to_agent(got[4 : 4 + int.from_bytes(got[:4], "big")]), wire.Welcome)
    return False


def with_certificate(
    organization: str, name: str, foreign: bool = False
) -> Callable[[LinkStage], ssl.SSLContext]:
    return lambda stage: stage.context(organization, name, foreign)


def named(organization: str, name: str) -> Switch:
    """Everybody is who this certificate would be of."""
    return replaced(links, "peer_name", lambda certificate: (organization, name))


def trusting_anyone_as(node: str) -> Switch:
    """Certificates are not asked for, and whoever dials is that node."""
    real = peers.server_context
    lax = replaced(
        peers, "server_context", lambda c, k, ca, require_client: _lax(real(c, k, ca, require_client=False))
    )
    return both(lax, named("agent", node))


trusting_all = trusting_anyone_as("node1")


def _lax(context: ssl.SSLContext) -> ssl.SSLContext:
    context.verify_mode = ssl.CERT_NONE
    return context


HELLO = wire.encode(hello("node1"))
QUESTION = links_client.frame(links_client.Question(metrics=True))
OWN = dial(with_certificate("agent", "node1"), HELLO, wanted=welcomed)


def answered(got: bytes) -> bool:
    with contextlib.suppress(msgspec.MsgspecError):
        return bool(links_client._decode_answer.decode(got[4 : 4 + int.from_bytes(got[:4], "big")]).metrics)
    return False


LINKS = [
    Case(
        "a link with another node's certificate",
        dial(with_certificate("agent", "node2"), HELLO, wanted=welcomed),
        OWN,
        named("agent", "node1"),
    ),
    Case(
        "a link with a certificate of another authority",
        dial(with_certificate("agent", "node1", True), HELLO, wanted=welcomed),
        OWN,
        trusting_all,
    ),
    Case(
        "a link without a certificate",
        dial(with_certificate("", ""), HELLO, wanted=welcomed),
        OWN,
        trusting_all,
    ),
    Case(
        "a link with a certificate that has run out",
        dial(
            lambda stage: stage.context("agent", "node9", lifetime=timedelta(seconds=-1)),
            wire.encode(hello("node9")),
            wanted=welcomed,
        ),
        OWN,
        trusting_anyone_as("node9"),
    ),
    Case(
        "a link with a certificate that is revoked",
        dial(LinkStage.revoked_context, HELLO, wanted=welcomed),
        OWN,
        replaced(links.Links, "refuse", lambda self, serials: None),
    ),
    Case(
        "a link with a certificate that is no agent's",
        dial(with_certificate("user", "node1"), HELLO, wanted=welcomed),
        OWN,
        named("agent", "node1"),
    ),
    Case(
        "a master's question by an agent",
        dial(with_certificate("agent", "node1"), QUESTION, wanted=answered),
        dial(with_certificate("master", "m2"), QUESTION, wanted=answered),
        named("master", "m2"),
    ),
    Case(
        "a frame of 4 GiB",
        dial(
            with_certificate("agent", "node1"),
            b"\xff\xff\xff\xff\x00",
            wanted=lambda got: got.endswith(b"open"),
        ),
        OWN,
        replaced(wire, "MAX_FRAME", 1 << 33),
    ),
    Case(
        "a message before the hello",
        dial(
            with_certificate("agent", "node1"),
            wire.encode(ended("1.h#1")),
            wanted=lambda got: got.endswith(b"open"),
        ),
        OWN,
        replaced(links.Connection, "_on_hello", links.Connection._on_message),
    ),
]


@pytest.mark.parametrize("case", LINKS, ids=lambda case: case.name)
def test_link(case: Case[LinkStage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(unanswered(case), LinkStage(tmp_path), monkeypatch)


def unanswered(case: Case[LinkStage]) -> Case[LinkStage]:
    """Who is not known is told nothing."""
    return Case(case.name, case.attack, case.twin, case.off, silent=True)
