"""Mail by STARTTLS and SMTPS, with a login, to a real SMTP server; and a server that is slow."""

from __future__ import annotations

import queue
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.smtp import AuthResult

from hpcmesos.master import pki
from hpcmesos.master.delivery import Delivery, Undelivered
from hpcmesos.master.senders import Result, Senders
from hpcmesos.queue.notices import MAIL, Notice
from tests.integration.mail_kit import Postbox

pytestmark = pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")  # SMTPS is TLS
PASSWORD = "a password"


class Inbox:
    def __init__(self) -> None:
        self.mails: list[tuple[bool, bytes | None, str]] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802 - aiosmtpd's name
        self.mails.append((session.ssl is not None or server.transport.get_extra_info("ssl_object") is not None,
                           session.auth_data, envelope.content.decode()))  # fmt: skip
        return "250 OK"


def check_login(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
    good = (data.login, data.password) == (b"batch", PASSWORD.encode())
    return AuthResult(success=good, auth_data=data.login if good else None, handled=good)


@pytest.fixture
def trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """The server's side of TLS, of an authority that this process trusts as it does the system's."""
    authority = pki.ensure_ca(tmp_path)
    certificate, key = pki.ensure_certificate(authority, tmp_path / "smtp", "mail", "master", ["localhost"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.path))
    (tmp_path / "password").write_text(PASSWORD + "\n")
    return context


@pytest.fixture(params=["smtp+tls", "smtps"])
def server(request: pytest.FixtureRequest, trusted: ssl.SSLContext) -> Iterator[tuple[str, Inbox]]:
    """Its URL without a user, and what it got; it takes nothing without TLS and a login."""
    inbox = Inbox()
    tls: dict[str, Any] = {"tls_context": trusted, "require_starttls": True, "auth_require_tls": True}
    if request.param == "smtps":
        tls = {"ssl_context": trusted, "auth_require_tls": False}
    controller = Postbox(inbox, authenticator=check_login, auth_required=True, **tls)
    controller.start()
    yield f"{request.param}://batch@localhost:{controller.port}", inbox
    controller.stop()


def notice(number: int = 1, recipient: str = "ann@example.org") -> Notice:
    return Notice(
        id=number,
        channel=MAIL,
        recipient=recipient,
        content={"subject": "job 1", "text": "It has ended."},
        created_at=datetime.now(UTC),
    )


def test_a_mail_goes_encrypted_and_with_a_login(server: tuple[str, Inbox], tmp_path: Path) -> None:
    url, inbox = server
    Delivery(url, str(tmp_path / "password"), "", "", "hpcm").send(notice(), "batch@example.org")
    (encrypted, login, text), = inbox.mails  # fmt: skip
    assert (encrypted, login) == (True, b"batch")
    assert "It has ended." in text


def test_a_wrong_password_is_refused_for_good(server: tuple[str, Inbox], tmp_path: Path) -> None:
    url, inbox = server
    (tmp_path / "password").write_text("wrong\n")
    with pytest.raises(Undelivered) as told:
        Delivery(url, str(tmp_path / "password"), "", "", "hpcm").send(notice(), "batch@example.org")
    assert told.value.for_good
    assert not inbox.mails


def test_a_server_that_nobody_vouches_for_gets_nothing(
    server: tuple[str, Inbox], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, inbox = server
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(Undelivered, match="certificate verify failed") as told:
        Delivery(url, str(tmp_path / "password"), "", "", "hpcm").send(notice(), "batch@example.org")
    assert not told.value.for_good
    assert not inbox.mails


def test_one_that_hangs_holds_up_no_other() -> None:
    """Four at a time, and no more than that many threads."""
    hang, results = threading.Event(), queue.SimpleQueue[Result]()

    def send(one: Notice, sender: str) -> None:
        if one.id == 1 and not hang.wait(30):
            raise Undelivered("nobody came")

    before = threading.active_count()
    senders = Senders(send, results)
    for number in range(1, 5):
        senders.give(notice(number, f"user{number}"), "")
    assert senders.room == 0
    done = {results.get(timeout=10)[0].id for _ in range(3)}
    assert done == {2, 3, 4}
    for number in done:
        senders.taken(notice(number, f"user{number}"))
    assert senders.room == 3
    for number in range(5, 8):
        senders.give(notice(number, f"user{number}"), "")
    assert {results.get(timeout=10)[0].id for _ in range(3)} == {5, 6, 7}
    assert threading.active_count() - before <= 4
    hang.set()
    assert results.get(timeout=10)[0].id == 1


def test_notices_of_one_line_come_one_after_the_other() -> None:
    sent, results, go = list[int](), queue.SimpleQueue[Result](), threading.Event()

    def send(one: Notice, sender: str) -> None:
        assert go.wait(10)
        sent.append(one.id)

    senders = Senders(send, results)
    for number in (1, 2):
        senders.give(notice(number), "")
    assert senders.flying == {"ann@example.org"}
    go.set()
    senders.taken(results.get(timeout=10)[0])
    senders.give(notice(2), "")
    results.get(timeout=10)
    assert sent == [1, 2]
