"""The HTTP API: who may do what is decided here, what is done lies in ``services/``.

Handlers are plain functions in threads, for the store is synchronous; only what waits on sockets is asynchronous.
Every :class:`HpcmesosError` is answered with its own status and an :class:`ErrorReply`; anything else is a bug of ours:
one line with a number for the user, the details under that number in the log.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import chain
from typing import Annotated, Any, cast

import msgspec
from litestar import Litestar, MediaType, Response, delete, get, post
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme
from litestar.params import HeaderParameter, Parameter

from hpcmesos import api_schema
from hpcmesos.api_schema import IDEMPOTENCY_KEY, MOST_AT_ONCE, NodeStatus
from hpcmesos.errors import HpcmesosError, InvalidValue, UsageError
from hpcmesos.master import auth
from hpcmesos.master.api_credentials import CREDENTIALS
from hpcmesos.master.api_streams import STREAMS
from hpcmesos.master.metrics import CONTENT_TYPE, Metrics
from hpcmesos.master.requests import OPEN, ApiRequest, actor_of, caller_of, check_key, keyed, site_of
from hpcmesos.master.seldom import Seldom
from hpcmesos.master.services import (
    auditing,
    changes,
    control,
    export,
    manager,
    moab,
    nodes,
    report,
    running,
    schedules,
    selecting,
    standing,
    status,
    submit,
    tracing,
    wait,
    why,
)
from hpcmesos.master.services.replies import exit_code, one_line, spelled_out
from hpcmesos.master.services.site import Site
from hpcmesos.pbs.personalities import Personality
from hpcmesos.queue import documents

log = logging.getLogger(__name__)
_outages = Seldom(log)

_LARGEST_BODY = 16 * 1024 * 1024
_INTERNAL_EXIT = 255
_LAST_SECOND = 253402300799  # of the year 9999

_REFUSALS = {
    status: ResponseSpec(api_schema.ErrorReply, generate_examples=False, description=meaning)
    for status, meaning in {
        400: "The request is malformed, or asks for what cannot be",
        401: "No credential, or a wrong one",
        403: "The caller may not do this",
        404: "There is no such job, node, queue, ...",
        405: "There is no such method of this path",
        409: "What is there is not in a state for this",
        413: "The body is larger than 16 MiB",
        503: "The database, the leader or a node does not answer now",
    }.items()
}

KeyHeader = Annotated[str | None, HeaderParameter(name=IDEMPOTENCY_KEY)]

Service = Callable[[Site, auth.Caller, api_schema.CommandRequest], api_schema.CommandReply]

COMMANDS: Mapping[str, Service] = {
    "qsub": submit.qsub,
    "qstat": status.qstat,
    "qdel": control.qdel,
    "qhold": control.qhold,
    "qrls": control.qrls,
    "pbsnodes": nodes.pbsnodes,
    "qalter": changes.qalter,
    "qmove": changes.qmove,
    "qorder": changes.qorder,
    "qrerun": changes.qrerun,
    "qrun": running.qrun,
    "qsig": changes.qsig,
    "qmsg": changes.qmsg,
    "qselect": selecting.qselect,
    "tracejob": tracing.tracejob,
    "showq": moab.showq,
    "checkjob": moab.checkjob,
    "showstart": moab.showstart,
    "mdiag": moab.mdiag,
    "msub": moab.msub,
    "canceljob": moab.canceljob,
    "mjobctl": moab.mjobctl,
    "qmgr": manager.qmgr,
    "qterm": manager.qterm,
    **{name: partial(manager.switch, name) for name in ("qenable", "qdisable", "qstart", "qstop")},
}

READING = frozenset(
    {"qstat", "pbsnodes", "qselect", "tracejob", "showq", "checkjob", "showstart", "mdiag", "qmgr"}
)
"""Commands of which nothing that users may do changes anything; what operators may (pbsnodes -o) needs their role."""


def build_app(site: Site, metrics: Metrics) -> Litestar:
    """The application; whoever serves it puts a :class:`Peer` into each connection's state."""
    for handler in _HANDLERS:
        if isinstance(handler, HTTPRouteHandler):
            handler.responses = _REFUSALS
    return Litestar(
        route_handlers=_HANDLERS,
        state=State({"site": site, "metrics": metrics}),
        exception_handlers={
            HpcmesosError: _on_refusal,
            HTTPException: _on_http_error,
            RecursionError: _on_recursion,
            Exception: _on_bug,
        },
        openapi_config=OpenAPIConfig(
            title="hpcmesos",
            version="1",
            path="/schema",
            render_plugins=[JsonRenderPlugin(path="/")],
            components=Components(security_schemes={"token": SecurityScheme(type="http", scheme="bearer")}),
            security=[{"token": []}],
        ),
        request_max_body_size=_LARGEST_BODY,
        logging_config=None,
        debug=False,
    )


