"""Attacks on what all users share: descriptors and memory of a node's shepherd and of the leader, room for output."""

from __future__ import annotations

import os
import select
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from hpcmesos import handshakes
from hpcmesos.master import log_store
from hpcmesos.master.log_store import LogStore, in_turn
from hpcmesos.master.services import tokens
from hpcmesos.pbs import values
from tests.integration import shepherd_kit as kit
from tests.security.api_stage import STRANGER as ANN
from tests.security.api_stage import VICTIM, ApiStage, _job
from tests.security.cases import Case, Told, Try, both, check, of, replaced
from tests.security.node_stage import NodeStage, by_job, without
from tests.security.test_leader_attacks import OWN, LinkStage
from tests.security.test_peer_attacks import SHELL, asks

MIB = 1 << 20
MUCH = 60 * MIB
"""By what a shepherd does not grow for what a job has it do."""

TALK = """
import json, os, select, socket, sys

PLACE = sys.argv[1]

def connect():
    one = socket.socket(socket.AF_UNIX)
    one.connect(os.environ["HPCMESOS_SOCKET"])
    return one

def frame(kind, body):
    return (1 + len(body)).to_bytes(4, "big") + kind + body

def message(**words):
    return frame(b"J", json.dumps(words).encode())

def push(connections, pieces):
    # As much of it as is taken, by all at once.
    left = {one: (memoryview(b""), iter(pieces())) for one in connections}
    for one in connections:
        one.setblocking(False)
    while left:
        ready = select.select([], list(left), [], 2.0)[1]
        if not ready:
            return
        for one in ready:
            data, more = left[one]
            try:
                if not data:
                    data = memoryview(next(more))
                    left[one] = data, more
                left[one] = data[one.send(data):], more
            except BlockingIOError:
                pass
            except (StopIteration, ConnectionError):
                del left[one]

def crew(ranks, words, step="0.1"):
    return message(op="crew", host="localhost", step=step, size=len(ranks), ranks=ranks, space="s",
                   mapping="(vector,(0,1,1))", command=words, environ=dict(os.environ), cwd="/", stdin=0)

def stay():
    open(PLACE + "/ready", "w").close()
    while not os.path.exists(PLACE + "/stop"):
        select.select([], [], [], 0.05)
"""

UNFINISHED = """
held = [connect() for _ in range(20)]
push(held, lambda: [(16 << 20).to_bytes(4, "big") + b"J", *[b"x" * (1 << 20)] * 15])
stay()
"""
INPUT = """
one = connect()
one.sendall(crew([0], ["sleep", "60"]))
push([one], lambda: [frame(b"I", b"x" * 65536)] * 2000)
stay()
"""
REPORTS = """
one = connect()
gpus = ["x" * 256] * 256
push([one], lambda: (message(op="rank", step="0.1", rank=rank, gpus=gpus) for rank in range(2000)))
stay()
"""
LAUNCHES = """
one = connect()
for _ in range(200):
    one.sendall(message(op="step", command=["x"]))
    if not one.recv(65536):
        sys.exit("hung up")
print("all")
"""
ALL_DESCRIPTORS = """
held = [connect() for _ in range(60)]
for number, one in enumerate(held):
    one.sendall(crew([0], ["sh", "-c", f"touch {PLACE}/begun{number}; exec sleep 60"], f"0.{number}"))
def answered(number):
    return os.path.exists(f"{PLACE}/begun{number}") or select.select([held[number]], [], [], 0)[0]
while not all(map(answered, range(60))):
    select.select([], [], [], 0.05)
stay()
"""
"""A rank on each connection: more than the shepherd may open descriptors for."""
FEW_DESCRIPTORS = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (240, 240))"
MOST_DESCRIPTORS = 145
LARGE = "x=$(head -c 100000 /dev/zero | tr '\\0' x)\n" + "".join(f"export V{n}=$x\n" for n in range(10))

READS_INPUT = by_job("echo mine | hpcmesos run -n 1 cat\n", lambda said: said == "mine\n")
ASKS_AT_LENGTH = by_job(
    LARGE + '"$(dirname $(command -v mpiexec))/pbs_tmrsh" -n node1 "echo in"\n', lambda said: said == "in\n"
)


