"""hpcmesos for Python programs: a synchronous client of the API over its unix socket or TLS.

    with Client(socket="/run/hpcmesos/api.sock") as client:
        reply = client.command("qsub", ["-l", "nodes=2:gpus=4", "job.pbs"], script=Path("job.pbs").read_bytes())
        status = client.wait(reply.stdout.strip())
        ids = client.submit_many([["--", "prog", str(number)] for number in range(5000)])

Every refusal is raised as the leaf of :mod:`hpcmesos.errors` that the server named. A connection that breaks is made
anew, at the next master where several are named, for ``patience`` seconds; a submission carries one idempotency key
through all its tries, so it makes one job, and so does each other command: a job is signalled or run again once.
Tokens, secrets and certificates are without keys: a second try may make a second token, and may find gone what the
first has taken away. ``qterm`` is tried once, for the next master is another one.
A client belongs to one thread, but for ``logs``, which uses connections of its own.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import os
import secrets
import socket as sockets
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from hpcmesos import api_schema
from hpcmesos.connection import Masters, certificates, places
from hpcmesos.errors import (
    DatabaseUnavailable,
    MasterUnreachable,
    ProtocolError,
    Unauthenticated,
    Unavailable,
    UsageError,
    leaves,
)

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

T = TypeVar("T")

_FIRST_PAUSE = 0.02
_LONGEST_PAUSE = 0.5
_POLL = 30.0  # seconds that one wait request may stay open
_CHUNK = 65536
_EVENTS_PAUSE = 0.25
_UNMET = 5.0  # seconds, at most ``patience``, that masters are looked for of which none has answered yet


class Client:
    """One connection to an API process, kept open between calls; to the next one when it breaks."""

    def __init__(
        self,
        *,
        socket: str | Path | Sequence[str | Path] | None = None,
        url: str | Sequence[str] | None = None,
        token: str | None = None,
        token_file: str | Path | None = None,
        ca: str | Path | None = None,
        munge: bool = False,
        munge_socket: str = "",
        timeout: float = 60.0,
        patience: float = 30.0,
    ) -> None:
        """``socket`` (a path) or ``url`` (``https://host:port``, with ``token`` and the cluster's ``ca`` file).

        ``token_file``, in place of ``token``: read anew for each request, so that a program that runs for long takes
        the next token while the last one is still good.

        ``munge``: shows a MUNGE credential of this process' user, a new one each time, in place of a token.

        Both may be several, in a sequence or (``url``) separated by commas: any master serves.
        """
        if (socket is None) == (url is None):
            raise UsageError("a client needs either socket= or url=")
        shown = token if token_file is None else Path(token_file)
        self._masters = Masters(places(socket, url), timeout, shown, munge_socket if munge else None)
        if self._masters.over_tls:
            self._masters.trust(cafile=str(ca) if ca is not None else None)
        self._timeout = timeout
        self._patience = patience
        self._connection: http.client.HTTPConnection | None = None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def command(
        self,
        name: str,
        argv: Sequence[str],
        *,
        script: bytes | None = None,
        script_path: str | None = None,
        cwd: str | None = None,
        umask: int = 0o022,
        environ: Mapping[str, str] | None = None,
        personality: str = "torque",
        key: str | None = None,
        terminal: bool = False,
        submit_filter: str | None = None,
        filtered: bool = False,
    ) -> api_schema.CommandReply:
        """Runs a q-command on the server; its refusals are text and a code in the reply, as a terminal shows them."""
        patience = 0.0 if name == "qterm" else None  # asked again, it would stop the next master, too
        request = api_schema.CommandRequest(
            argv=list(argv),
            cwd=cwd or str(Path.cwd()),
            umask=umask,
            host=sockets.gethostname(),
            environ=dict(os.environ if environ is None else environ),
            script=None if script is None else base64.b64encode(script).decode(),
            script_path=script_path,
            key=key or secrets.token_hex(16),
            personality=personality,
            terminal=terminal,
            submit_filter=submit_filter,
            filtered=filtered,
        )
        path = f"/v1/commands/{quote(name)}"
        return self._call("POST", path, api_schema.CommandReply, request, patience)

    def submit_many(
        self,
        jobs: Sequence[api_schema.Submission | Sequence[str]],
        *,
        cwd: str | None = None,
        umask: int = 0o022,
        environ: Mapping[str, str] | None = None,
        personality: str = "torque",
        key: str | None = None,
    ) -> list[str]:
        """Submits distinct jobs, all or none, in one request and one transaction; answers their ids in order.

        A job is a `api_schema.Submission`, or qsub's words alone: ``["-N", "sweep", "--", "prog", "7"]``. At most
        `MOST_AT_ONCE` a call. ``key``: under the same key the same call makes no second set of jobs.

        Raises:
            Rejection: a leaf of it, which names the job at fault by its place; nothing was stored.
        """
        request = api_schema.SubmitRequest(
            jobs=[
                job if isinstance(job, api_schema.Submission) else api_schema.Submission(list(job))
                for job in jobs
            ],
            cwd=cwd or str(Path.cwd()),
            umask=umask,
            host=sockets.gethostname(),
            environ=dict(os.environ if environ is None else environ),
            key=key or secrets.token_hex(16),
            personality=personality,
        )
        return self._call("POST", "/v1/jobs", api_schema.SubmitReply, request).ids

    def events(
        self, after: int = 0, *, job: str | None = None, follow: bool = False
    ) -> Iterator[api_schema.EventStatus]:
        """What happened, in order, behind the event with the id ``after``: keep the last id, and go on from there.

        ``job``: only of this job, and of its elements if it is an array. With ``follow`` it goes on for ever.
        """
        chosen = {} if job is None else {"job": job}
        while True:
            query = urlencode({"after": after, **chosen})
            events = self._call("GET", f"/v1/events?{query}", list[api_schema.EventStatus])
            for event in events:
                after = event.id
                yield event
            if not events:
                if not follow:
                    return
                time.sleep(_EVENTS_PAUSE)

    def job(self, job_id: str) -> api_schema.JobStatus:
        return self._call("GET", _job_path(job_id), api_schema.JobStatus)

    def jobs(self, *, history: bool = False) -> list[api_schema.JobStatus]:
        """All jobs that are not over; with ``history`` also those that are."""
        return self._call("GET", f"/v1/jobs?history={str(history).lower()}", list[api_schema.JobStatus])

    def delete(self, job_id: str) -> api_schema.JobStatus:
        """Asks for the end of a job; answers its status, in which the end may still be under way."""
        return self._call("DELETE", _job_path(job_id), api_schema.JobStatus, headers=_new_key())

    def wait(self, job_id: str, timeout: float | None = None) -> api_schema.JobStatus:
        """The status once the job has ended, or after ``timeout`` seconds (None: no limit)."""
        deadline = None if timeout is None else time.monotonic() + timeout
        poll = min(_POLL, self._timeout / 2)
        while True:
            left = poll if deadline is None else max(0.0, min(poll, deadline - time.monotonic()))
            status = self._call("GET", f"{_job_path(job_id)}/wait?timeout={left:.3f}", api_schema.JobStatus)
            if status.state == "C" or (deadline is not None and time.monotonic() >= deadline):
                return status

    def logs(
        self, job_id: str, stream: str = "stdout", *, offset: int = 0, follow: bool = False
    ) -> Iterator[bytes]:
        """The bytes of a stream as they come; with ``follow`` until the job is over.

        ``offset``: how many bytes to pass over. A stream that breaks off goes on where it stopped.
        """
        deadline = time.monotonic() + self._patience
        while True:
            query = urlencode({"offset": offset, "follow": str(follow).lower()})
            try:
                with self._masters.open() as connection:
                    path = f"{_job_path(job_id)}/logs/{quote(stream)}?{query}"
                    response = self._masters.send(connection, "GET", path, None)
                    if response.status >= 400:
                        raise _error(response.status, response.read())
                    # http.client takes a stream that breaks off inside a chunk for an error, as it should.
                    while chunk := response.read1(_CHUNK):
                        offset += len(chunk)
                        deadline = time.monotonic() + self._patience
                        yield chunk
                    return
            except TimeoutError:
                deadline = time.monotonic() + self._patience  # a quiet job, not a broken connection
            except (OSError, http.client.HTTPException, MasterUnreachable, DatabaseUnavailable) as error:
                self._masters.give_up_after(deadline, error)
                self._masters.turn()
                time.sleep(_FIRST_PAUSE)

    def nodes(self) -> list[api_schema.NodeStatus]:
        return self._call("GET", "/v1/nodes", list[api_schema.NodeStatus])

    def leader(self) -> api_schema.LeaderReply:
        return self._call("GET", "/v1/leader", api_schema.LeaderReply)

    def why(self, job: str) -> api_schema.Why:
        """Why a job waits, its place, when it starts, and who holds what until when."""
        return self._call("GET", f"/v1/jobs/{quote(job)}/why", api_schema.Why)

    def export_queue(self) -> bytes:
        """What waits and runs, the nodes and the rules, as `hpcmesos simulate` reads it; for operators."""
        return bytes(self._call("GET", "/v1/queue", msgspec.Raw))

    def reservations(self) -> list[api_schema.Reservation]:
        """Reservations that are not over, the first to begin first."""
        return self._call("GET", "/v1/reservations", list[api_schema.Reservation])

    def reserve(self, wanted: api_schema.ReservationRequest) -> api_schema.Reservation:
        """Keeps nodes for a time; operators may. Raises Rejection: nothing is kept."""
        return self._call("POST", "/v1/reservations", api_schema.Reservation, wanted, headers=_new_key())

    def unreserve(self, name: str) -> list[api_schema.Reservation]:
        """Takes a reservation away; those that are left."""
        path = f"/v1/reservations/{quote(name)}"
        return self._call("DELETE", path, list[api_schema.Reservation], headers=_new_key())

    def schedules(self) -> list[api_schema.ScheduleStatus]:
        """One's own schedules; operators get those of all users."""
        return self._call("GET", "/v1/schedules", list[api_schema.ScheduleStatus])

    def add_schedule(self, wanted: api_schema.ScheduleRequest) -> api_schema.ScheduleStatus:
        """Makes a schedule. Raises Rejection: nothing is kept."""
        return self._call("POST", "/v1/schedules", api_schema.ScheduleStatus, wanted, headers=_new_key())

    def change_schedule(self, owner: str, name: str, action: str) -> list[api_schema.ScheduleStatus]:
        """``action``: pause, resume, run (now, once more), remove."""
        path = f"/v1/schedules/{quote(owner, safe='')}/{quote(name, safe='')}/{quote(action)}"
        return self._call("POST", path, list[api_schema.ScheduleStatus], headers=_new_key())

    def schedule_runs(self, owner: str, name: str, limit: int = 20) -> list[api_schema.ScheduleRun]:
        """What its last due times became, the latest first."""
        path = f"/v1/schedules/{quote(owner, safe='')}/{quote(name, safe='')}/runs?limit={limit}"
        return self._call("GET", path, list[api_schema.ScheduleRun])

    def report(self, since: str, until: str, by: Sequence[str] = ("user",)) -> list[api_schema.UsageRow]:
        """GPU-hours and CPU-hours of the days (UTC) from ``since`` up to and without ``until``, ``2026-12-01`` each."""
        query = urlencode({"since": since, "until": until, "by": ",".join(by)})
        return self._call("GET", f"/v1/report?{query}", list[api_schema.UsageRow])

    def shares(self) -> list[api_schema.ShareStatus]:
        """Who has used how much of what is due to them."""
        return self._call("GET", "/v1/shares", list[api_schema.ShareStatus])

    def set_shares(self, wanted: api_schema.ShareRequest) -> list[api_schema.ShareStatus]:
        """Gives a project, or a user in it, so many shares; managers may."""
        return self._call("POST", "/v1/shares", list[api_schema.ShareStatus], wanted)

    def health(self) -> api_schema.HealthReply:
        """Raises DatabaseUnavailable when the database does not answer for as long as this client is patient."""
        return self._call("GET", "/v1/health", api_schema.HealthReply)

    def create_token(
        self,
        kind: str,
        *,
        user: str | None = None,
        node: str | None = None,
        lifetime: float = 86400.0,
        scope: str = "all",
    ) -> api_schema.TokenReply:
        """A new token; it is shown only now. One whose answer is lost is made anew: the first, which nobody has seen,
        is good until its end or `revoke_tokens`.

        See `api_schema.TokenRequest`. Raises Unauthorized: the caller may not make this one.
        """
        request = api_schema.TokenRequest(kind=kind, user=user, node=node, lifetime=lifetime, scope=scope)
        return self._call("POST", "/v1/tokens", api_schema.TokenReply, request)

    def tokens(self) -> list[api_schema.TokenStatus]:
        """One's own tokens that are good; a manager's: all."""
        return self._call("GET", "/v1/tokens", list[api_schema.TokenStatus])

    def revoke_tokens(self, ids: Sequence[str]) -> list[str]:
        """Ends tokens, and those made by them; answers the ids of what was ended. Raises InvalidValue: none was."""
        return self._call("POST", "/v1/tokens/revoke", list[str], api_schema.RevokeRequest(ids=list(ids)))

    def certificates(self) -> list[api_schema.CertificateStatus]:
        """Of nodes, those that have not run out; operators may."""
        return self._call("GET", "/v1/certificates", list[api_schema.CertificateStatus])

    def authorities(self) -> list[api_schema.AuthorityStatus]:
        """The certificate authorities that are trusted; operators may ask."""
        return self._call("GET", "/v1/authorities", list[api_schema.AuthorityStatus])

    def rotate_authority(
        self, certificate: str = "", key: str = "", wait: float = 0.0
    ) -> list[api_schema.AuthorityStatus]:
        """Begins to replace the authority, by a site's own (PEM) or a new one; it does not sign for ``wait`` seconds.

        Raises IllegalTransition: a replacement is under way; InvalidValue: what is given is no authority.
        """
        request = api_schema.RotateRequest(certificate=certificate, key=key, wait=wait)
        return self._call("POST", "/v1/authorities", list[api_schema.AuthorityStatus], request, patience=0.0)

    def force_authority(self) -> list[api_schema.AuthorityStatus]:
        """Takes the next step of a replacement now. Raises IllegalTransition: none is under way."""
        return self._call("POST", "/v1/authorities/force", list[api_schema.AuthorityStatus], patience=0.0)

    def trusted_authorities(self) -> str:
        """The certificates (PEM) of the authorities that are trusted: what clients have in their ``ca_file``."""
        return self._call("GET", "/v1/ca", dict[str, str]).get("ca", "")

    def revoke_certificates(self, node: str) -> list[api_schema.CertificateStatus]:
        """Ends a node's certificates at once; managers may. Raises InvalidValue: it has none that is good."""
        path = f"/v1/certificates/{quote(node, safe='')}/revoke"
        return self._call("POST", path, list[api_schema.CertificateStatus])

    def put_secret(self, name: str, value: bytes) -> api_schema.SecretStatus:
        """Keeps a secret of one's own, for jobs with ``-W secret=NAME``; it is not shown again."""
        request = api_schema.SecretRequest(value=base64.b64encode(value).decode())
        return self._call("PUT", f"/v1/secrets/{quote(name, safe='')}", api_schema.SecretStatus, request)

    def secrets(self) -> list[api_schema.SecretStatus]:
        """Names of one's secrets."""
        return self._call("GET", "/v1/secrets", list[api_schema.SecretStatus])

    def remove_secret(self, name: str) -> list[api_schema.SecretStatus]:
        """Takes a secret away. Raises InvalidValue: there is none of this name."""
        return self._call("DELETE", f"/v1/secrets/{quote(name, safe='')}", list[api_schema.SecretStatus])

    def audit(
        self,
        since: float | None = None,
        user: str | None = None,
        job: str | None = None,
        limit: int = 1000,
    ) -> list[api_schema.AuditStatus]:
        """Who changed what since then (epoch seconds; None: a day ago) and how that one came: the newest
        ``limit``, oldest first.
        """
        asked = {"since": since, "user": user, "job": job, "limit": limit}
        query = urlencode({name: value for name, value in asked.items() if value is not None})
        return self._call("GET", f"/v1/audit?{query}", list[api_schema.AuditStatus])

    def join(self, token: str, node: str, csr: str) -> api_schema.JoinReply:
        """Certificate for an agent. The token names the cluster's authority, which is checked before it is shown.

        Raises:
            Unauthenticated: the server is not of the cluster that the token was made for, or refuses the token.
        """
        ca_pem = self._authority(token)
        if self._masters.over_tls:
            self.close()
            self._masters.trust(cadata=ca_pem)
        request = api_schema.JoinRequest(token=token, node=node, csr=csr)
        return self._call("POST", "/v1/nodes/join", api_schema.JoinReply, request, patience=0.0)

    def _authority(self, token: str) -> str:
        """The one of the server's CA certificates that the token names."""
        if self._masters.over_tls:
            self._masters.trust_anybody()  # the fingerprint decides, below
        try:
            for pem in certificates(self.trusted_authorities()):
                found = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()
                if secrets.compare_digest(found, token.partition(".")[0]):
                    return pem
        except ValueError as error:
            raise ProtocolError("the server's certificate authority cannot be read") from error
        raise Unauthenticated("this server is not of the cluster that the join token was made for")

    @contextmanager
    def terminal(self, job_id: str, of: str = "terminal", /, **query: int) -> Iterator[ClientConnection]:
        """The WebSocket of an interactive job's terminal, at the next master after one that broke.

        ``query``: ``rows`` and ``columns`` of the window, ``attempt`` and ``offset``: what was seen of which attempt.
        ``of="display"``: of the ``connection`` of a program of ``attempt`` that waits for the user's X server.

        Raises:
            OSError, WebSocketException: it cannot be made; another call tries the next master.
        """
        from websockets.sync.client import connect  # 30 ms that others need not wait for

        path = f"{_job_path(job_id)}/{of}"
        connection = self._masters.open()
        try:
            connection.connect()
            connection.sock.settimeout(None)  # a terminal may be silent for hours
            with connect(
                f"ws://localhost{path}?{urlencode(query)}",
                sock=connection.sock,
                additional_headers=self._masters.credential("GET", path),
                compression=None,
                proxy=None,
                max_size=None,
                close_timeout=1,
                ping_timeout=60,
            ) as socket:
                yield socket
        except BaseException:
            self._masters.turn()
            raise
        finally:
            connection.close()

    def _call(
        self,
        method: str,
        path: str,
        kind: type[T],
        body: Any = None,
        patience: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> T:
        """One request and its typed answer, tried again at every master while connections break."""
        data = None if body is None else msgspec.json.encode(body)
        patience = self._patience if patience is None else patience
        began, pause, tried = time.monotonic(), _FIRST_PAUSE, 0
        met = self._connection is not None
        while True:
            try:
                return self._once(method, path, kind, data, headers)
            except (OSError, http.client.HTTPException, Unavailable) as error:
                met = met or isinstance(error, Unavailable | ConnectionRefusedError) or self._connected
                self.close()
                self._masters.give_up_after(began + (patience if met else min(patience, _UNMET)), error)
                self._masters.turn()
                tried += 1
                if tried % len(self._masters) == 0:
                    time.sleep(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE)

    def _once(
        self, method: str, path: str, kind: type[T], data: bytes | None, headers: Mapping[str, str] | None
    ) -> T:
        if self._connection is None:
            self._connection = self._masters.open()
        response = self._masters.send(self._connection, method, path, data, headers)
        content = response.read()
        if response.status >= 400:
            raise _error(response.status, content)
        try:
            return msgspec.json.decode(content, type=kind)
        except msgspec.MsgspecError as error:
            raise ProtocolError(f"the server's answer to {method} {path} cannot be read: {error}") from error

    @property
    def _connected(self) -> bool:
        return self._connection is not None and self._connection.sock is not None


def _new_key() -> dict[str, str]:
    """For all tries of one request."""
    return {api_schema.IDEMPOTENCY_KEY: secrets.token_hex(16)}


def _job_path(job_id: str) -> str:
    return f"/v1/jobs/{quote(job_id, safe='')}"


def _error(status: int, content: bytes) -> Exception:
    """The exception that an answer of an error status stands for."""
    try:
        reply = msgspec.json.decode(content, type=api_schema.ErrorReply)
    except msgspec.MsgspecError:
        return ProtocolError(f"the server answered HTTP status {status}")
    return leaves().get(reply.code, ProtocolError)(reply.message)
