"""Who changed what, and how that one came: read from where each change left its mark, in the change's own transaction.

Submissions say it with the job, tokens with the token, users' secrets in a row that the same statement writes,
everything else in the event that the leader writes with the change. So nothing can be changed without its mark.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Connection,
    Integer,
    Select,
    Table,
    cast,
    func,
    literal,
    literal_column,
    null,
    select,
    union_all,
)
from sqlalchemy.dialects.postgresql import JSONB

from hpcmesos.queue import tables as t

_VIA = "via"
_NO_DETAILS = literal_column("'{}'::jsonb", JSONB)


@dataclass(frozen=True, slots=True)
class Change:
    """``element`` None: the job itself, or no job (``seq`` None)."""

    at: datetime
    action: str
    seq: int | None
    element: int | None
    user: str
    via: str
    details: dict[str, Any] = field(default_factory=dict)


def read(
    connection: Connection, *, since: datetime, user: str | None, seq: int | None, limit: int
) -> list[Change]:
    """The newest ``limit`` changes since then, oldest first; by one user, or of one job, or all."""
    parts = [_events(since), _submissions(t.jobs, since), _submissions(t.jobs_history, since)]
    found = union_all(
        *parts, *_tokens(since), *_authorities(since), _revoked(since), _secrets(since)
    ).subquery()
    wanted = select(found).order_by(found.c.at.desc()).limit(limit)
    if user is not None:
        wanted = wanted.where(found.c.user == user)
    if seq is not None:
        wanted = wanted.where(found.c.seq == seq)
    return [_change(row) for row in reversed(connection.execute(wanted).all())]


def _change(row: Any) -> Change:
    details = {name: value for name, value in row.details.items() if name not in ("user", _VIA)}
    element = None if row.element in (None, t.WHOLE_JOB) else row.element
    return Change(row.at, row.action, row.seq, element, row.user, row.via, details)


def _events(since: datetime) -> Select[Any]:
    events = t.events.c
    return select(
        events.at,
        events.kind.label("action"),
        events.seq,
        events.element,
        events.payload["user"].astext.label("user"),
        events.payload[_VIA].astext.label("via"),
        events.payload.label("details"),
    ).where(events.at >= since, events.payload.has_key(_VIA))


def _submissions(table: Table, since: datetime) -> Select[Any]:
    jobs = table.c
    later = [jobs.ended_at >= since] if table is t.jobs_history else []  # by which partitions are left out
    return select(
        jobs.created_at,
        literal("submitted"),
        jobs.seq,
        jobs.element,
        jobs.owner,
        jobs.submission[_VIA].astext,
        _NO_DETAILS.label("details"),
    ).where(jobs.created_at >= since, *later, jobs.element == t.WHOLE_JOB, jobs.submission.has_key(_VIA))


def _tokens(since: datetime) -> list[Select[Any]]:
    """Tokens made and revoked, and nodes that joined by them."""
    tokens = t.tokens.c
    joined = func.coalesce(tokens.node, "")
    marks = (
        (tokens.created_at, literal("token made"), tokens.created_by, tokens.created_via),
        (tokens.revoked_at, literal("token revoked"), tokens.revoked_by, tokens.revoked_via),
        (tokens.used_at, func.concat("node joined ", joined), literal(""), tokens.used_via),
    )
    details = func.jsonb_build_object(
        "token", tokens.id, "kind", tokens.kind, "for", tokens.user, "scope", tokens.scope
    )
    return [
        select(at, action, cast(null(), BigInteger), cast(null(), Integer), by, via, details).where(
            at >= since
        )
        for at, action, by, via in marks
    ]


def _authorities(since: datetime) -> list[Select[Any]]:
    """Certificate authorities that began, and steps of that which somebody forced."""
    kept = t.authorities.c
    marks = (
        (kept.made_at, literal("authority made"), kept.made_by, kept.made_via),
        (kept.signs_since, literal("authority made to sign"), literal(""), kept.forced_via),
        (kept.dropped_at, literal("authority dropped"), literal(""), kept.forced_via),
    )
    details = func.jsonb_build_object("authority", kept.fingerprint)
    return [
        select(at, action, cast(null(), BigInteger), cast(null(), Integer), by, via, details).where(
            at >= since, via != ""
        )
        for at, action, by, via in marks
    ]


def _secrets(since: datetime) -> Select[Any]:
    """Users' own that were set or taken away; never what they are."""
    kept = t.secret_changes.c
    return select(
        kept.at,
        kept.action,
        cast(null(), BigInteger),
        cast(null(), Integer),
        kept.owner,
        kept.via,
        func.jsonb_build_object("name", kept.name),
    ).where(kept.at >= since)


def _revoked(since: datetime) -> Select[Any]:
    """Nodes whose certificates were revoked."""
    kept = t.certificates.c
    return (
        select(
            kept.revoked_at,
            literal("certificate revoked"),
            cast(null(), BigInteger),
            cast(null(), Integer),
            kept.revoked_by,
            kept.revoked_via,
            func.jsonb_build_object("node", kept.node),
        )
        .where(kept.revoked_at >= since)
        .distinct()
    )
