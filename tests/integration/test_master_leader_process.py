"""The leader as a process, its links over real TLS: taking over, losing PostgreSQL, and how fast it is."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from hpcmesos import wire
from hpcmesos.errors import InvalidValue
from hpcmesos.master import child, links_client, pki
from hpcmesos.model import JobState
from hpcmesos.queue.store import Store
from tests.integration.agent_kit import FakeAgent, certificate, obedient
from tests.integration.leader_kit import hello, new_job, report, request, settings, wait_until

if TYPE_CHECKING:
    from tests.integration.database_kit import Database

pytest_plugins = ["tests.integration.database_kit"]

Candidate = Callable[[], subprocess.Popen[bytes]]


@pytest.fixture
def ca(tmp_path: Path) -> pki.Ca:
    return pki.ensure_ca(tmp_path / "state")


@pytest.fixture
def candidate(
    request: pytest.FixtureRequest, database: Database, tmp_path: Path, ca: pki.Ca
) -> Iterator[Candidate]:
    """Starts leader candidates; they write ``leader.log``. A test may say how long their lease is."""
    cert, key = pki.ensure_certificate(ca, tmp_path / "tls", "master", "master", ["127.0.0.1"])
    lease = getattr(request, "param", 3.0)
    chosen = settings(tmp_path, database.leader, cluster="c1", node_silence=4.0, lease=lease)
    config = child.Child(settings=chosen, certificate=cert, key=key, ca=ca.path)
    config.write(tmp_path / "leader.json")
    environ = {child.LEADER_CONFIG: str(tmp_path / "leader.json"), "HPCMESOS_SUPERVISOR": str(os.getpid())}
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        with (tmp_path / "leader.log").open("ab") as log:
            started.append(
                subprocess.Popen(
                    [sys.executable, "-m", "hpcmesos.master.leader"], env=os.environ | environ, stderr=log
                )
            )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def address_of(store: Store, above: int = 0) -> str:
    """Where the leader of a later term than ``above`` listens."""

    def led() -> str:
        with contextlib.suppress(InvalidValue):
            leader = store.leader()
            return leader.address if leader.live and leader.term > above else ""
        return ""

    return wait_until(led, "a leader")


def dial(store: Store, agent: FakeAgent, above: int = 0) -> None:
    """As agents do: asks who leads until a link stands."""

    def linked() -> bool:
        try:
            agent.dial(address_of(store, above))
        except OSError:
            return False
        return bool(wait_until(lambda: agent.of(wire.Welcome) or agent.closed.is_set(), "Welcome"))

    agent.got.clear()
    wait_until(linked, "a link")


def submit(store: Store, **changes: object) -> int:
    seq = store.submit(new_job(**changes)).seq  # type: ignore[arg-type]  # each as its field
    store.notify()
    return seq


def state(store: Store, seq: int) -> JobState:
    job = store.job(seq)
    assert job is not None
    return job.state


def test_a_job_over_real_tls(store: Store, candidate: Candidate, ca: pki.Ca, tmp_path: Path) -> None:
    candidate()
    agent = FakeAgent(certificate(ca, tmp_path, "node1"), hello("node1"), obedient)
    dial(store, agent)
    seq = submit(store)
    wait_until(lambda: state(store, seq) is JobState.COMPLETE, "the job is complete", show=lambda: agent.got)
    job = store.job(seq)
    assert job is not None and job.exit_status == 7
    wait_until(lambda: agent.of(wire.Acknowledged), "the end is acknowledged")
    spec = agent.of(wire.Prepare)[0].spec  # type: ignore[attr-defined]  # all are of that kind
    assert spec["owner"] == "ann" and spec["script"]

    leader = store.leader()
    lines = links_client.Lines(lambda: certificate(ca, tmp_path, "api", "master"))
    figures = lines.metrics(leader.address)
    assert figures["links"] == 1 and figures["starts_total"] == 1
    big = submit(store, wanted=request(3))
    asked = wait_until(lambda: lines.why(leader.address, [big, 12345]).get(big), "a reason")
    assert asked[0] == "insufficient" or "node" in asked[1]
    [(_, kept)] = lines._idle
    kept.shutdown(socket.SHUT_RDWR)  # a connection that broke between two questions is no news
    assert lines.why(leader.address, [big]) == {big: asked}
    lines.close()


def test_who_may_dial(store: Store, candidate: Candidate, ca: pki.Ca, tmp_path: Path) -> None:
    candidate()
    address = address_of(store)
    liar = FakeAgent(certificate(ca, tmp_path, "node1"), hello("node2"))
    wait_until(lambda: _dialled(liar, address), "a connection")
    assert liar.closed.wait(10)
    assert "the certificate is of node1" in liar.of(wire.Rejected)[0].reason  # type: ignore[attr-defined]  # all are of that kind
    stranger = FakeAgent(certificate(ca, tmp_path, "node1", "user"), hello("node1"))
    with contextlib.suppress(OSError):
        stranger.dial(address)
    assert stranger.closed.wait(10) and not stranger.got
    first, second = (FakeAgent(certificate(ca, tmp_path, "node1"), hello("node1")) for _ in range(2))
    dial(store, first)
    dial(store, second)
    assert first.closed.wait(10)
    assert "newer agent" in first.of(wire.Rejected)[0].reason  # type: ignore[attr-defined]  # all are of that kind
    assert not second.closed.is_set()
    copied = FakeAgent(certificate(ca, tmp_path, "node1"), hello("node1", boot="another machine"))
    wait_until(lambda: _dialled(copied, address), "a connection")
    assert copied.closed.wait(10)
    assert "linked and alive" in copied.of(wire.Rejected)[0].reason  # type: ignore[attr-defined]  # all are of that kind
    assert not second.closed.is_set()


def _dialled(agent: FakeAgent, address: str) -> bool:
    try:
        agent.dial(address)
    except OSError:
        return False
    return True


@pytest.mark.alone
@pytest.mark.parametrize("candidate", [30.0], indirect=True)
def test_a_killed_leader_is_replaced_within_3_s(
    store: Store, candidate: Candidate, ca: pki.Ca, tmp_path: Path
) -> None:
    """Nobody waits until its lease is over."""
    first = candidate()
    agent = FakeAgent(certificate(ca, tmp_path, "node1"), hello("node1"))
    dial(store, agent)
    seq = submit(store)
    attempt = f"{seq}.hpcm#1"
    wait_until(lambda: agent.of(wire.Prepare), "PREPARE")
    agent.say(wire.Ready(attempt=attempt))
    wait_until(lambda: agent.of(wire.Go), "GO")
    agent.say(wire.Started(attempt=attempt, pid=1, started_at=1.0))
    candidate()
    lines = tmp_path / "leader.log"
    wait_until(lambda: "another candidate leads" in lines.read_text(), "a standby", show=lines.read_text)
    term = store.leader().term

    killed = time.monotonic()
    first.send_signal(signal.SIGKILL)
    agent.hello = hello("node1", attempts=[report(attempt, "running")])
    dial(store, agent, above=term)
    other = submit(store)
    wait_until(lambda: state(store, other) is JobState.RUNNING, "the new leader starts a job")
    took = time.monotonic() - killed
    assert took < 3 + 3, "and 3 s more that the machine may keep somebody waiting"
    agent.say(wire.Ended(attempt=attempt, head=True, cause="OK", code=0, ended_at=2.0))
    wait_until(lambda: state(store, seq) is JobState.COMPLETE, "the job of the old leader ends")


def test_a_leader_that_is_told_to_stop_steps_down(store: Store, candidate: Candidate, tmp_path: Path) -> None:
    process = candidate()
    address_of(store)
    wait_until(lambda: "serving" in (tmp_path / "leader.log").read_text(), "serving")
    process.terminate()
    assert process.wait(10) == 0
    assert not store.leader().live


def test_a_leader_whose_term_is_over_ends(
    store: Store, candidate: Candidate, database: Database, tmp_path: Path
) -> None:
    process = candidate()
    address_of(store)
    with psycopg.connect(database.owner) as connection:
        connection.execute("UPDATE leadership SET term = term + 1")
    assert process.wait(10) == 1


def test_latency_of_the_way_from_submission_to_prepare(
    store: Store, candidate: Candidate, ca: pki.Ca, tmp_path: Path
) -> None:
    """No bound on speed here; the figures are for the reader of ``-s``."""
    candidate()
    seen: dict[str, float] = {}

    def answer(agent: FakeAgent, message: wire.ToAgent) -> None:
        if isinstance(message, wire.Prepare):
            seen[message.attempt] = time.perf_counter()
        obedient(agent, message)

    agent = FakeAgent(certificate(ca, tmp_path, "node1"), hello("node1"), answer)
    dial(store, agent)
    taken: list[tuple[float, float]] = []
    for _ in range(20):
        began = time.perf_counter()
        seq = store.submit(new_job()).seq
        committed = time.perf_counter()
        store.notify()
        wait_until(lambda seq=seq: f"{seq}.hpcm#1" in seen, "PREPARE")  # type: ignore[misc]  # bound now
        taken.append((committed - began, seen[f"{seq}.hpcm#1"] - committed))
        wait_until(lambda seq=seq: state(store, seq) is JobState.COMPLETE, "its end")  # type: ignore[misc]  # bound now
    submits, prepares = (sorted(column) for column in zip(*taken, strict=True))
    print(json.dumps({"submit_ms": submits[10] * 1000, "notify_to_prepare_ms": prepares[10] * 1000}))
