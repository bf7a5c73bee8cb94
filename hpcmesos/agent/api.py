"""The agent's few questions to the HTTP API: over a unix socket, or over TLS to a certificate with O = "master"."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from typing import Any, cast
from urllib.parse import urlsplit

from hpcmesos.errors import ConfigError, MasterUnreachable, Unauthenticated, leaves

TIMEOUT = 5.0


def call(
    master: str,
    method: str,
    path: str,
    body: dict[str, Any] | None = None,
    context: ssl.SSLContext | None = None,
) -> dict[str, Any]:
    """One request; blocks for some seconds at most.

    Raises:
        MasterUnreachable: no answer, or none that can be read. ConfigError: ``master`` has no known form.
        Unauthenticated: the server is no master. Whatever leaf of the error tree the API answered.
    """
    try:
        connection = _connection(master, context)
        try:
            connection.connect()
            _check_master(connection, master)
            connection.request(
                method,
                path,
                json.dumps(body) if body is not None else None,
                {"Content-Type": "application/json"},
            )
            response = connection.getresponse()
            answer = json.loads(response.read())
        finally:
            connection.close()
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise MasterUnreachable(f"no answer from {master}: {error}") from error
    if not isinstance(answer, dict):
        raise MasterUnreachable(f"{master} answered {response.status} with no object")
    if response.status >= 400:
        leaf = leaves().get(str(answer.get("code")), MasterUnreachable)
        raise leaf(str(answer.get("message") or f"{master} answered {response.status}"))
    return cast(dict[str, Any], answer)


def several(master: str) -> list[str]:
    """The masters of a setting that names one or several, separated by commas."""
    return [one.strip() for one in master.split(",") if one.strip()]


def host_and_port(master: str) -> tuple[str, int]:
    """Of ``https://HOST:PORT``."""
    try:
        parts = urlsplit(master)
        if parts.scheme == "https" and parts.hostname and parts.port:
            return parts.hostname, parts.port
    except ValueError:
        pass
    raise ConfigError(f"master: '{master}' is neither unix:PATH nor https://HOST:PORT")


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT)
        self.sock.connect(self._path)


def _connection(master: str, context: ssl.SSLContext | None) -> http.client.HTTPConnection:
    if master.startswith("unix:"):
        return _UnixConnection(master.removeprefix("unix:"))
    return http.client.HTTPSConnection(*host_and_port(master), timeout=TIMEOUT, context=context)


def _check_master(connection: http.client.HTTPConnection, master: str) -> None:
    if isinstance(connection.sock, ssl.SSLSocket) and organization(connection.sock.getpeercert()) != "master":
        raise Unauthenticated(f"{master} shows a certificate of the cluster, but not a master's")


def organization(certificate: Any) -> str:
    """O of what ``getpeercert()`` returned; empty: it shows none."""
    subject = (certificate or {}).get("subject", ())
    return str(dict(pair for part in subject for pair in part).get("organizationName", ""))