def resident(pid: int) -> int:
    """Bytes of memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


def talks(stage: NodeStage, node: kit.Node, program: str) -> kit.Run:
    """A job's program that has said all it wants to, and stays until `stop`."""
    (stage.home / "talk.py").write_text(TALK + program)
    run = stage.run(node, f"exec {sys.executable} {stage.home}/talk.py {stage.home}\n")
    kit.wait_until((stage.home / "ready").exists, f"it has said all; {node.log()}", 60)
    return run


def over(stage: NodeStage, run: kit.Run) -> None:
    (stage.home / "stop").touch()
    run.ended()
    run.nodes[0].agent.send(op="forget", attempt=run.attempt)


def grows(program: str) -> Try[NodeStage]:
    """Done: the shepherd has grown by what the job had it hold."""

    def run(stage: NodeStage) -> Told:
        with stage.nodes() as [node]:
            before = resident(node.process.pid)
            attempt = talks(stage, node, program)
            grown = resident(node.process.pid) - before
            over(stage, attempt)
        return Told(grown > MUCH, f"grown by {grown // MIB} MiB")

    return run


def launches(stage: NodeStage) -> Told:
    with stage.nodes() as [node]:
        (stage.home / "talk.py").write_text(TALK + LAUNCHES)
        run = stage.run(node, f"exec {sys.executable} {stage.home}/talk.py {stage.home}\n")
        run.ended()
        node.agent.send(op="forget", attempt=run.attempt)
        return Told(run.tail("stdout") == "all\n", run.tail("stderr"))


def holds(program: str) -> Try[NodeStage]:
    """Done: the shepherd holds most of what it may open for the one job."""

    def run(stage: NodeStage) -> Told:
        with stage.nodes(before=FEW_DESCRIPTORS) as [node]:
            attempt = talks(stage, node, program)
            held = len(os.listdir(f"/proc/{node.process.pid}/fd"))
            over(stage, attempt)
        return Told(held > MOST_DESCRIPTORS, f"{held} are open")

    return run


def opens(count: int) -> Try[NodeStage]:
    """A job that opens so many files, on a node that allows 256, after it has tried to allow itself more."""
    program = f"""
import os, resource
try:
    resource.setrlimit(resource.RLIMIT_NOFILE, (10000, 10000))
except ValueError:
    pass
held = [os.dup(0) for _ in range({count})]
print(len(held))
"""

    def run(stage: NodeStage) -> Told:
        with stage.nodes(limits={"nofile": 256}) as [node]:
            (stage.home / "open.py").write_text(program)
            run = stage.run(node, f"exec {sys.executable} {stage.home}/open.py\n")
            run.ended()
            node.agent.send(op="forget", attempt=run.attempt)
            said = run.tail("stderr").strip().splitlines()[-1:]
            return Told(run.tail("stdout") == f"{count}\n", "".join(said))

    return run


NODES = [
    Case(
        "more open files than the limit",
        opens(400),
        opens(200),
        without("from hpcmesos.launch import child; child._limit = lambda launch: None"),
    ),
    Case(
        "requests of 16 MiB that never end",
        grows(UNFINISHED),
        ASKS_AT_LENGTH,
        without("from hpcmesos.launch import channel; channel._SMALL = 1 << 30"),
    ),
    Case(
        "input for a rank that does not read it",
        grows(INPUT),
        READS_INPUT,
        without("from hpcmesos.launch import crew; crew.Crew._check_turn = lambda self: None"),
    ),
    Case(
        "long reports of ranks that are none",
        grows(REPORTS),
        READS_INPUT,
        without("from hpcmesos.launch import ranks, steps; ranks._MOST_RANKS = steps._LONGEST_GPUS = 10**6"),
    ),
    Case(
        "most descriptors of the shepherd for one user's ranks",
        holds(ALL_DESCRIPTORS),
        READS_INPUT,
        without("from hpcmesos.launch import load; load.Load._room = lambda self, uid, count: True"),
    ),
    Case(
        "launches that never end",
        launches,
        READS_INPUT,
        without("from hpcmesos.launch import ranks; ranks._MOST_LAUNCHES = 10**6"),
    ),
]


@pytest.mark.parametrize("case", NODES, ids=lambda case: case.name)
def test_node(case: Case[NodeStage], node: NodeStage, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, node, monkeypatch)


# --- who has not shown a certificate