@post("/v1/commands/{name:str}", sync_to_thread=True, status_code=200)
def run_command(name: str, data: api_schema.CommandRequest, request: ApiRequest) -> Response[Any]:
    """Runs a q-command as typed. A refusal of the whole command is an ErrorReply, of single ids text in the reply."""
    service = COMMANDS.get(name)
    if service is None:
        raise UsageError(f"unknown command '{name[:40]}'; one of {', '.join(COMMANDS)}")
    _check_text(data, [*data.argv, data.script_path or ""])
    site = site_of(request)
    caller = caller_of(request) if name in READING else actor_of(request)
    if caller.host:
        data = msgspec.structs.replace(data, host=caller.host)
    caller = keyed(caller, data.key, name, data.argv, data.script)
    try:
        reply = service(site, caller, data)
    except HpcmesosError as error:
        return _refusal(error, Personality(data.personality))
    shown, complaints = spelled_out(reply.stdout), spelled_out(reply.stderr)
    return Response(msgspec.structs.replace(reply, stdout=shown, stderr=complaints))


@post("/v1/jobs", sync_to_thread=True, status_code=201)
def submit_jobs(data: api_schema.SubmitRequest, request: ApiRequest) -> api_schema.SubmitReply:
    """Submits many jobs at once, all or none."""
    if len(data.jobs) > MOST_AT_ONCE:
        raise UsageError(f"{len(data.jobs)} jobs in one call; at most {MOST_AT_ONCE}")
    _check_text(data, (word for job in data.jobs for word in job.argv))
    caller = actor_of(request)
    if caller.host:
        data = msgspec.structs.replace(data, host=caller.host)
    return submit.many(site_of(request), caller, data)


@get("/v1/events", sync_to_thread=True)
def list_events(
    request: ApiRequest,
    after: Annotated[int, Parameter(ge=0, le=2**63 - 1)] = 0,
    limit: Annotated[int, Parameter(ge=1, le=10_000)] = 1000,
    job: str | None = None,
) -> list[api_schema.EventStatus]:
    """What happened to jobs, in order, behind the event with the id ``after``."""
    caller_of(request)
    return status.list_events(site_of(request), after, limit, job)


@get("/v1/jobs", sync_to_thread=True)
def list_jobs(request: ApiRequest, history: bool = False) -> list[api_schema.JobStatus]:
    """All jobs that are not over; with ``history`` also those that are."""
    caller_of(request)
    return status.list_jobs(site_of(request), history=history)


@get("/v1/jobs/{job_id:str}", sync_to_thread=True)
def show_job(job_id: str, request: ApiRequest) -> api_schema.JobStatus:
    """One job, with the reason when it waits."""
    caller_of(request)
    return status.job_status(site_of(request), job_id)


@get("/v1/jobs/{job_id:str}/why", sync_to_thread=True)
def explain_job(job_id: str, request: ApiRequest) -> api_schema.Why:
    """Why a job waits, its place, when it starts, all factors of the order, and who holds what until when."""
    caller_of(request)
    return why.why(site_of(request), job_id)


@delete("/v1/jobs/{job_id:str}", sync_to_thread=True, status_code=200)
def delete_job(job_id: str, request: ApiRequest, key: KeyHeader = None) -> api_schema.JobStatus:
    """Ends a job; the answer may still show it under way."""
    control.delete(site_of(request), keyed(actor_of(request), key, "delete", job_id), job_id)
    return status.job_status(site_of(request), job_id)


@get("/v1/jobs/{job_id:str}/wait")
async def wait_for_job(
    job_id: str, request: ApiRequest, timeout: Annotated[float, Parameter(ge=0)] = 30.0
) -> api_schema.JobStatus:
    """Answers when the job has ended, or after ``timeout`` seconds."""
    await wait.in_thread(caller_of, request)
    return await wait.until_ended(site_of(request), job_id, timeout)


@get("/v1/nodes", sync_to_thread=True)
def list_nodes(request: ApiRequest) -> list[NodeStatus]:
    """All nodes with their GPUs."""
    caller_of(request)
    return nodes.list_nodes(site_of(request))


@get("/v1/reservations", sync_to_thread=True)
def list_reservations(request: ApiRequest) -> list[api_schema.Reservation]:
    """Reservations and maintenance windows that are not over."""
    caller_of(request)
    return standing.list_reservations(site_of(request))


