"""Mail to a real SMTP server, and signed webhook calls, about jobs of a live cluster."""

from __future__ import annotations

import email
import email.policy
import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

import pytest

from tests.e2e.cluster_kit import LiveCluster, wait_until
from tests.e2e.conftest import running
from tests.integration.mail_kit import Postbox

SECRET = b"a secret of the site"


class Mailbox:
    """What aiosmtpd hands mails to. ``refuse``: addresses that it does not take for now."""

    def __init__(self) -> None:
        self.mails: list[tuple[list[str], EmailMessage]] = []
        self.refuse: set[str] = set()
        self.refused = 0

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:  # noqa: N802 - aiosmtpd's name
        if address in self.refuse:
            self.refused += 1
            return "451 come back later"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802 - aiosmtpd's name
        message = email.message_from_bytes(envelope.content, policy=email.policy.default)
        self.mails.append((envelope.rcpt_tos, cast("EmailMessage", message)))
        return "250 OK"

    def to(self, address: str) -> list[EmailMessage]:
        return [message for recipients, message in self.mails if address in recipients]


class Hook(ThreadingHTTPServer):
    """Keeps what it is told, and checks who tells it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HookHandler)
        self.told: list[dict[str, Any]] = []
        self.calls = 0


class HookHandler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        signature = "sha256=" + hmac.new(SECRET, data, hashlib.sha256).hexdigest()
        assert hmac.compare_digest(signature, self.headers["X-Hpcmesos-Signature"])
        server = cast("Hook", self.server)
        server.calls += 1
        server.told.append(json.loads(data))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def mailbox() -> Iterator[Mailbox]:
    yield Mailbox()


@pytest.fixture(scope="module")
def hook() -> Iterator[Hook]:
    with Hook() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def told(mailbox: Mailbox, hook: Hook, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveCluster]:
    secret = tmp_path_factory.mktemp("secret") / "secret"
    secret.write_bytes(SECRET + b"\n")
    controller = Postbox(mailbox)
    controller.start()
    try:
        url = f"http://127.0.0.1:{hook.server_address[1]}/hook"
        settings = {
            "mail": f"smtp://127.0.0.1:{controller.port}",
            "webhook": url,
            "webhook_secret_file": str(secret),
        }
        with running(LiveCluster(agents=2, gpus=2, settings=settings)) as cluster:
            yield cluster
    finally:
        controller.stop()


def text(mail: EmailMessage) -> str:
    return str(mail.get_content()).replace("\r\n", "\n")


def mails(mailbox: Mailbox, address: str, count: int) -> list[EmailMessage]:
    wait_until(lambda: len(mailbox.to(address)) >= count, f"{count} mails to {address}", 30)
    found = mailbox.to(address)
    assert len(found) == count
    return found


def test_begin_end_and_failure(told: LiveCluster, mailbox: Mailbox) -> None:
    told.run("qmgr", "-c", "set server mail_from = batch@site.example", user="", check=True)
    script = "#!/bin/sh\nfor n in $(seq 30); do echo line $n >&2; done\nexit 3\n"
    job = told.qsub(script, "-m", "abe", "-M", "ann@example.org", "-N", "told")
    begin, end = mails(mailbox, "ann@example.org", 2)
    assert begin["Subject"] == end["Subject"] == f"PBS JOB {job}"
    assert end["From"] == "batch@site.example"
    assert end["Message-ID"] != begin["Message-ID"]
    first, last = text(begin), text(end)
    assert f"PBS Job Id: {job}\nJob Name:   told\nExec host:  node" in first
    assert "Begun execution" in first
    assert "Execution terminated\nExit_status=3\ncause=APP" in last
    assert "Its last 20 lines:\nline 11\n" in last
    assert last.endswith("line 30\n")


def test_what_was_not_asked_for_is_not_sent(told: LiveCluster, mailbox: Mailbox) -> None:
    quiet = told.qsub("#!/bin/sh\ntrue\n", "-M", "quiet@example.org")  # -m a: aborts only
    never = told.qsub("#!/bin/sh\nsleep 300\n", "-m", "n", "-M", "quiet@example.org")
    told.wait_state(never, "R")
    told.run("qdel", never, check=True)
    aborted = told.qsub("#!/bin/sh\nsleep 300\n", "-m", "a", "-M", "late@example.org")
    told.wait_state(aborted, "R")
    told.run("qdel", aborted, check=True)
    told.wait(quiet)
    [mail] = mails(mailbox, "late@example.org", 1)
    assert "Aborted by PBS Server\nExit_status=271\ncause=DELETED" in text(mail)
    assert mailbox.to("quiet@example.org") == []


def test_an_array_is_one_digest(told: LiveCluster, mailbox: Mailbox) -> None:
    script = "#!/bin/sh\ntest $PBS_ARRAYID != 2\n"
    told.wait(told.qsub(script, "-t", "1-3", "-m", "e", "-M", "digest@example.org"))
    [mail] = mails(mailbox, "digest@example.org", 1)
    assert "elements: 2 ended well, 1 did not" in text(mail)


def test_a_mail_that_is_not_taken_is_sent_again(told: LiveCluster, mailbox: Mailbox) -> None:
    mailbox.refuse.add("later@example.org")
    told.wait(told.qsub("#!/bin/sh\ntrue\n", "-m", "e", "-M", "later@example.org"))
    wait_until(lambda: mailbox.refused, "the first try", 20)
    other = told.qsub("#!/bin/sh\ntrue\n", "-m", "e", "-M", "other@example.org")
    told.wait(other)
    mails(mailbox, "other@example.org", 1)  # is not held up
    mailbox.refuse.clear()
    mails(mailbox, "later@example.org", 1)


@pytest.mark.parametrize(
    "address", ["a\nBcc: b@example.org", "a\r\nb@example.org", "-oQ/tmp", "a b@example.org"]
)
def test_no_header_comes_in_with_an_address(told: LiveCluster, mailbox: Mailbox, address: str) -> None:
    before = len(mailbox.mails)
    done = told.run("qsub", "-m", "e", "-M", f"{address},good@example.org", "--", "/bin/true")
    if done.returncode == 0:
        told.wait(done.stdout.strip())
        wait_until(lambda: len(mailbox.mails) > before, "the mail to the good address", 20)
    for recipients, message in mailbox.mails[before:]:
        assert recipients == ["good@example.org"]
        assert message["Bcc"] is None


def test_a_webhook_is_told_and_signed(told: LiveCluster, hook: Hook) -> None:
    job = told.qsub("#!/bin/sh\necho oops >&2\nexit 5\n", "-N", "hooked")
    told.wait(job)
    wait_until(lambda: sum(one["job"] == job for one in hook.told) == 2, "two calls", 20)
    begin, end = [one for one in hook.told if one["job"] == job]
    assert (begin["event"], begin["exit_status"]) == ("begin", None)
    assert (end["event"], end["exit_status"], end["cause"]) == ("end", 5, "APP")
    assert end["last_lines"] == ["oops"]
    assert begin["id"] < end["id"]
