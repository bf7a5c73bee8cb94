"""Sends mail by SMTP or sendmail, and calls webhooks. Raises Undelivered; whoever calls tries again."""

from __future__ import annotations

import hashlib
import hmac
import smtplib
import socket
import ssl
import subprocess
import urllib.error
import urllib.request
from dataclasses import dataclass
from email.message import EmailMessage
from email.utils import formatdate
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from hpcmesos.errors import ConfigError
from hpcmesos.queue.notices import MAIL, Notice

_TIMEOUT = 20.0
_PORTS = {"smtp": 25, "smtp+tls": 587, "smtps": 465}
_SCHEMES = (*_PORTS, "sendmail")
SIGNATURE = "X-Hpcmesos-Signature"
"""Header of webhook calls: ``sha256=`` and the HMAC of the body under the site's secret, in hex."""


class Undelivered(Exception):
    """It did not arrive. ``for_good``: trying again will not help."""

    def __init__(self, why: str, *, for_good: bool = False) -> None:
        super().__init__(why)
        self.for_good = for_good


@dataclass(frozen=True, slots=True)
class Delivery:
    """``mail``: smtp://HOST:PORT, smtp+tls:// (STARTTLS) or smtps:// with USER@ where one logs in, or sendmail:PATH.

    Empty: none. ``cluster``: for Message-IDs.
    """

    mail: str
    password_file: str
    webhook: str
    secret_file: str
    cluster: str

    def check(self) -> None:
        """Raises ConfigError for addresses that nothing can be sent to."""
        if self.mail and urlsplit(self.mail).scheme not in _SCHEMES:
            raise ConfigError(
                f"mail = '{self.mail}': write smtp://HOST, smtp+tls://USER@HOST, smtps://USER@HOST or sendmail:PATH"
            )
        if self.webhook and urlsplit(self.webhook).scheme not in ("http", "https"):
            raise ConfigError(f"webhook = '{self.webhook}': write https://HOST/PATH")

    def send(self, notice: Notice, sender: str) -> None:
        """Raises Undelivered."""
        if notice.channel == MAIL:
            self._send_mail(notice, sender)
        else:
            self._call(notice)

    def _send_mail(self, notice: Notice, sender: str) -> None:
        try:
            message = EmailMessage()
            message["From"], message["To"] = sender, notice.recipient
            message["Subject"] = str(notice.content["subject"])
            message["Date"] = formatdate(
                notice.created_at.timestamp() if notice.created_at else None, localtime=True
            )
            # The same for every try: a mail that came twice is known by it.
            message["Message-ID"] = f"<notice-{notice.id}@{self.cluster}.hpcmesos>"
            message["Auto-Submitted"] = "auto-generated"
            message.set_content(str(notice.content["text"]))
        except (ValueError, KeyError, UnicodeError) as error:  # e.g. a line break in a header
            raise Undelivered(f"no mail can be made of it: {error}", for_good=True) from error
        try:
            if self.mail.startswith("sendmail:"):
                self._by_sendmail(message, sender, notice.recipient)
            else:
                self._by_smtp(message, sender, notice.recipient)
        except smtplib.SMTPRecipientsRefused as error:
            code = next(iter(error.recipients.values()), (0, b""))[0]
            raise Undelivered(
                f"{notice.recipient} is refused ({code})", for_good=500 <= code < 600
            ) from error
        except smtplib.SMTPResponseException as error:
            raise Undelivered(str(error), for_good=500 <= error.smtp_code < 600) from error
        except (OSError, smtplib.SMTPException, subprocess.SubprocessError) as error:
            raise Undelivered(str(error)) from error

    def _by_smtp(self, message: EmailMessage, sender: str, recipient: str) -> None:
        url = urlsplit(self.mail)
        host, port, name = url.hostname or "localhost", url.port or _PORTS[url.scheme], socket.gethostname()
        trust = ssl.create_default_context()
        with (
            smtplib.SMTP_SSL(host, port, name, timeout=_TIMEOUT, context=trust)
            if url.scheme == "smtps"
            else smtplib.SMTP(host, port, name, _TIMEOUT)
        ) as server:
            if url.scheme == "smtp+tls":
                server.starttls(context=trust)
            if url.username and url.scheme != "smtp":  # no password goes over the wire for all to read
                server.login(url.username, Path(self.password_file).read_text().strip())
            server.send_message(message, sender, [recipient])

    def _by_sendmail(self, message: EmailMessage, sender: str, recipient: str) -> None:
        command = [self.mail.removeprefix("sendmail:"), "-i", "-f", sender, "--", recipient]
        done = subprocess.run(
            command, input=bytes(message), capture_output=True, timeout=_TIMEOUT, check=False
        )
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip()[:200]
            raise Undelivered(f"{command[0]} exits with {done.returncode}: {said}")

    def _call(self, notice: Notice) -> None:
        data = msgspec.json.encode({"id": notice.id, **notice.content})
        headers = {"Content-Type": "application/json", "User-Agent": "hpcmesos"}
        try:
            if self.secret_file:
                secret = Path(self.secret_file).read_bytes().strip()
                headers[SIGNATURE] = "sha256=" + hmac.new(secret, data, hashlib.sha256).hexdigest()
            request = urllib.request.Request(self.webhook, data, headers)  # noqa: S310 - check() knows the scheme
            with urllib.request.urlopen(request, timeout=_TIMEOUT):  # noqa: S310 - the same
                pass
        except urllib.error.HTTPError as error:
            error.close()
            raise Undelivered(f"{self.webhook} answers {error.code}") from error
        except (OSError, ValueError) as error:
            raise Undelivered(f"{self.webhook}: {error}") from error
