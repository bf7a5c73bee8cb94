"""What is too large, too slow or too much; and secrets of others."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from litestar.handlers import HTTPRouteHandler

from hpcmesos.master.door import GuardedProtocol, Limits
from hpcmesos.master.rates import Rates
from hpcmesos.master.services import secrets, submit
from hpcmesos.pbs import directives
from hpcmesos.queue.store import Store
from tests.security.api_stage import OPERATOR, STRANGER, VICTIM, ApiStage
from tests.security.cases import Case, Switch, Told, Try, both, check, of, replaced

MIB = 1024 * 1024
LARGE = 17 * MIB
USUAL = Limits(of_one=30)
QUICK = {
    "a head that never ends": "request",
    "a body that never ends": "request",
    "a handshake that never ends": "handshake",
}
"""The time that is 1 s there, so that nobody waits a minute for the end of a slow one."""
LONG = 5.0  # s; what lasts longer than this is not ended
QSUB = json.dumps({"argv": [], "script": "dHJ1ZQo=", "cwd": "/tmp"}).encode()
_LONG = base64.b64encode(b"true\n" + b"#" * 700_000).decode()
LARGE_QSUB = json.dumps({"argv": [], "script": _LONG, "cwd": "/tmp"}).encode()
"""One that counts as eleven."""


@pytest.fixture(autouse=True)
def usual(stage: ApiStage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GuardedProtocol.door, "limits", USUAL)
    monkeypatch.setattr(stage.site.rates, "_rate", 1.0)
    monkeypatch.setattr(stage.site.rates, "_burst", 5.0)
    monkeypatch.setattr(stage.site.rates, "_buckets", {})


def limits(**changed: Any) -> Switch:
    def off(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(GuardedProtocol.door, "limits", replace(USUAL, **changed))

    return off


# --- too large


def sent(headers: dict[str, str], body: bytes = b'{"argv": []}') -> Try[ApiStage]:
    """A request with so much in it, by a user who may make it."""

    def run(stage: ApiStage) -> Told:
        given = {"Content-Type": "application/json", **headers}
        try:
            status, text = stage.request("POST", "/v1/commands/qstat", body, given, stage.token(STRANGER))
        except (ConnectionError, ssl.SSLError) as error:  # the door has closed before all was sent
            return Told(False, str(error))
        return Told(status < 300, text or str(status))

    return run


def padded(size: int) -> bytes:
    return b'{"argv": [], "x": "' + b"x" * size + b'"}'


def script(size: int) -> Try[ApiStage]:
    return lambda stage: stage.command(STRANGER, "qsub", script=b"#" * size + b"\ntrue\n")


def secret(size: int) -> Try[ApiStage]:
    return lambda stage: of(lambda: stage.client(STRANGER).put_secret("big", b"x" * size))


def no_body_limit(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(HTTPRouteHandler, "resolve_request_max_body_size", lambda self: None)


# --- too slow


def kept_open(prepare: Callable[[ApiStage], tuple[socket.socket, bytes]]) -> Try[ApiStage]:
    """A connection on which one byte comes now and then; done: it is still held after a while."""

    def run(stage: ApiStage) -> Told:
        connection, more = prepare(stage)
        with connection:
            connection.settimeout(0.1)
            end = time.monotonic() + LONG
            heard = b""
            while time.monotonic() < end:
                try:
                    connection.sendall(more)
                    piece = connection.recv(65536)
                    if not piece:
                        return Told(False, heard.decode(errors="replace").split("\r\n")[0] or "closed")
                    heard += piece
                except TimeoutError:
                    continue
                except OSError as error:
                    return Told(False, str(error))
        return Told(True)

    return run


def plain(stage: ApiStage) -> socket.socket:
    host, port = stage.api.url.removeprefix("https://").split(":")
    return socket.create_connection((host, int(port)), 10)


def over_tls(stage: ApiStage) -> socket.socket:
    context = ssl.create_default_context(cafile=str(stage.api.ca))
    context.check_hostname = False
    return context.wrap_socket(plain(stage))


def slow_head(stage: ApiStage) -> tuple[socket.socket, bytes]:
    connection = over_tls(stage)
    connection.sendall(b"GET /v1/health HTTP/1.1\r\nX: ")
    return connection, b"y"


def slow_body(stage: ApiStage) -> tuple[socket.socket, bytes]:
    connection = over_tls(stage)
    connection.sendall(b"POST /v1/commands/qstat HTTP/1.1\r\nContent-Length: 100000\r\n\r\n")
    return connection, b"y"


def no_handshake(stage: ApiStage) -> tuple[socket.socket, bytes]:
    """The first bytes of a TLS record that never ends."""
    connection = plain(stage)
    connection.sendall(b"\x16\x03\x01\x02\x00")
    return connection, b""


def whole_request(stage: ApiStage) -> Told:
    """It has the time that a door usually gives: the machine may keep it waiting."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GuardedProtocol.door, "limits", USUAL)
        status, text = stage.request("GET", "/v1/health")
    return Told(status == 200, text)


def unfinished(count: int) -> Try[ApiStage]:
    """So many requests at once, each of 15 MiB but for its last byte; done: all of them are held."""

    def run(stage: ApiStage) -> Told:
        held = [over_tls(stage) for _ in range(count)]
        head = f"POST /v1/commands/qstat HTTP/1.1\r\nContent-Length: {15 * MIB}\r\n\r\n".encode()
        try:
            for one in held:
                one.settimeout(10)
                one.sendall(head)
                one.sendall(b"x" * (15 * MIB - 1))
            for one in held:
                one.settimeout(0.05)
                with contextlib.suppress(TimeoutError):
                    return Told(False, one.recv(4096).decode(errors="replace").split("\r\n")[0] or "closed")
        except OSError as error:  # the door has closed while it was sent
            return Told(False, str(error))
        finally:
            for one in held:
                one.close()
        return Told(True)

    return run