@post("/v1/reservations", sync_to_thread=True, status_code=201)
def reserve(
    data: api_schema.ReservationRequest, request: ApiRequest, key: KeyHeader = None
) -> api_schema.Reservation:
    """Keeps nodes for a time; for operators."""
    return standing.reserve(site_of(request), keyed(actor_of(request), key, "reserve", data), data)


@delete("/v1/reservations/{name:str}", sync_to_thread=True, status_code=200)
def unreserve(name: str, request: ApiRequest, key: KeyHeader = None) -> list[api_schema.Reservation]:
    """Takes a reservation away; answers those that are left."""
    standing.unreserve(site_of(request), keyed(actor_of(request), key, "unreserve", name), name)
    return standing.list_reservations(site_of(request))


@get("/v1/queue", sync_to_thread=True)
def export_queue(request: ApiRequest) -> Response[bytes]:
    """The live queue as `hpcmesos simulate` reads it; for operators."""
    return Response(export.exported(site_of(request), caller_of(request)), media_type=MediaType.JSON)


@get("/v1/schedules", sync_to_thread=True)
def list_schedules(request: ApiRequest) -> list[api_schema.ScheduleStatus]:
    """One's own schedules; operators get those of all users."""
    return schedules.listing(site_of(request), caller_of(request))


@post("/v1/schedules", sync_to_thread=True, status_code=201)
def add_schedule(
    data: api_schema.ScheduleRequest, request: ApiRequest, key: KeyHeader = None
) -> api_schema.ScheduleStatus:
    """A job for each due time of a rule, or after others have ended well."""
    shared = api_schema.SubmitRequest(
        jobs=[data.job], cwd=data.cwd, host=data.host, environ=data.environ, personality=data.personality
    )
    _check_text(shared, data.job.argv)
    caller = keyed(actor_of(request), key, "schedule", data)
    if caller.host:
        data = msgspec.structs.replace(data, host=caller.host)
    return schedules.add(site_of(request), caller, data)


@post("/v1/schedules/{owner:str}/{name:str}/{action:str}", sync_to_thread=True, status_code=200)
def change_schedule(
    owner: str,
    name: str,
    action: str,
    request: ApiRequest,
    key: KeyHeader = None,
) -> list[api_schema.ScheduleStatus]:
    """``action``: pause, resume, run (now, once more), remove; once under one key. Answers the schedules as they are
    then.
    """
    caller = keyed(actor_of(request), key, owner, name, action)
    return schedules.change(site_of(request), caller, owner, name, action)


@get("/v1/schedules/{owner:str}/{name:str}/runs", sync_to_thread=True)
def list_schedule_runs(
    owner: str, name: str, request: ApiRequest, limit: Annotated[int, Parameter(ge=1, le=10_000)] = 20
) -> list[api_schema.ScheduleRun]:
    """What its last due times became, the latest first."""
    return schedules.runs(site_of(request), caller_of(request), owner, name, limit)


@get("/v1/report", sync_to_thread=True)
def report_usage(request: ApiRequest, since: str, until: str, by: str = "user") -> list[api_schema.UsageRow]:
    """GPU-hours and CPU-hours by user, project, queue, month, day."""
    caller_of(request)
    return report.usage(site_of(request), since, until, by)


@get("/v1/shares", sync_to_thread=True)
def list_shares(request: ApiRequest) -> list[api_schema.ShareStatus]:
    """Who has used how much of what is due to them."""
    caller_of(request)
    return standing.list_shares(site_of(request))


@post("/v1/shares", sync_to_thread=True, status_code=200)
def set_shares(data: api_schema.ShareRequest, request: ApiRequest) -> list[api_schema.ShareStatus]:
    """Gives a project, or a user in it, so many shares; for managers."""
    standing.set_shares(site_of(request), actor_of(request), data)
    return standing.list_shares(site_of(request))


@get("/v1/leader", security=OPEN)
async def show_leader(request: ApiRequest, after: int = -1, timeout: float = 0.0) -> api_schema.LeaderReply:
    """Where agents dial; open to all, for agents ask before they have a certificate.

    With a ``timeout`` (at most 2 s) the answer comes as soon as there is a leader of a later term than ``after``.
    """
    return await wait.until_leader(site_of(request), after, timeout)


@get("/v1/health", sync_to_thread=True, security=OPEN)
def show_health(request: ApiRequest) -> api_schema.HealthReply:
    """Answers 200 when the database does, and says whether somebody leads; 503 and why when it does not."""
    store = site_of(request).store
    live, server = store.leader().live, store.database_server()
    return api_schema.HealthReply(
        status="ok" if live else "no leader",
        database=True,
        leader=live,
        timeline=server.timeline,
        fsync=server.fsync,
        synchronous_commit=server.synchronous_commit,
        standbys=server.standbys,
        plugins=sorted((store.documents().get(documents.PLUGINS) or {}).values()),
    )


