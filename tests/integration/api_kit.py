"""Fixtures: a real API process on a unix socket and TLS, over a database of its own, and a leader that obeys wishes."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from hpcmesos.client import Client
from hpcmesos.config import MasterSettings
from hpcmesos.launch import __file__ as launch_file
from hpcmesos.master import pki
from hpcmesos.master.child import API_CONFIG, Child
from hpcmesos.model import Cause, JobState
from hpcmesos.queue.leader_store import LeaderStore, LeaderTransaction
from hpcmesos.queue.leadership import Leadership
from hpcmesos.queue.records import (
    AttemptKey,
    AttemptRecord,
    GpuRecord,
    InboxRow,
    JobRecord,
    Move,
    NodeRecord,
    QueueRecord,
    ShareRecord,
    StartRecord,
)
from hpcmesos.queue.store import Store

from .database_kit import TEMPLATE, Database, create_database, on_server, urls

ME = pwd.getpwuid(os.getuid()).pw_name
SCRIPT = b"#!/bin/sh\necho hello\n"
_MOVED = {"delete": JobState.COMPLETE, "hold": JobState.HELD, "release": JobState.QUEUED}


@dataclass
class Api:
    """One API process, from outside."""

    state: Path
    database: Database
    socket: Path
    url: str
    ca: Path
    store: Store
    leader: LeaderStore
    process: subprocess.Popen[bytes]
    work: Path
    me: str = ME

    def client(self, token: str | None = None, *, patience: float = 5.0) -> Client:
        """Over the unix socket as this process' user, or over TLS with a token."""
        if token is None:
            return Client(socket=self.socket, patience=patience)
        return Client(url=self.url, token=token, ca=self.ca, patience=patience)

    def token_of(self, user: str) -> str:
        return self.store.create_token("user", user, None, timedelta(hours=1), "test")

    def stub(self, command: str, *argv: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """The command as users run it."""
        return subprocess.run(
            [
                sys.executable,
                "-IS",
                str(Path(launch_file).parent),
                "qstub",
                command,
                str(self.socket),
                "torque",
                "hpcmesos",
                *argv,
            ],
            input=stdin,
            capture_output=True,
            cwd=self.work,
            check=False,
        )

    def counts(self) -> tuple[int, int, int]:
        """Rows of jobs, inbox and idempotency_keys: what a refusal must leave as it is."""
        with psycopg.connect(self.database.owner) as connection:
            row = connection.execute(
                "SELECT (SELECT count(*) FROM jobs), (SELECT count(*) FROM inbox),"
                " (SELECT count(*) FROM idempotency_keys)"
            ).fetchone()
        assert row is not None
        return row[0], row[1], row[2]

    def qsub(self, *argv: str, client: Client | None = None, script: bytes = SCRIPT) -> JobRecord:
        """Submits and answers the row."""
        with client or self.client() as one:
            reply = one.command("qsub", argv, script=script, cwd=str(self.work), environ={"HOME": "/"})
        assert (reply.stderr, reply.code) == ("", 0)
        job = self.store.job(int(reply.stdout.split(".")[0]))
        assert job is not None
        return job

    def add_nodes(self, count: int, gpus: int) -> None:
        with self.leader.transaction() as tx:
            for number in range(1, count + 1):
                name = f"node{number}"
                tx.upsert_node(
                    NodeRecord(
                        name=name,
                        cpus=16,
                        mem=1 << 34,
                        address="127.0.0.1",
                        gpus=tuple(
                            GpuRecord(uuid=f"SIM-{name}-{i}", node=name, index=i, simulated=True)
                            for i in range(gpus)
                        ),
                    )
                )

    def start(self, job: JobRecord, node: str, gpus: tuple[str, ...] = ()) -> AttemptKey:
        """The job's next attempt runs on ``node``."""
        key = AttemptKey(job.seq, job.index, job.attempt + 1)
        share = ShareRecord(attempt=key, node=node, position=0, cpus=1, mem=0, slots=2, gpus=gpus)
        with self.leader.transaction() as tx:
            assert tx.apply_starts([StartRecord(attempt=key, shares=(share,))]) == {job.key}
        return key

    def end(self, attempt: AttemptRecord, exit_status: int) -> None:
        """The attempt and its job are over."""
        with self.leader.transaction() as tx:
            tx.finish_attempts([attempt])
            move = Move(
                seq=attempt.key.seq,
                index=attempt.key.index,
                source=JobState.RUNNING,
                target=JobState.COMPLETE,
                event="ended",
                changes={"exit_status": exit_status, "cause": Cause.APP},
            )
            assert tx.move_jobs([move])


class ObedientLeader:
    """Takes wishes out of the inbox and does what they say to jobs that wait."""

    def __init__(self, leader: LeaderStore) -> None:
        self.taken: list[InboxRow] = []
        self._leader = leader
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> ObedientLeader:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.005):
            with self._leader.transaction() as tx:
                rows = tx.drain_inbox()
                for row in rows:
                    self._obey(tx, row)
                self.taken.extend(rows)  # before the commit, by which who has asked learns of it

    @staticmethod
    def _obey(tx: LeaderTransaction, row: InboxRow) -> None:
        target = _MOVED.get(row.kind)
        if target is None or row.seq is None:
            return
        for source in (JobState.QUEUED, JobState.HELD):
            if source is not target:
                holds = {"holds": row.payload["kinds"]} if target is JobState.HELD else {}
                move = Move(
                    seq=row.seq, index=None, source=source, target=target, event=row.kind, changes=holds
                )
                tx.move_jobs([move])