def stuck(address: tuple[str, int]) -> Told:
    """600 handshakes that never end, from one address; done: all of them are held.

    For 7 s from the first on, and for less than their own 10 s: then all are over, guarded or not.
    """
    until = time.monotonic() + 7
    connections = [socket.create_connection(address, 10) for _ in range(600)]
    try:
        poll = select.poll()
        for one in connections:
            poll.register(one, select.POLLIN)
        closed = len(poll.poll(max(0.0, until - time.monotonic()) * 1000))
        return Told(closed == 0, f"{closed} are closed")
    finally:
        for one in connections:
            one.close()


def at_shepherd(stage: NodeStage) -> Told:
    with stage.nodes() as [node]:
        return stuck((node.address, node.agent.hello["peer_port"]))


def at_leader(stage: LinkStage) -> Told:
    with stage.listening() as address:
        host, _, port = address.rpartition(":")
        return stuck((host, int(port)))


UNBOUNDED = "from hpcmesos import handshakes; handshakes.MOST = handshakes.MOST_OF_ONE = 10**6"

SHEPHERDS_DOOR: Case[NodeStage] = Case(
    "handshakes that never end, at a shepherd", at_shepherd, asks("agent", "node2", SHELL), without(UNBOUNDED)
)
LEADERS_DOOR: Case[LinkStage] = Case(
    "handshakes that never end, at the leader",
    at_leader,
    OWN,
    both(replaced(handshakes, "MOST", 10**6), replaced(handshakes, "MOST_OF_ONE", 10**6)),
)
DOORS = [SHEPHERDS_DOOR, LEADERS_DOOR]


def test_at_a_shepherd(node: NodeStage, monkeypatch: pytest.MonkeyPatch) -> None:
    check(SHEPHERDS_DOOR, node, monkeypatch)


def test_at_the_leader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(LEADERS_DOOR, LinkStage(tmp_path), monkeypatch)


# --- room in the database and for output


def fills(user: str, looked_at: str) -> Try[ApiStage]:
    """``user`` fills the log store after the victim; done: what ``looked_at`` wrote first is gone."""

    def run(stage: ApiStage) -> Told:
        jobs = stage.api.store.submit_many([_job(VICTIM), *(_job(user) for _ in range(6))])
        kept = replace(stage.site.logs, directory=stage.api.state / "filled", of_all=60)
        victims, *others = (f"{job.seq}.hpcm#1" for job in jobs)
        for age, attempt in enumerate((victims, *others)):
            kept.take(attempt, "stdout", 0, b"x" * 10, 10)
            [path] = kept.directory.glob(f"*/{attempt}.stdout")
            os.utime(path, (age, age))
        first = victims if looked_at == VICTIM else others[0]
        gone = not there(kept, first)
        for path in kept.directory.glob("*/*"):
            path.unlink()
        return Told(gone, "it is kept")

    return run


def there(kept: LogStore, attempt: str) -> bool:
    fd = kept.open(attempt, "stdout")
    if fd is not None:
        os.close(fd)
    return fd is not None


def tokens_made(user: str, count: int) -> Try[ApiStage]:
    def run(stage: ApiStage) -> Told:
        client = stage.client(user)
        return of(lambda: [client.create_token("user") for _ in range(count)])

    return run


def mailing(count: int) -> Try[ApiStage]:
    users = ",".join(f"user{number}@example.org" for number in range(count))
    return lambda stage: stage.command(ANN, "qsub", "-M", users, script=b"true\n")


SHARED = [
    Case(
        "mail to more than a job may send it to",
        mailing(60),
        mailing(2),
        replaced(values, "MOST_RECIPIENTS", 10**6),
    ),
    Case(
        "more tokens than one may have",
        tokens_made("greedy", 8),
        tokens_made("modest", 1),
        replaced(tokens, "MOST", 10**6),
        harmless=True,
    ),
    Case(
        "output that pushes out another's",
        fills(ANN, looked_at=VICTIM),
        fills(ANN, looked_at=ANN),
        replaced(log_store, "in_turn", lambda files, owners: in_turn(files, {})),
        harmless=True,
    ),
]


@pytest.mark.parametrize("case", SHARED, ids=lambda case: case.name)
def test_masters(case: Case[ApiStage], stage: ApiStage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "MOST", 5)
    check(case, stage, monkeypatch)
