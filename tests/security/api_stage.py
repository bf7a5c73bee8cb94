"""The API as it is served, in this process: the real application on a unix socket and TLS, a real database, an
obedient leader. Guards can be switched off, for the test shares the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from hpcmesos.client import Client
from hpcmesos.config import MasterSettings
from hpcmesos.errors import HpcmesosError
from hpcmesos.launch import __file__ as launch_file
from hpcmesos.master import api_process, peers, pki, vault
from hpcmesos.master.api import build_app
from hpcmesos.master.door import Door, Limits
from hpcmesos.master.identity import Identity
from hpcmesos.master.metrics import Metrics, counting
from hpcmesos.master.services.site import Site
from hpcmesos.model import Chunk, JobState, Request, Scope
from hpcmesos.pbs.arrays import parse_array
from hpcmesos.queue import documents
from hpcmesos.queue.dependencies import Dependency, DependencyKind
from hpcmesos.queue.leader_store import LeaderStore, LeaderTransaction
from hpcmesos.queue.leadership import Leadership
from hpcmesos.queue.records import InboxRow, NewJob, NodeRecord, QueueRecord
from hpcmesos.queue.store import Store
from tests.integration.api_kit import Api, ObedientLeader, _listeners
from tests.integration.database_kit import TEMPLATE, Database, create_database, on_server, urls
from tests.integration.leader_kit import new_job, wait_until
from tests.integration.test_api_identity import AUDIENCE, Issuer
from tests.security.cases import Told

STRANGER, VICTIM, OPERATOR, MANAGER = "ann", "nobody", "op", "boss"
"""The victim has an account on every host: files of his are among what is protected."""

_COUNTS = """
    SELECT (SELECT count(*) FROM jobs), (SELECT last_value FROM inbox_ids), (SELECT count(*) FROM idempotency_keys),
        (SELECT count(*) FROM tokens), (SELECT count(*) FROM tokens WHERE revoked_at IS NULL AND used_at IS NULL),
        (SELECT count(*) FROM events), (SELECT count(*) FROM attempts), (SELECT count(*) FROM queues),
        (SELECT string_agg(state || holds || priority || name, ',' ORDER BY seq, element) FROM jobs)"""


class Leader(ObedientLeader):
    """Keeps reservations, too."""

    @staticmethod
    def _obey(tx: LeaderTransaction, row: InboxRow) -> None:
        if row.payload.get("kind") == "reservation":
            value = row.payload["value"]
            tx.put_document(documents.RESERVATIONS, {row.payload["name"]: value} if value else {})
        ObedientLeader._obey(tx, row)


KEPT = {
    "starts_at": 3e9,
    "ends_at": 4e9,
    "nodes": ["node1"],
    "users": [],
    "queues": [],
    "note": "",
    "by": "op",
}


def _job(owner: str, **changes: Any) -> NewJob:
    submission = {
        "environment": {"SECRET": "42x"},
        "resource_list": {},
        "submit_host": "host",
        **changes.pop("submission", {}),
    }
    return new_job(Request((Chunk(count=1, cpus=1),)), owner=owner, submission=submission, **changes)


def _victims() -> list[NewJob]:
    """What a stage has of the victim, in the order of its fields."""
    waits = {
        "dependencies": (Dependency(DependencyKind.ON, 0, None, 1),),
        "state": JobState.HELD,
        "holds": "d",
    }
    return [
        _job(VICTIM),
        _job(VICTIM),
        _job(VICTIM, array_spec=parse_array("0-3")),
        _job(VICTIM, **waits),
        _job(VICTIM, submission={"interactive": True}),
    ]


@dataclass
class ApiStage:
    """The API, and jobs of the victim that are made anew for every try."""

    api: Api
    site: Site
    issuer: Issuer
    server_tls: ssl.SSLContext
    wishes: ObedientLeader
    database: psycopg.Connection[Any]
    waiting: str = ""  # the victim's, in the queue
    running: str = ""
    array: str = ""
    follower: str = ""  # waits for one job to name it with ``before``
    interactive: str = ""
    own: str = ""  # the stranger's, in the queue
    credentials: dict[str, str] = field(default_factory=dict)
    secret_id: str = ""
    _clients: dict[tuple[str, str], Client] = field(default_factory=dict)
    _tokens: dict[tuple[str, str], str] = field(default_factory=dict)

    def renew(self) -> None:
        for user in (STRANGER, VICTIM, OPERATOR, MANAGER):
            self.client(user)
        store = self.api.store
        waiting, running, array, follower, interactive = store.submit_many(_victims())
        [own] = store.submit_many([_job(STRANGER)])
        self.waiting, self.running, self.own = (f"{one.seq}.hpcm" for one in (waiting, running, own))
        self.array, self.follower = f"{array.seq}[].hpcm", f"{follower.seq}.hpcm"
        self.interactive = f"{interactive.seq}.hpcm"
        started = store.job(running.seq)
        assert started is not None
        self.api.start(started, "node1")
        self._renew_credentials(store)
        with self.api.leader.transaction() as tx:
            tx.put_document(documents.RESERVATIONS, {"kept": KEPT})
        self._quiet()

    def _renew_credentials(self, store: Store) -> None:
        def make(lifetime: timedelta = timedelta(hours=1), **more: Any) -> str:
            return store.create_token("user", VICTIM, None, lifetime, "test", **more)

        found = self.credentials = {
            "good": make(),
            "revoked": make(),
            "expired": make(timedelta(seconds=-1)),
            "read": make(scope=Scope.READ),
            "jobs": make(scope=Scope.JOBS),
            "manager": store.create_token("user", MANAGER, None, timedelta(hours=1), "test"),
            "manager's for jobs": store.create_token(
                "user", MANAGER, None, timedelta(hours=1), "test", scope=Scope.JOBS
            ),
            "join": store.create_token("join", None, None, timedelta(hours=1), "test"),
            "join of node7": store.create_token("join", None, "node7", timedelta(hours=1), "test"),
            "used join": store.create_token("join", None, None, timedelta(hours=1), "test"),
        }
        self.secret_id = store.verify_token(found["good"]).id
        mother = store.verify_token(found["revoked"]).id
        found["child"] = make(parent=mother)
        store.revoke_tokens([mother], None, "test")
        store.consume_join_token(found["used join"], "node8")

    def counts(self) -> Any:
        self._quiet()
        return self.database.execute(_COUNTS).fetchone()

    def _quiet(self) -> None:
        """The leader has taken every wish."""
        count = "SELECT count(*) FROM inbox"
        wait_until(lambda: self.database.execute(count).fetchone() == (0,), "an empty inbox")

    def client(self, user: str, scope: Scope = Scope.ALL) -> Client:
        """Over TLS, with a token of the user; one for the whole test."""
        if (user, scope) not in self._clients:
            hour = timedelta(hours=1)
            token = self.api.store.create_token("user", user, None, hour, "test", scope=scope)
            self._tokens[user, scope] = token
            self._clients[user, scope] = self.with_token(token, patience=5.0)
        return self._clients[user, scope]

    def token(self, user: str) -> str:
        """The one that `client` shows."""
        self.client(user)
        return self._tokens[user, Scope.ALL]

    def close(self) -> None:
        for client in self._clients.values():
            client.close()

    def with_token(self, token: str | None, patience: float = 0.0) -> Client:
        return Client(url=self.api.url, token=token, ca=self.api.ca, patience=patience)

    def submit(self, client: Client, *words: str, terminal: bool = False) -> str:
        given = {"script": b"true\n", "cwd": "/tmp", "environ": {"HOME": "/"}}
        reply = client.command("qsub", words, terminal=terminal, **given)  # type: ignore[arg-type]  # of all types
        assert reply.code == 0, reply.stderr
        return reply.stdout.strip()

    def command(self, user: str, name: str, *words: str, **more: Any) -> Told:
        """A q-command as this user runs it."""
        return self.run(self.client(user), name, *words, **more)

    def run(self, client: Client, name: str, *words: str, **more: Any) -> Told:
        given = {"cwd": "/tmp", "environ": {"HOME": "/"}, **more}
        try:
            reply = client.command(name, words, **given)
        except HpcmesosError as error:
            return Told(False, str(error))
        said = (reply.stderr or reply.stdout).partition("\nqmgr: Error (")[0]  # the family's own second line
        return Told(reply.code == 0, said)

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        token: str | None = None,
    ) -> tuple[int, str]:
        """One request over TLS as it stands; status and text."""
        given = {"Authorization": f"Bearer {token}"} if token is not None else {}
        client = self.with_token(None)
        connection = client._masters.open()
        with contextlib.closing(connection):
            connection.request(method, path, body, {**given, **(headers or {})})
            response = connection.getresponse()
            return response.status, response.read().decode(errors="replace")

    def state(self, job: str) -> JobState:
        record = self.api.store.job(int(job.partition(".")[0].partition("[")[0]))
        assert record is not None
        return record.state

    def as_local(self, user: str, command: str, *words: str, environ: dict[str, str]) -> Told:
        """The command through the unix socket, by a process of that user of this host."""
        entry = pwd.getpwnam(user)
        stub = stub_words(self.api.socket, command)
        done = subprocess.run(
            [*stub, *words],
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            env={"PATH": "/usr/bin:/bin", **environ},
            user=entry.pw_uid,
            group=entry.pw_gid,
            extra_groups=[],
        )
        return Told(done.returncode == 0, done.stderr or done.stdout)


def _serve(site: Site, api: tuple[socket.socket, socket.socket], tls: ssl.SSLContext) -> Any:
    """The servers of one API process in a thread; answers how to end it."""
    metrics = Metrics(site)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Litestar's, about its next release
        app = counting(api_process._interruptible(build_app(site, metrics)), metrics)
    door = Door(Limits())
    servers = [api_process._server(app, None, door), api_process._server(app, tls, door)]

    async def run() -> None:
        await asyncio.gather(*(s.serve([listener]) for s, listener in zip(servers, api, strict=True)))

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()

    def stop() -> None:
        api_process._stop(servers)
        thread.join()
        for listener in api:
            listener.close()

    return stop


@pytest.fixture(scope="module")
def stage(postgres_sockets: Path) -> Iterator[ApiStage]:
    """An API of this module alone, with one node, the queue ``batch``, and an OpenID provider."""
    name = create_database(postgres_sockets, TEMPLATE)
    database = urls(postgres_sockets, name)
    place = Path(tempfile.mkdtemp(prefix="hpcm-sec-", dir="/tmp"))
    place.chmod(0o711)
    issuer = Issuer()
    settings = MasterSettings(
        database_url=database.api,
        state=place,
        socket=place / "api.sock",
        managers=(MANAGER,),
        operators=(OPERATOR,),
        oidc_issuer=issuer.url,
        oidc_audience=AUDIENCE,
    )
    try:
        with (
            _leading(database) as leader,
            Leader(leader) as obedient,
            _running(settings, place, database, leader, issuer, obedient) as running,
        ):
            yield running
    finally:
        issuer.close()
        on_server(postgres_sockets, f"DROP DATABASE {name} WITH (FORCE)")
        shutil.rmtree(place, ignore_errors=True)


_HOSTS_OF_QUEUES = {
    "trusted": "trusted.example",
    "here": "127.0.0.1",
    "login1": "login1",
    "friend": "friend",
    "trusted-domain": "*.trusted.example",
    "example-domain": "*.example",
    "not-here": "-127.*,*",
    "not-there": "-10.*,*",
}
_USERS_OF_QUEUES = {
    "login-users": f"{STRANGER}@login*",
    "friend-users": f"{STRANGER}@fr*",
    "no-fiends": f"-{STRANGER}@*.fiend.example,{STRANGER}",
    "no-tens": f"-{STRANGER}@10.*,{STRANGER}",
}


@contextlib.contextmanager
def _leading(database: Database) -> Iterator[LeaderStore]:
    leadership = Leadership(database.leader)
    term = leadership.try_acquire("test", "127.0.0.1:1", 3600.0)
    assert term is not None
    leader = LeaderStore(database.leader, term)
    with leader.transaction() as tx:
        tx.put_queue(QueueRecord(name="batch"))
        tx.put_queue(QueueRecord(name="long"))
        for name, hosts in _HOSTS_OF_QUEUES.items():
            tx.put_queue(QueueRecord(name=name, attributes={"acl_host_enable": "True", "acl_hosts": hosts}))
        for name, users in _USERS_OF_QUEUES.items():
            of_users = {"acl_user_enable": "True", "acl_users": users}
            tx.put_queue(QueueRecord(name=name, attributes=of_users))
        tx.upsert_node(NodeRecord(name="node1", cpus=10_000, mem=1 << 50, address="127.0.0.1"))
    try:
        yield leader
    finally:
        leader.close()
        leadership.close()


@contextlib.contextmanager
def _running(
    settings: MasterSettings,
    place: Path,
    database: Database,
    leader: LeaderStore,
    issuer: Issuer,
    obedient: ObedientLeader,
) -> Iterator[ApiStage]:
    ca = pki.ensure_ca(place)
    vault.ensure_key(place)
    certificate, key = pki.ensure_certificate(ca, place / "tls", "master1", "master", ["127.0.0.1"])
    site = Site.open(settings, Store(database.api), Identity(certificate, key, ca.path).client)
    supervisor = subprocess.Popen(["/bin/sh", "-c", "trap '' TERM; exec sleep 1000"])  # qterm does it no harm
    site = replace(site, supervisor=supervisor.pid)
    server_tls = peers.server_context(certificate, key, ca.path, require_client=False)
    listeners = _listeners(place / "api.sock")
    (place / "api.sock").chmod(0o666)
    url = f"https://127.0.0.1:{listeners[1].getsockname()[1]}"
    own = Store(database.api)
    stop = _serve(site, listeners, server_tls)
    api = Api(place, database, place / "api.sock", url, ca.path, own, leader, None, place)  # type: ignore[arg-type]  # no process of its own
    watching = psycopg.connect(database.owner, autocommit=True)
    made = ApiStage(api, site, issuer, server_tls, obedient, watching)
    try:
        yield made
    finally:
        watching.close()
        made.close()
        stop()
        supervisor.kill()
        supervisor.wait()
        site.close()
        own.close()


def stub_words(socket_path: Path, command: str) -> list[str]:
    """The words by which users run a q-command."""
    launch = str(Path(launch_file).parent)
    return [sys.executable, "-IS", launch, "qstub", command, str(socket_path), "torque", "hpcmesos"]


IS_ROOT = os.geteuid() == 0
