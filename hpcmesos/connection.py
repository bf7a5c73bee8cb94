"""The way to the masters' API: where they listen, connections over a unix socket or TLS, and who we are there."""

from __future__ import annotations

import http.client
import socket as sockets
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hpcmesos import munge as munges
from hpcmesos.errors import ConfigError, MasterUnreachable, Unauthenticated, Unavailable, UsageError


@dataclass(frozen=True, slots=True)
class Place:
    """Where an API process listens: a unix socket, or TLS at ``host``:``port``."""

    path: str = ""
    host: str = ""
    port: int = 443

    @classmethod
    def parse(cls, text: str) -> Place:
        """``https://HOST:PORT`` or ``unix:PATH``. Raises UsageError."""
        if text.startswith("unix:/"):
            return cls(path=text.removeprefix("unix:"))
        try:
            url = urlsplit(text)
            if url.scheme == "https" and url.hostname:
                return cls(host=url.hostname, port=url.port or 443)
        except ValueError:
            pass
        raise UsageError(f"'{text}' is no address of an API; write https://HOST:PORT")

    def __str__(self) -> str:
        return self.path or f"{self.host}:{self.port}"


class Masters:
    """Where the masters are, the next to be tried first, and what we show them."""

    def __init__(
        self, places: list[Place], timeout: float, token: str | Path | None, munge: str | None
    ) -> None:
        """``timeout``: seconds of silence. ``token``: the text, or its file, which is read anew for each request;
        while nothing can be read there, as in the moment in which it is written, what was last read is shown.

        ``munge``: the socket of munged; None: no MUNGE credential is shown.
        """
        self._places = places
        self._timeout = timeout
        self._token = token
        self._munge = munge
        self._shown: str | None = None
        self._ssl: ssl.SSLContext | None = None

    def __len__(self) -> int:
        return len(self._places)

    @property
    def over_tls(self) -> bool:
        return any(place.host for place in self._places)

    def trust(self, cafile: str | None = None, cadata: str | None = None) -> None:
        """One authority, as a file or as PEM text; without one the system's, and then the host name counts.

        Raises:
            ConfigError: the file cannot be read, or holds no certificate.
        """
        try:
            context = ssl.create_default_context(cafile=cafile, cadata=cadata)
        except OSError as error:  # SSLError among them; neither names the file
            if cafile is None:
                raise
            reason = "it holds no certificate" if isinstance(error, ssl.SSLError) else error.strerror
            raise ConfigError(f"cannot use the authority's certificate {cafile}: {reason}") from error
        context.check_hostname = cafile is None and cadata is None
        if not context.check_hostname:
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # a site's own authority is below others
        self._ssl = context

    def trust_anybody(self) -> None:
        """For who checks by other means whom he speaks to."""
        self._ssl = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._ssl.check_hostname = False
        self._ssl.verify_mode = ssl.CERT_NONE

    def open(self) -> UnixConnection | TlsConnection:
        """To the master whose turn it is; it is made with the first request."""
        place = self._places[0]
        if place.path:
            return UnixConnection(place.path, self._timeout)
        assert self._ssl is not None
        return TlsConnection(place.host, place.port, self._timeout, self._ssl)

    def turn(self) -> None:
        """The next try goes to the next master."""
        self._places.append(self._places.pop(0))

    def send(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        data: bytes | None,
        more: Mapping[str, str] | None = None,
    ) -> http.client.HTTPResponse:
        """One request with our credential; ``data`` is JSON, None: no body; ``more``: headers. Raises OSError,
        HTTPException.
        """
        headers = dict(more or {})
        if data is not None:
            headers["Content-Type"] = "application/json"
        connection.request(method, path, data, headers | self.credential(method, path))
        return connection.getresponse()

    def credential(self, method: str, path: str) -> dict[str, str]:
        """The header that says who we are; none over a unix socket, where the kernel does.

        Raises:
            ConfigError: the token's file cannot be read, and never could.
        """
        if self._munge is not None:
            credential = munges.encode(f"{method} {path.partition('?')[0]}".encode(), self._munge)
            return {"Authorization": f"MUNGE {credential}"}
        if isinstance(self._token, Path):
            try:
                self._shown = _read_token(self._token)
            except ConfigError:
                if self._shown is None:
                    raise
        else:
            self._shown = self._token
        return {} if self._shown is None else {"Authorization": f"Bearer {self._shown}"}

    def give_up_after(self, deadline: float, error: Exception) -> None:
        """Raises what the caller gets to see of ``error``, when it is time to or trying again cannot help.

        ``deadline``: of the monotonic clock.
        """
        where = self._places[0]
        if isinstance(error, ssl.SSLCertVerificationError):
            raise Unauthenticated(
                f"server {where} is not of the cluster whose authority's certificate is trusted here"
                f" ({error.verify_message}); HPCMESOS_CA_FILE names that certificate"
            ) from error
        if time.monotonic() < deadline:
            return
        if isinstance(error, Unavailable):
            raise error
        reason = (
            (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        )
        text = f"cannot connect to server {where} ({reason}); is the master running?"
        raise MasterUnreachable(text) from error


class _Closing(http.client.HTTPConnection):
    def __enter__(self) -> _Closing:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class UnixConnection(_Closing):
    """HTTP over a unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Raises OSError."""
        self.sock = sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        try:
            self.sock.connect(self._path)
        except OSError:
            self.close()
            raise


class TlsConnection(http.client.HTTPSConnection, _Closing):
    """HTTP over TLS; the cluster's authority vouches for the server, not its host name.

    The same authority signs the nodes' certificates: only a master's may see what we send.
    """

    def __init__(self, host: str, port: int, timeout: float, context: ssl.SSLContext) -> None:
        super().__init__(host, port, timeout=timeout, context=context)
        self._by_authority = not context.check_hostname and context.verify_mode is ssl.CERT_REQUIRED

    def connect(self) -> None:
        """Raises OSError, ssl.SSLError, and Unauthenticated when the certificate is no master's."""
        super().connect()
        certificate: Any = self.sock.getpeercert() or {}
        fields = {name: value for part in certificate.get("subject", ()) for name, value in part}
        if self._by_authority and fields.get("organizationName") != "master":
            self.close()
            raise Unauthenticated(
                f"{self.host}:{self.port} shows a certificate of the cluster, but not a master's"
            )


def certificates(pem: str) -> list[str]:
    """Those in a text with several."""
    end = "-----END CERTIFICATE-----\n"
    return [f"{part}{end}" for part in pem.split(end) if part.strip()]


def places(socket: str | Path | Sequence[str | Path] | None, url: str | Sequence[str] | None) -> list[Place]:
    """Paths of sockets, or addresses, one or several, those also as one text with commas. Raises UsageError."""
    if socket is not None:
        paths = [socket] if isinstance(socket, str | Path) else list(socket)
        found = [Place(path=str(path)) for path in paths]
    else:
        urls = url.split(",") if isinstance(url, str) else list(url or ())
        found = [Place.parse(text.strip()) for text in urls]
    if not found:
        raise UsageError("a client needs the address of at least one master")
    return found


def _read_token(path: Path) -> str:
    try:
        [token] = path.read_text(encoding="ascii").split()
    except OSError as error:
        raise ConfigError(f"cannot read the token file {path}: {error.strerror}") from error
    except ValueError:
        raise ConfigError(f"the token file {path} holds no token") from None
    return token
