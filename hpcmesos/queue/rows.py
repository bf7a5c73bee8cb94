"""Between rows of the tables and records."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import (
    ColumnElement,
    Insert,
    Row,
    Table,
    TableValuedAlias,
    bindparam,
    column,
    func,
    insert,
    literal_column,
    select,
)
from sqlalchemy.dialects.postgresql import JSONB, Range
from sqlalchemy.dialects.postgresql.ranges import MultiRange

from hpcmesos.model import Cause, GpuState, JobState, Request
from hpcmesos.queue.arrays import ArraySpec, Ranges
from hpcmesos.queue.dependencies import Dependency, DependencyKind
from hpcmesos.queue.records import (
    ArrayElements,
    AttemptKey,
    AttemptRecord,
    Ending,
    EventRecord,
    GpuRecord,
    JobKey,
    JobRecord,
    NewJob,
    NodeRecord,
    Outcome,
    Progress,
    ShareRecord,
)
from hpcmesos.queue.tables import WHOLE_JOB

log = logging.getLogger(__name__)

_STEP = ("step", "command", "code", "first_failed")
_NO_STEP: dict[str, Any] = {"command": [], "code": None, "first_failed": None}

SPEC_VERSION = 1
"""Of the JSON form of a Request; a reader converts older ones."""


def recordset(types: Mapping[str, Any], parameter: str = "rows") -> TableValuedAlias:
    """The parameter ``rows``, a list of mappings, as a table: one statement whatever their number. To build one costs
    more than to execute it, so statements are kept.
    """
    columns = [column(name, kind) for name, kind in types.items()]
    name = "wanted" if parameter == "rows" else f"wanted_{parameter}"
    rendered = func.jsonb_to_recordset(bindparam(parameter, type_=JSONB)).table_valued(*columns, name=name)
    return rendered.render_derived(name=name, with_types=True)


def insert_rows(table: Table, types: Mapping[str, Any]) -> Insert:
    """Inserts the parameter ``rows`` as they are."""
    wanted = recordset(types)
    return insert(table).from_select(list(types), select(*(wanted.c[name] for name in types)))


def still_held(released_at: ColumnElement[datetime | None]) -> ColumnElement[bool]:
    """Of a share that is found by its key. Said so that no plan takes the index of live shares instead: it names all
    that were released since the last vacuum, too.
    """
    never: ColumnElement[datetime] = literal_column("'infinity'::timestamptz")
    return func.coalesce(released_at, never) == never


def element(index: int | None) -> int:
    return WHOLE_JOB if index is None else index


def index(element: int) -> int | None:
    return None if element == WHOLE_JOB else element


def index_of(row: Any) -> int | None:
    return index(row.element)


def job_key(row: Any) -> JobKey:
    return JobKey(row.seq, index_of(row))


def attempt_key(row: Any) -> AttemptKey:
    return AttemptKey(row.seq, index_of(row), row.number)


def attempt_values(key: AttemptKey) -> dict[str, Any]:
    return {"seq": key.seq, "element": element(key.index), "number": key.number}


def request_json(request: Request) -> Any:
    return msgspec.to_builtins(request)


def dependencies_json(dependencies: Iterable[Dependency]) -> list[list[Any]]:
    return [[str(d.kind), d.seq, d.element, d.number] for d in dependencies]


def array_json(spec: ArraySpec | None) -> Any:
    return None if spec is None else {"ranges": spec.ranges, "limit": spec.limit}


def dependencies_of(stored: Iterable[Sequence[Any]]) -> tuple[Dependency, ...]:
    """From the form that dependencies_json() makes."""
    return tuple(Dependency(DependencyKind(kind), *rest) for kind, *rest in stored)


def ranges_text(ranges: Ranges | None) -> str | None:
    """As PostgreSQL reads a multirange."""
    return None if ranges is None else "{" + ",".join(f"[{start},{stop})" for start, stop in ranges) + "}"


def new_job_values(seq: int, new: NewJob) -> dict[str, Any]:
    """The row of a job, but for its times; what is JSON in it is still to be encoded."""
    return {
        "seq": seq,
        "server": new.server,
        "name": new.name,
        "owner": new.owner,
        "queue": new.queue,
        "state": new.state.value,
        "priority": new.priority,
        "request": new.request,
        "spec_version": SPEC_VERSION,
        "holds": new.holds,
        "not_before": new.not_before,
        "rerunable": new.rerunable,
        "dependencies": dependencies_json(new.dependencies),
        "submit_host": new.submit_host,
        "project": new.project,
        "egroup": new.egroup,
        "submission": new.submission,
        **_new_array_values(new.array_spec),
    }


def _new_array_values(spec: ArraySpec | None) -> dict[str, Any]:
    if spec is None:
        return dict.fromkeys(("array_spec", "todo", "deleted", "succeeded", "failed"))
    todo = MultiRange([Range(start, stop) for start, stop in spec.hull])
    return {
        "array_spec": array_json(spec),
        "todo": todo,
        "deleted": MultiRange(),
        "succeeded": 0,
        "failed": 0,
    }


def job_record(row: Row[Any]) -> JobRecord:
    return _job(row._asdict())


def _job(values: dict[str, Any]) -> JobRecord:
    index = values.pop("element")
    del values["spec_version"]
    values["index"] = None if index == WHOLE_JOB else index
    values["state"] = JobState(values["state"])
    if values["cause"]:
        values["cause"] = Cause(values["cause"])
    values["request"] = msgspec.convert(values["request"], Request)
    values["excluded"] = tuple(values["excluded"])
    values["dependencies"] = dependencies_of(values["dependencies"] or ())
    if values["array_spec"] is not None:
        values["array_spec"] = _array_spec(values["array_spec"])
        for name in ("todo", "deleted"):
            values[name] = _ranges(values[name])
    values.setdefault("submission", {})
    return JobRecord(**values)


def array_elements(row: Row[Any]) -> ArrayElements:
    """A row of ``queries.ARRAYS``."""
    values = row._asdict()
    live = values.pop("live") or {}
    return ArrayElements(_job(values), {JobState(state): number for state, number in live.items()})


def _array_spec(value: Any) -> ArraySpec:
    return ArraySpec(tuple((first, last, step) for first, last, step in value["ranges"]), value["limit"])


def _ranges(value: Any) -> Ranges:
    return tuple((r.lower, r.upper) for r in value)


def outcome(row: Any) -> Outcome:
    progress = None
    if row.array_spec is not None:
        spec = _array_spec(row.array_spec)
        waiting, deleted = spec.count(_ranges(row.todo)), spec.count(_ranges(row.deleted))
        started = spec.size - waiting - deleted
        progress = Progress(spec.size, started, row.succeeded, row.failed, deleted)
    return Outcome(JobState(row.state), row.exit_status, progress)


def attempt_record(row: Any) -> AttemptRecord:
    """``row.steps``: its steps as JSON."""
    return AttemptRecord(
        key=attempt_key(row),
        created_at=row.created_at,
        started_at=row.started_at,
        ended_at=row.ended_at,
        cause=Cause(row.cause) if row.cause else None,
        code=row.code,
        signal=row.signal,
        forced=row.forced,
        culprit=row.culprit,
        message=row.message,
        usage=row.usage,
        ranks=tuple(rank for step in row.steps for rank in step["ranks"]),
        steps=tuple({name: step[name] for name in _STEP} for step in row.steps),
        stdout_tail=bytes(row.stdout_tail),
        stderr_tail=bytes(row.stderr_tail),
        stdout_path=row.stdout_path,
        stderr_path=row.stderr_path,
        undelivered=row.undelivered,
        ending=None if row.ending is None else _ending(row),
    )


def _ending(row: Any) -> Ending | None:
    """None: it cannot be read, and the attempt goes on as if nobody had decided it; all others still load."""
    try:
        return msgspec.convert(row.ending, Ending)
    except msgspec.ValidationError as error:
        log.error("the decided end of attempt %s is left out: %s", attempt_key(row), error)
        return None


def step_values(record: AttemptRecord) -> list[dict[str, Any]]:
    """Rows of steps, each with its ranks; ranks of a step that was not reported get a step of their own."""
    rows: dict[str, dict[str, Any]] = {}
    for step in record.steps:
        known = {name: step.get(name, default) for name, default in _NO_STEP.items()}
        rows[str(step["step"])] = {**known, "ranks": []}
    for rank in record.ranks:
        name = str(rank.get("step") or "")
        rows.setdefault(name, {**_NO_STEP, "ranks": []})["ranks"].append(dict(rank))
    return [{**attempt_values(record.key), "step": name, **row} for name, row in rows.items()]


def share_record(row: Any) -> ShareRecord:
    return ShareRecord(
        attempt=attempt_key(row),
        node=row.node,
        position=row.position,
        cpus=row.cpus,
        mem=row.mem,
        slots=row.slots,
        gpus=tuple(row.gpus),
        ports=tuple(row.ports),
        released_at=row.released_at,
    )


def share_values(share: ShareRecord) -> dict[str, Any]:
    """The columns of a share."""
    return {
        **attempt_values(share.attempt),
        "position": share.position,
        "node": share.node,
        "cpus": share.cpus,
        "mem": share.mem,
        "slots": share.slots,
        "gpus": share.gpus,
        "ports": share.ports,
    }


def gpu_record(row: Row[Any]) -> GpuRecord:
    values = dict(row._mapping)
    return GpuRecord(**{**values, "state": GpuState(row.state), "links": tuple(row.links)})


def node_record(row: Row[Any], gpus: Iterable[GpuRecord]) -> NodeRecord:
    values = dict(row._mapping)
    return NodeRecord(**{**values, "features": tuple(row.features), "gpus": tuple(gpus)})


def event_record(row: Any) -> EventRecord:
    return EventRecord(
        id=row.id,
        at=row.at,
        seq=row.seq,
        index=index_of(row),
        kind=row.kind,
        source=JobState(row.source) if row.source else None,
        target=JobState(row.target) if row.target else None,
        payload=row.payload,
    )
