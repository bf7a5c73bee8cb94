"""The tables. Migrations build the database; these are what the store speaks, and a test compares both.

``element`` is the array element, -1 for the job itself: part of primary keys, hence never NULL. Times are timestamptz,
sizes bytes. A job is complete exactly when it has ``ended_at``. A row of allocations is a live allocation: releasing
deletes it, what a share had stays in ``shares.gpus``.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Date,
    DateTime,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Sequence,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, INT4MULTIRANGE, JSONB

from hpcmesos.model import Cause, GpuState, JobState, Scope

_CHURN = {"autovacuum_vacuum_scale_factor": 0.05, "autovacuum_vacuum_threshold": 500}
"""For tables whose rows die by the thousand a minute while their indexes are read each second: PostgreSQL's own fifth
of a table with 100,000 jobs would be 20,000 dead rows."""

WHOLE_JOB = -1
"""``element`` of a row that is no array element."""

metadata = MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "fk": "%(table_name)s_%(column_0_name)s_fkey",
        "ck": "%(table_name)s_%(constraint_name)s",
        "ix": "%(table_name)s_%(column_0_name)s",
    }
)
job_ids = Sequence("job_ids", metadata=metadata)
inbox_ids = Sequence("inbox_ids", metadata=metadata)
event_ids = Sequence("event_ids", metadata=metadata)

_time = DateTime(timezone=True)


def _one_of(column: str, values: Any) -> str:
    return f"{column} IN ({', '.join(repr(str(v)) for v in values)})"


def _text(name: str, default: str | None = "") -> Column[str]:
    """``default`` None: every insert gives a value."""
    return Column(name, Text, nullable=False, server_default=None if default is None else default)


def _number(name: str, default: int | None = 0, kind: Any = Integer) -> Column[int]:
    return Column(name, kind, nullable=False, server_default=None if default is None else text(str(default)))


def _flag(name: str, default: bool) -> Column[bool]:
    return Column(name, Boolean, nullable=False, server_default=text(str(default).lower()))


def _json(name: str, default: str = "{}") -> Column[Any]:
    return Column(name, JSONB, nullable=False, server_default=text(f"'{default}'::jsonb"))


def _array(name: str, kind: Any) -> Column[Any]:
    return Column(name, ARRAY(kind), nullable=False, server_default=text("'{}'"))


def _now(name: str) -> Column[Any]:
    return Column(name, _time, nullable=False, server_default=text("now()"))


def _bytes(name: str) -> Column[bytes]:
    return Column(name, LargeBinary, nullable=False, server_default=text("''::bytea"))


def _job_key() -> list[Column[Any]]:
    return [_number("seq", None, BigInteger), _number("element", WHOLE_JOB)]


def _job_columns() -> list[Column[Any]]:
    return [
        *_job_key(),
        _text("server", None),
        _text("name", None),
        _text("owner", None),
        _text("queue", None),
        _text("state", None),
        _number("priority"),
        Column("request", JSONB, nullable=False),
        _number("spec_version", 1, SmallInteger),
        _text("holds"),
        Column("not_before", _time),
        _now("created_at"),
        _now("modified_at"),
        Column("queued_at", _time),
        Column("started_at", _time),
        Column("ended_at", _time),
        Column("exit_status", Integer),
        Column("cause", Text),
        _text("comment"),
        _number("attempt"),
        _number("charged_attempts"),
        _flag("rerunable", True),
        _flag("suspended", False),
        _array("excluded", Text),
        _json("dependencies", "[]"),
        _text("submit_host"),
        _text("project"),
        _text("egroup"),
        _json("submission"),
        # Of an array's parent only; its elements become rows when they start.
        Column("array_spec", JSONB(none_as_null=True)),
        Column("todo", INT4MULTIRANGE),
        Column("deleted", INT4MULTIRANGE),
        Column("succeeded", Integer),
        Column("failed", Integer),
    ]


def _attempt_key() -> list[Column[Any]]:
    return [*_job_key(), _number("number", None)]


def _attempt_columns() -> list[Column[Any]]:
    return [
        *_attempt_key(),
        _now("created_at"),
        Column("started_at", _time),
        Column("ended_at", _time),
        Column("cause", Text),
        Column("code", Integer),
        Column("signal", Integer),
        _flag("forced", False),
        Column("culprit", Text),
        _text("message"),
        _json("usage"),
        _bytes("stdout_tail"),
        _bytes("stderr_tail"),
        _text("stdout_path"),
        _text("stderr_path"),
        _text("undelivered"),
        Column("ending", JSONB(none_as_null=True)),  # see records.Ending
    ]


def _share_columns() -> list[Column[Any]]:
    return [
        *_attempt_key(),
        _number("position", None),
        _text("node", None),
        _number("cpus", None),
        _number("mem", None, BigInteger),
        _number("slots", None),
        _array("gpus", Text),
        _array("ports", Integer),
        Column("released_at", _time),
    ]


def _step_columns() -> list[Column[Any]]:
    return [
        *_attempt_key(),
        _text("step", None),  # as its shepherd names it: MEMBER.NUMBER
        _json("command", "[]"),
        Column("code", Integer),
        Column("first_failed", Integer),  # rank
        _json("ranks", "[]"),
    ]


def _history(name: str, columns: list[Column[Any]], *key: str) -> Table:
    """A table of what the sweeper moved, in daily partitions by the end of the job."""
    ended = [] if name == "jobs" else [Column("job_ended_at", _time, nullable=False)]
    day = "ended_at" if name == "jobs" else "job_ended_at"
    if name == "jobs":
        next(c for c in columns if c.name == "ended_at").nullable = False
    return Table(
        f"{name}_history",
        metadata,
        *columns,
        *ended,
        PrimaryKeyConstraint(*key, day),
        postgresql_partition_by=f"RANGE ({day})",
    )


jobs = Table(
    "jobs",
    metadata,
    *_job_columns(),
    PrimaryKeyConstraint("seq", "element"),
    CheckConstraint(_one_of("state", JobState), "state"),
    CheckConstraint("(state = 'C') = (ended_at IS NOT NULL)", "complete_means_ended"),
    CheckConstraint(f"cause IS NULL OR {_one_of('cause', Cause)}", "cause"),
    # Neither index names a column that a start changes: Q -> R stays a heap-only update.
    Index("jobs_live", "seq", "element", postgresql_where=text("ended_at IS NULL")),
    Index("jobs_ended", "ended_at", postgresql_where=text("ended_at IS NOT NULL")),
    Index("jobs_owner", "owner"),
    postgresql_with={"fillfactor": 60, **_CHURN},
)
job_scripts = Table(
    "job_scripts",
    metadata,
    Column("seq", BigInteger, nullable=False, autoincrement=False),
    Column("script", LargeBinary, nullable=False),
    PrimaryKeyConstraint("seq"),
)

attempts = Table(
    "attempts",
    metadata,
    *_attempt_columns(),
    PrimaryKeyConstraint("seq", "element", "number"),
    ForeignKeyConstraint(["seq", "element"], ["jobs.seq", "jobs.element"]),
    CheckConstraint("(cause IS NULL) = (ended_at IS NULL)", "ended_has_cause"),
    CheckConstraint(f"cause IS NULL OR {_one_of('cause', Cause)}", "cause"),
    postgresql_with={"fillfactor": 60, **_CHURN},
)
_attempt_fkey = (["seq", "element", "number"], ["attempts.seq", "attempts.element", "attempts.number"])
shares = Table(
    "shares",
    metadata,
    *_share_columns(),
    PrimaryKeyConstraint("seq", "element", "number", "position"),
    ForeignKeyConstraint(*_attempt_fkey),
    ForeignKeyConstraint(["node"], ["nodes.name"]),
    Index("shares_one_per_node", "seq", "element", "number", "node", unique=True),
    Index("shares_live", "node", postgresql_where=text("released_at IS NULL")),
    postgresql_with=_CHURN,
)
steps = Table(
    "steps",
    metadata,
    *_step_columns(),
    PrimaryKeyConstraint("seq", "element", "number", "step"),
    ForeignKeyConstraint(*_attempt_fkey),
)
allocations = Table(
    "allocations",
    metadata,
    *_attempt_key(),
    _text("node", None),
    Column("gpu", Text, ForeignKey("gpus.uuid")),
    Column("port", Integer),
    Column("host", Text),  # of a port: what nodes with one port space have in common
    ForeignKeyConstraint(*_attempt_fkey),
    CheckConstraint("num_nonnulls(gpu, port) = 1", "one_thing"),
    Index("allocations_one_per_gpu", "gpu", unique=True, postgresql_where=text("gpu IS NOT NULL")),
    CheckConstraint("(port IS NULL) = (host IS NULL)", "port_has_host"),
    Index("allocations_one_per_port", "host", "port", unique=True, postgresql_where=text("port IS NOT NULL")),
    Index("allocations_attempt", "seq", "element", "number"),
)

jobs_history = _history("jobs", _job_columns(), "seq", "element")
attempts_history = _history("attempts", _attempt_columns(), "seq", "element", "number")
shares_history = _history("shares", _share_columns(), "seq", "element", "number", "position")
steps_history = _history("steps", _step_columns(), "seq", "element", "number", "step")
events = Table(  # never moved: its daily partitions are its history
    "events",
    metadata,
    Column("id", BigInteger, event_ids, nullable=False, server_default=event_ids.next_value()),
    _now("at"),
    Column("seq", BigInteger),
    Column("element", Integer),
    _text("kind", None),
    Column("source", Text),
    Column("target", Text),
    _json("payload"),
    PrimaryKeyConstraint("id", "at"),
    Index("events_seq", "seq"),
    postgresql_partition_by="RANGE (at)",
)

inbox = Table(
    "inbox",
    metadata,
    Column("id", BigInteger, inbox_ids, nullable=False, server_default=inbox_ids.next_value()),
    _text("kind", None),
    Column("seq", BigInteger),
    _text("user", None),
    _text("via"),
    _json("payload"),
    _now("created_at"),
    PrimaryKeyConstraint("id"),
    postgresql_with=_CHURN,
)
idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    _text("user", None),
    _text("key", None),
    Column("digest", LargeBinary, nullable=False),
    Column("seqs", ARRAY(BigInteger), nullable=False),  # of the jobs, or the wish; [] for Store.claim
    _now("created_at"),
    PrimaryKeyConstraint("user", "key"),
    Index("idempotency_keys_created_at", "created_at"),
)
nodes = Table(
    "nodes",
    metadata,
    _text("name", None),
    _number("cpus", None),
    _number("cpus_used"),
    _number("mem", None, BigInteger),
    _number("mem_used", 0, BigInteger),
    _flag("up", True),
    _flag("offline", False),
    _flag("gone", False),
    _text("address"),
    _number("peer_port"),
    _text("boot_id"),
    _text("journal"),
    _text("version"),
    _text("hostname"),
    _text("os"),
    _text("isolation"),
    _array("features", Text),
    _flag("declared", False),
    _text("note"),
    _now("changed_at"),
    Column("ends_at", _time),
    PrimaryKeyConstraint("name"),
    CheckConstraint("cpus_used BETWEEN 0 AND cpus", "cpus_used"),
    CheckConstraint("mem_used BETWEEN 0 AND mem", "mem_used"),
    postgresql_with={"fillfactor": 50},
)
gpus = Table(
    "gpus",
    metadata,
    _text("uuid", None),
    Column("node", Text, ForeignKey("nodes.name"), nullable=False, index=True),
    _number("index", None),
    _text("model"),
    _number("memory", 0, BigInteger),
    Column("numa", Integer),
    _text("pci"),
    _flag("simulated", False),
    _text("state", GpuState.FREE.value),
    _array("links", Integer),
    _text("note"),
    _text("parent"),
    _text("profile"),
    PrimaryKeyConstraint("uuid"),
    CheckConstraint(_one_of("state", GpuState), "state"),
    postgresql_with={"fillfactor": 50},
)
queues = Table(
    "queues",
    metadata,
    _text("name", None),
    _flag("enabled", True),
    _flag("started", True),
    _number("priority"),
    _json("attributes"),
    PrimaryKeyConstraint("name"),
)
tokens = Table(
    "tokens",
    metadata,
    Column("hash", LargeBinary, nullable=False),
    _text("kind", None),
    Column("user", Text),
    Column("node", Text),
    _text("created_by", None),
    _now("created_at"),
    Column("expires_at", _time, nullable=False),
    Column("used_at", _time),
    _text("id", None),
    _text("scope", "all"),
    Column("parent", Text),
    _text("created_via"),
    Column("revoked_at", _time),
    Column("revoked_by", Text),
    _text("used_via"),
    _text("revoked_via"),
    PrimaryKeyConstraint("hash"),
    UniqueConstraint("id", name="tokens_id_key"),
    CheckConstraint(_one_of("kind", ("user", "join", "gateway")), "kind"),
    CheckConstraint(_one_of("scope", Scope), "scope"),
)
certificates = Table(  # of nodes, as long as they are good
    "certificates",
    metadata,
    _text("serial", None),
    _text("node", None),
    _now("issued_at"),
    Column("expires_at", _time, nullable=False),
    _text("issued_via"),
    Column("revoked_at", _time),
    Column("revoked_by", Text),
    _text("revoked_via"),
    _text("authority"),
    _text("trusts"),
    _text("role"),
    PrimaryKeyConstraint("serial"),
    Index("certificates_node", "node"),
)
authorities = Table(  # that sign certificates; none: the masters' files hold the only one that there has been
    "authorities",
    metadata,
    _text("fingerprint", None),
    _text("certificate", None),
    Column("sealed_key", LargeBinary),  # null: dropped
    _now("made_at"),
    _text("made_by"),
    _text("made_via"),
    Column("not_before", _time, nullable=False),  # it does not sign earlier
    Column("signs_since", _time),
    Column("dropped_at", _time),
    _text("forced_via"),
    PrimaryKeyConstraint("fingerprint"),
)
gateways = Table(  # login hosts that have joined
    "gateways",
    metadata,
    _text("name", None),
    Column("seen_at", _time),  # when it last asked for deliveries
    PrimaryKeyConstraint("name"),
)
deliveries = Table(  # output that a gateway has to write, or has written
    "deliveries",
    metadata,
    _text("attempt", None),
    _text("stream", None),
    _text("gateway", None),
    _text("owner", None),
    _text("path", None),  # absolute
    _text("name", None),  # the file's name where ``path`` is a directory
    _number("umask", None),
    _flag("append", False),  # the job has run before
    _number("size", None, BigInteger),
    _now("created_at"),
    Column("done_at", _time),
    _text("trouble"),  # why it could not be written; empty: it was
    PrimaryKeyConstraint("attempt", "stream"),
    Index("deliveries_waiting", "gateway", postgresql_where=text("done_at IS NULL")),
)
secrets = Table(
    "secrets",
    metadata,
    _text("owner", None),
    _text("name", None),
    Column("sealed", LargeBinary, nullable=False),
    _text("via"),
    _now("changed_at"),
    PrimaryKeyConstraint("owner", "name"),
)
secret_changes = Table(  # for the audit: what became of users' secrets
    "secret_changes",
    metadata,
    _text("owner", None),
    _text("name", None),
    _text("action", None),
    _text("via"),
    _now("at"),
    Index("secret_changes_at", "at"),
)
leadership = Table(
    "leadership",
    metadata,
    Column("term", BigInteger, nullable=False, autoincrement=False),
    _text("holder"),
    _text("address"),
    _number("timeline"),
    Column("expires_at", _time, nullable=False),
    PrimaryKeyConstraint("term"),
)
schedules = Table(  # owner "": housekeeping of the cluster itself; such rules have neither job nor next_due
    "schedules",
    metadata,
    _text("owner"),
    _text("name", None),
    _text("rule", None),  # see rules.py; empty: it follows its parents
    _text("timezone", "UTC"),
    _now("since"),  # due times after this one count
    Column("next_due", _time),  # None: never again, paused, or it follows its parents
    _flag("paused", False),
    _text("missed", "once"),
    _text("overlap", "allow"),
    _number("deadline", 60),  # seconds after which a due time counts as missed
    _number("retries"),
    _number("retry_delay", 60),
    _array("parents", Text),
    _json("fed"),  # {parent: its successful runs that this one has not used yet}
    Column("job", JSONB(none_as_null=True)),  # a NewJob without its script
    Column("script", LargeBinary),
    PrimaryKeyConstraint("owner", "name"),
    CheckConstraint(_one_of("missed", ("skip", "once", "all")), "missed"),
    CheckConstraint(_one_of("overlap", ("allow", "skip", "replace")), "overlap"),
    Index("schedules_next_due", "next_due", postgresql_where=text("next_due IS NOT NULL")),
)
schedule_runs = Table(
    "schedule_runs",
    metadata,
    _text("owner"),
    Column("schedule", Text, nullable=False),
    Column("due", _time, nullable=False),
    _number("try", 0, SmallInteger),
    _now("fired_at"),
    Column("seq", BigInteger),  # of the job; None: there was none, and ``outcome`` says why
    _text("outcome"),  # empty: its job has not ended
    Column("retry_at", _time),
    PrimaryKeyConstraint("owner", "schedule", "due", "try"),
    ForeignKeyConstraint(["owner", "schedule"], ["schedules.owner", "schedules.name"], ondelete="CASCADE"),
    Index("schedule_runs_open", "seq", postgresql_where=text("seq IS NOT NULL AND outcome = ''")),
    Index("schedule_runs_retry", "retry_at", postgresql_where=text("retry_at IS NOT NULL")),
)
notices = Table(  # mails and webhook calls that have not been delivered
    "notices",
    metadata,
    Column("id", BigInteger, Identity(always=True)),
    _text("channel", None),
    _text("recipient"),
    _json("content"),
    _number("tries"),
    _now("created_at"),
    _now("next_try"),
    PrimaryKeyConstraint("id"),
    CheckConstraint(_one_of("channel", ("mail", "webhook")), "channel"),
    Index("notices_turn", "channel", "recipient", "id", postgresql_include=["next_try"]),
)
usage_days = Table(  # of days whose attempts are no longer kept
    "usage_days",
    metadata,
    Column("day", Date, nullable=False),
    *(_text(name, None) for name in ("owner", "project", "queue")),
    _number("runs", None),
    *(Column(name, Float, nullable=False) for name in ("gpu_seconds", "cpu_seconds", "lost_gpu_seconds")),
    PrimaryKeyConstraint("day", "owner", "project", "queue"),
)
settings = Table("settings", metadata, _text("name", None), _json("value"), PrimaryKeyConstraint("name"))