def pipelined(count: int) -> Try[ApiStage]:
    """So many requests in one piece; done: all are answered."""

    def run(stage: ApiStage) -> Told:
        asks = b"GET /v1/leader HTTP/1.1\r\nHost: x\r\n\r\n"
        heard = b""
        with over_tls(stage) as one:
            one.settimeout(10)
            one.sendall(asks * count)
            with contextlib.suppress(OSError):
                while heard.count(b"HTTP/1.1 200") < count and (data := one.recv(65536)):
                    heard += data
        answers = heard.count(b"HTTP/1.1 200")
        return Told(answers == count, f"{answers} are answered")

    return run


# --- too much


_numbers = itertools.count()


def jobs_at_once(count: int, user: str, body: bytes = QSUB) -> Try[ApiStage]:
    """So many submissions as fast as they go; done: all are taken. ``user`` empty: one who has not submitted yet."""

    def run(stage: ApiStage) -> Told:
        token = stage.token(user or f"user{next(_numbers)}")
        given = {"Content-Type": "application/json"}
        for _ in range(count):
            status, text = stage.request("POST", "/v1/commands/qsub", body, given, token)
            if status >= 300:
                return Told(False, text)
        return Told(True)

    return run


def connections(count: int) -> Try[ApiStage]:
    """One address holds the door; done: it holds more than it may."""

    def run(stage: ApiStage) -> Told:
        held = [over_tls(stage) for _ in range(count)]
        try:
            return Told(len(GuardedProtocol.door) >= count, "the oldest make room")
        finally:
            for one in held:
                one.close()

    return run


# --- secrets of others


def with_secret(user: str) -> Try[ApiStage]:
    """A job that wants the victim's secret."""

    def run(stage: ApiStage) -> Told:
        stage.client(VICTIM).put_secret("key", b"42x")
        return stage.command(user, "qsub", "-W", "secret=key", script=b"true\n")

    return run


def listed(user: str) -> Try[ApiStage]:
    def run(stage: ApiStage) -> Told:
        stage.client(VICTIM).put_secret("key", b"42x")
        return of(lambda: stage.client(user).secrets(), lambda found: "key" in [one.name for one in found])

    return run


def removed(user: str) -> Try[ApiStage]:
    def run(stage: ApiStage) -> Told:
        stage.client(VICTIM).put_secret("key", b"42x")
        return of(lambda: stage.client(user).remove_secret("key"))

    return run


def everybodys(patch: pytest.MonkeyPatch) -> None:
    """The store gives out secrets whosever they are."""
    known, gone = Store.secrets, Store.remove_secret
    patch.setattr(Store, "secrets", lambda self, owner: known(self, VICTIM))
    patch.setattr(Store, "remove_secret", lambda self, owner, name, via: gone(self, VICTIM, name, via))


CASES = [
    Case(
        "a body of 17 MiB",
        sent({}, padded(LARGE)),
        sent({}, padded(100)),
        no_body_limit,
    ),
    Case(
        "a header of 100 KiB",
        sent({"X": "y" * 100_000}),
        sent({"X": "y"}),
        limits(head=2**30),
    ),
    Case(
        "a script of more than 1 MiB",
        script(directives.MAX_SCRIPT_BYTES),
        script(1000),
        both(
            replaced(directives, "MAX_SCRIPT_BYTES", 2**40), replaced(submit, "_weight", lambda new, size: 1)
        ),
    ),
    Case(
        "a secret of more than 64 KiB",
        secret(secrets.LARGEST + 1),
        secret(10),
        replaced(secrets, "LARGEST", 2**40),
    ),
    Case("a head that never ends", kept_open(slow_head), whole_request, limits(request=60.0)),
    Case("a body that never ends", kept_open(slow_body), whole_request, limits(request=60.0)),
    Case(
        "a handshake that never ends",
        kept_open(no_handshake),
        whole_request,
        limits(handshake=60.0),
        silent=True,
    ),
    Case(
        "requests of 15 MiB that never end, of one address",
        unfinished(8),
        sent({}, padded(10 * MIB)),
        limits(bodies_of_one=2**30, bodies=2**30),
    ),
    Case(
        "requests that are sent without waiting for answers",
        pipelined(200),
        pipelined(5),
        limits(pipelined=10**6),
    ),
    Case(
        "more jobs at once than one may submit",
        jobs_at_once(30, STRANGER),
        jobs_at_once(1, OPERATOR),
        replaced(Rates, "take", lambda self, user, jobs: None),
        harmless=True,
    ),
    Case(
        "large jobs at once, more than one may have kept",
        jobs_at_once(2, "", LARGE_QSUB),
        jobs_at_once(2, ""),
        replaced(submit, "_weight", lambda new, size: 1),
        harmless=True,
    ),
    Case(
        "more connections than one may hold",
        connections(60),
        connections(10),
        limits(of_one=10**6),
    ),
    Case("a job with another's secret", with_secret(STRANGER), with_secret(VICTIM), everybodys),
    Case("another's secrets, listed", listed(STRANGER), listed(VICTIM), everybodys, silent=True),
    Case("another's secret, removed", removed(STRANGER), removed(VICTIM), everybodys),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_attack(case: Case[ApiStage], stage: ApiStage, monkeypatch: pytest.MonkeyPatch) -> None:
    if quick := QUICK.get(case.name):
        limits(**{quick: 1.0})(monkeypatch)
    check(case, stage, monkeypatch)
