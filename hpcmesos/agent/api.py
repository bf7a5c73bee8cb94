"""The agent's few questions to the HTTP API: over a unix socket, or over TLS to a certificate with O = "master"."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from hpcmesos.connection import UnixConnection
from hpcmesos.errors import ConfigError, MasterUnreachable, Unauthenticated, leaves

TIMEOUT = 5.0


def call(
    master: str,
    method: str,
    path: str,
    body: dict[str, Any] | bytes | None = None,
    context: ssl.SSLContext | None = None,
) -> dict[str, Any]:
    """One request, with JSON or with plain bytes; blocks for some seconds at most.

    Raises:
        MasterUnreachable: no answer, or none that can be read. ConfigError: ``master`` has no known form.
        Unauthenticated: the server is no master. Whatever leaf of the error tree the API answered.
    """
    try:
        with request(master, method, path, body, context) as response:
            answer = json.loads(response.read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise MasterUnreachable(f"no answer from {master}: {error}") from error
    if not isinstance(answer, dict):
        raise MasterUnreachable(f"{master} answered with no object")
    return cast(dict[str, Any], answer)


@contextmanager
def request(
    master: str,
    method: str,
    path: str,
    body: dict[str, Any] | bytes | None = None,
    context: ssl.SSLContext | None = None,
    timeout: float = TIMEOUT,
) -> Iterator[http.client.HTTPResponse]:
    """The answer to one request, to be read; one of an error's status is raised as the leaf that it names.

    Raises:
        As call().
    """
    kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
    data = json.dumps(body) if isinstance(body, dict) else body
    try:
        connection = _connection(master, context, timeout)
        try:
            connection.connect()
            _check_master(connection, master)
            connection.request(method, path, data, {"Content-Type": kind})
            response = connection.getresponse()
            if response.status >= 400:
                raise refusal(master, response.status, response.read())
            yield response
        finally:
            connection.close()
    except (OSError, http.client.HTTPException) as error:
        raise MasterUnreachable(f"no answer from {master}: {error}") from error


def refusal(master: str, status: int, content: bytes) -> Exception:
    """What an answer of an error's status stands for."""
    try:
        answer = json.loads(content)
        leaf = leaves().get(str(answer.get("code")), MasterUnreachable)
        return leaf(str(answer.get("message") or f"{master} answered {status}"))
    except (ValueError, AttributeError):
        return MasterUnreachable(f"{master} answered {status}")


def context(state: Path) -> ssl.SSLContext:
    """TLS with the certificate of the agent, or the gateway, whose state this is; masters alone are trusted."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False  # the authority signs masters and agents only; O is compared instead
    made.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # a site's own authority is below others
    made.load_verify_locations(state / "ca.pem")
    made.load_cert_chain(state / "agent.pem", state / "agent.key")
    return made


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


def _connection(master: str, context: ssl.SSLContext | None, timeout: float) -> http.client.HTTPConnection:
    if master.startswith("unix:"):
        return UnixConnection(master.removeprefix("unix:"), timeout)
    return http.client.HTTPSConnection(*host_and_port(master), timeout=timeout, context=context)


def _check_master(connection: http.client.HTTPConnection, master: str) -> None:
    if isinstance(connection.sock, ssl.SSLSocket) and organization(connection.sock.getpeercert()) != "master":
        raise Unauthenticated(f"{master} shows a certificate of the cluster, but not a master's")


def organization(certificate: Any) -> str:
    """O of what ``getpeercert()`` returned; empty: it shows none."""
    subject = (certificate or {}).get("subject", ())
    return str(dict(pair for part in subject for pair in part).get("organizationName", ""))