@get("/v1/audit", sync_to_thread=True)
def list_changes(
    request: ApiRequest,
    since: Annotated[float | None, Parameter(ge=0, le=_LAST_SECOND)] = None,
    user: str | None = None,
    job: str | None = None,
    limit: Annotated[int, Parameter(ge=1, le=10_000)] = 1000,
) -> list[api_schema.AuditStatus]:
    """Who changed what since ``since`` (epoch seconds; default: a day ago), and how that one came; users see their own
    changes.
    """
    return auditing.changes(site_of(request), caller_of(request), since, user, job, limit)


@get("/metrics", sync_to_thread=True, media_type=MediaType.TEXT, include_in_schema=False)
def show_metrics(request: ApiRequest) -> Response[bytes]:
    """This process' and the cluster's figures for Prometheus, which shows a token (scope "read" will do)."""
    caller_of(request)
    metrics = cast("Metrics", request.app.state.metrics)
    return Response(metrics.text(), media_type=CONTENT_TYPE)


_HANDLERS = [
    *STREAMS,
    *CREDENTIALS,
    run_command,
    submit_jobs,
    list_events,
    list_jobs,
    show_job,
    explain_job,
    delete_job,
    wait_for_job,
    list_nodes,
    list_reservations,
    reserve,
    unreserve,
    list_schedules,
    add_schedule,
    change_schedule,
    list_schedule_runs,
    report_usage,
    list_shares,
    set_shares,
    show_leader,
    show_health,
    export_queue,
    list_changes,
    show_metrics,
]


def _check_text(data: api_schema.CommandRequest | api_schema.SubmitRequest, words: Iterable[str]) -> None:
    """Neither a program's arguments nor PostgreSQL can hold NUL; an unknown personality is no one's."""
    shared = [data.cwd, data.host, data.key or "", *data.environ, *data.environ.values()]
    if any("\0" in word for word in chain(words, shared)):
        raise InvalidValue("an argument or a variable holds a NUL byte")
    check_key(data.key or "")
    if data.personality not in tuple(Personality):
        known = ", ".join(Personality)
        raise InvalidValue(f"unknown personality '{data.personality[:40]}'; one of {known}")


def _refusal(error: HpcmesosError, personality: Personality = Personality.TORQUE) -> Response[Any]:
    message, code = one_line(str(error)), exit_code(error, personality)
    reply = api_schema.ErrorReply(code=error.code, message=message, exit_code=code)
    headers = {"WWW-Authenticate": "Bearer"} if error.http_status == 401 else None
    return Response(reply, status_code=error.http_status, media_type=MediaType.JSON, headers=headers)


def _on_refusal(request: ApiRequest, error: HpcmesosError) -> Response[Any]:
    if error.http_status >= 500:
        _outages.warn(str(error), f"{request.method} {request.url.path}")
    return _refusal(error)


def _on_http_error(request: ApiRequest, error: HTTPException) -> Response[Any]:
    """What the framework refuses: unknown routes, methods, bodies that are not of the schema."""
    if error.status_code >= 500:
        return _on_bug(request, error)
    detail = " ".join(str(error.detail).split()) or "the request is refused"
    if isinstance(error.extra, list) and error.extra:
        detail = "; ".join(_extra(item) for item in error.extra[:3])
    reply = api_schema.ErrorReply(
        code="usage", message=one_line(detail)[:300], exit_code=UsageError.exit_code
    )
    return Response(reply, status_code=error.status_code, media_type=MediaType.JSON)


def _extra(item: Any) -> str:
    """One of the framework's notes on a malformed body."""
    if isinstance(item, Mapping):
        return f"{item.get('key', 'request')}: {item.get('message', 'malformed')}"
    return str(item)


def _on_recursion(request: ApiRequest, error: RecursionError) -> Response[Any]:
    """A body that nests without end; the decoder has no word of its own for that."""
    if "deserializing" not in str(error):
        return _on_bug(request, error)
    return _refusal(UsageError("the request's body is nested too deeply"))


def _on_bug(request: ApiRequest, error: Exception) -> Response[Any]:
    number = secrets.token_hex(4)
    log.error("error %s: %s %s", number, request.method, request.url.path, exc_info=error)
    message = f"internal error {number}; the server's log has the details under this number"
    reply = api_schema.ErrorReply(code="internal", message=message, exit_code=_INTERNAL_EXIT)
    return Response(reply, status_code=500, media_type=MediaType.JSON)