def _listeners(path: Path) -> tuple[socket.socket, socket.socket]:
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(str(path))
    unix.listen(128)
    tcp = socket.create_server(("127.0.0.1", 0))
    for listener in (unix, tcp):
        listener.set_inheritable(True)
    return unix, tcp


def _spawn(settings: MasterSettings, place: Path) -> tuple[subprocess.Popen[bytes], int]:
    """The process and its TLS port."""
    ca = pki.ensure_ca(place)
    certificate, key = pki.ensure_certificate(ca, place / "tls", "master1", "master", ["127.0.0.1"])
    unix, tcp = _listeners(place / "api.sock")
    with unix, tcp:
        config = Child(
            settings=settings,
            certificate=certificate,
            key=key,
            ca=ca.path,
            unix_fd=unix.fileno(),
            tls_fd=tcp.fileno(),
        )
        config.write(place / "api.json")
        with (place / "api.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "hpcmesos.master.api_process"],
                env={**os.environ, API_CONFIG: str(place / "api.json")},
                pass_fds=(unix.fileno(), tcp.fileno()),
                stderr=log,
            )
        return process, tcp.getsockname()[1]


@pytest.fixture
def obedient(api: Api) -> Iterator[ObedientLeader]:
    with ObedientLeader(api.leader) as leader:
        yield leader


@pytest.fixture(scope="module")
def api_settings() -> dict[str, object]:
    """Settings that a module wants otherwise."""
    return {}


@pytest.fixture(scope="module")
def api(postgres_sockets: Path, api_settings: dict[str, object]) -> Iterator[Api]:
    """An API process of this module alone, with the queue ``batch`` and no node yet."""
    name = create_database(postgres_sockets, TEMPLATE)
    database = urls(postgres_sockets, name)
    place = Path(tempfile.mkdtemp(prefix="hpcm-api-", dir="/tmp"))
    values = {"root_jobs": True, **api_settings}
    settings = MasterSettings(database_url=database.api, state=place, socket=place / "api.sock", **values)  # type: ignore[arg-type]  # each as its field
    leadership = Leadership(database.leader)
    term = leadership.try_acquire("test", "127.0.0.1:1", 3600.0)
    assert term is not None
    leader, store = LeaderStore(database.leader, term), Store(database.api)
    with leader.transaction() as tx:
        tx.put_queue(QueueRecord(name="batch"))
        tx.put_queue(QueueRecord(name="closed", enabled=False))
    process, port = _spawn(settings, place)
    work = place / "work"
    work.mkdir()
    try:
        yield Api(
            place,
            database,
            place / "api.sock",
            f"https://127.0.0.1:{port}",
            place / "ca" / "ca.pem",
            store,
            leader,
            process,
            work,
        )
    finally:
        process.terminate()
        code = process.wait(timeout=20)
        log = (place / "api.log").read_text()
        store.close()
        leader.close()
        leadership.close()
        on_server(postgres_sockets, f"DROP DATABASE {name} WITH (FORCE)")
        shutil.rmtree(place, ignore_errors=True)
    assert code == 0, log
    assert "Traceback" not in log, log
