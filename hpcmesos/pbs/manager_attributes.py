"""What qmgr can set on queues, the server and nodes, how a value is written, and how changes apply. Pure.

Names and types: T:src/include/{queue,svr,node}_attr_enum.h and pbs_queue_attributes(7B), pbs_server_attributes(7B) of
both families. Attributes are kept as texts in the form in which ``list`` and ``print`` show them.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from hpcmesos.errors import InvalidValue, ReadOnlyAttribute, UnknownAttribute, UsageError
from hpcmesos.pbs.manager import Change
from hpcmesos.pbs.options import parse
from hpcmesos.pbs.values import parse_boolean
from hpcmesos.queue.opening import parse_opening
from hpcmesos.units import format_duration, format_size, parse_duration, parse_size


class Kind(StrEnum):
    """How a value is read."""

    BOOLEAN = "boolean"
    INTEGER = "integer"
    DURATION = "duration"
    SIZE = "size"
    LIST = "list"  # joined by commas; += and -= add and take away members
    TEXT = "text"
    CHOICE = "choice"
    RESOURCES = "resources"  # one value for each resource: NAME.RESOURCE
    LIMIT = "limit"  # OpenPBS: [u:PBS_GENERIC=4], or a plain number
    OPENING = "times at which jobs may start"
    RESOURCE_LIMIT = "resource limit"  # the same for each resource: NAME.RESOURCE


@dataclass(frozen=True, slots=True)
class Attribute:
    """``choices``: what a CHOICE may be, as shown; ``used``: False: kept for the sake of printed forms, and no more."""

    name: str
    kind: Kind
    choices: tuple[str, ...] = ()
    pattern: str = ""  # of a TEXT
    used: bool = True


def _all(kind: Kind, names: str, *, used: bool = True, pattern: str = "") -> dict[str, Attribute]:
    return {name: Attribute(name, kind, pattern=pattern, used=used) for name in names.split()}


_IDLE_GPUS: Mapping[str, Attribute] = {
    "gpu_idle_action": Attribute("gpu_idle_action", Kind.CHOICE, ("none", "warn", "cancel")),
    "gpu_idle_threshold": Attribute("gpu_idle_threshold", Kind.INTEGER),
    "gpu_idle_window": Attribute("gpu_idle_window", Kind.DURATION),
    "gpu_idle_exempt": Attribute(
        "gpu_idle_exempt", Kind.LIST, pattern=r"[ugp]:[\w@.-]+|name:[^\s:]+|interactive|asked"
    ),
}

QUEUE_ATTRIBUTES: Mapping[str, Attribute] = {
    "queue_type": Attribute("queue_type", Kind.CHOICE, ("Execution", "Route")),
    **_all(Kind.INTEGER, "Priority max_running max_queuable max_user_queuable max_user_run max_group_run"),
    **_all(Kind.LIMIT, "max_run max_queued"),
    **_all(Kind.RESOURCE_LIMIT, "max_run_res"),
    **_all(Kind.INTEGER, "level preempt_grace"),
    **_all(Kind.BOOLEAN, "enabled started from_route_only acl_logic_or"),
    **_all(Kind.BOOLEAN, "acl_user_enable acl_group_enable acl_host_enable acl_group_sloppy"),
    **_all(Kind.LIST, "acl_users acl_groups acl_hosts route_destinations disallowed_types"),
    **_all(Kind.LIST, "features_required", used=False),
    **_all(Kind.RESOURCES, "resources_max resources_min resources_default"),
    **_all(Kind.RESOURCES, "resources_available default_chunk", used=False),
    **_all(Kind.INTEGER, "keep_completed kill_delay"),
    **_all(Kind.SIZE, "log_limit"),
    **_all(Kind.INTEGER, "route_retry_time route_lifetime"),
    **_all(Kind.BOOLEAN, "route_held_jobs route_waiting_jobs"),
    "start_times": Attribute("start_times", Kind.OPENING),
    **_all(Kind.INTEGER, "checkpoint_min", used=False),
    **_all(Kind.TEXT, "alt_router comment", used=False),
    "ring": Attribute("ring", Kind.CHOICE, ("check", "none")),
    **_IDLE_GPUS,
    "silence": Attribute("silence", Kind.TEXT, pattern=r"wait|fence:\d{1,6}"),
}

SERVER_ATTRIBUTES: Mapping[str, Attribute] = {
    **_all(Kind.BOOLEAN, "scheduling"),
    **_all(Kind.BOOLEAN, "query_other_jobs", used=False),
    **_all(Kind.TEXT, "default_queue default_qsub_arguments"),
    **_all(Kind.LIST, "managers operators"),
    **_all(Kind.RESOURCES, "resources_max resources_min resources_default"),
    **_all(
        Kind.INTEGER, "keep_completed kill_delay max_running max_user_run max_group_run max_user_queuable"
    ),
    **_all(Kind.SIZE, "log_limit"),
    **_all(Kind.INTEGER, "max_job_array_size max_slot_limit"),
    **_all(Kind.TEXT, "order_plugin rank_plugin limits_plugin", pattern=r"[A-Za-z0-9._-]{1,64}"),
    **_all(Kind.LIST, "acl_users acl_hosts"),
    **_all(Kind.LIST, "submit_hosts", used=False),
    **_all(Kind.BOOLEAN, "acl_user_enable acl_host_enable"),
    **_all(Kind.TEXT, "mail_from mail_domain"),
    **_IDLE_GPUS,
    **_all(Kind.TEXT, "comment", used=False),
    **_all(Kind.LIST, "acl_roots", used=False),
    **_all(Kind.INTEGER, "scheduler_iteration log_events log_level node_check_rate tcp_timeout", used=False),
    **_all(Kind.INTEGER, "job_stat_rate next_job_number np_default", used=False),
    **_all(
        Kind.BOOLEAN,
        "poll_jobs mom_job_sync allow_node_submit auto_node_np owner_purge display_job_server_suffix"
        " disable_server_id_check flatuid job_history_enable eligible_time_enable resv_enable",
        used=False,
    ),
    **_all(Kind.INTEGER, "exit_code_canceled_job"),
    **_all(Kind.INTEGER, "automatic_requeue_exit_code max_array_size", used=False),
    **_all(Kind.DURATION, "job_history_duration", used=False),
    **_all(Kind.LIMIT, "max_run max_queued"),
    **_all(Kind.RESOURCE_LIMIT, "max_run_res"),
    **_all(Kind.RESOURCES, "resources_available default_chunk", used=False),
}

NODE_ATTRIBUTES: Mapping[str, Attribute] = {
    "state": Attribute("state", Kind.LIST),
    "note": Attribute("note", Kind.TEXT),
    "comment": Attribute("comment", Kind.TEXT),
}

ATTRIBUTES: Mapping[str, Mapping[str, Attribute]] = {
    "queue": QUEUE_ATTRIBUTES,
    "server": SERVER_ATTRIBUTES,
    "node": NODE_ATTRIBUTES,
}

READ_ONLY: Mapping[str, frozenset[str]] = {
    "queue": frozenset({"total_jobs", "state_count", "mtime", "resources_assigned"}),
    "server": frozenset({"server_state", "server_host", "total_jobs", "state_count", "pbs_version"}),
    # What its agent tells:
    "node": frozenset(
        {"np", "properties", "ntype", "jobs", "status", "gpus", "power_state", "resources_available"}
        | {"Mom", "pcpus"}
    ),
}

LIMITED_RESOURCES = ("ngpus", "ncpus", "gpuhours")
"""What ``max_run_res`` may limit."""

_BY_RESOURCE = frozenset({Kind.RESOURCES, Kind.RESOURCE_LIMIT})
_NOT_NEGATIVE = frozenset(
    {"keep_completed", "kill_delay", "route_retry_time", "route_lifetime", "preempt_grace", "max_running"}
    | {"max_user_run", "max_group_run", "max_queuable", "max_user_queuable"}
)
_BOUNDS: Mapping[str, tuple[int, int]] = {"gpu_idle_threshold": (1, 100), "gpu_idle_window": (20, 86400)}
"""Of whole numbers and, in seconds, of durations."""
_LEAST_LOG = 64 * 1024  # bytes; so much of each stream the database keeps anyway
_DURATIONS = frozenset({"walltime", "cput", "pcput"})
_SIZES = frozenset({"mem", "pmem", "vmem", "pvmem", "file"})
_COUNTS = frozenset({"ncpus", "nodect", "nodes", "procct", "procs", "gpus", "ngpus", "mpiprocs", "nice"})
_RESOURCE = re.compile(r"[A-Za-z_][\w-]*", re.ASCII)
_INTEGER = re.compile(r"[+-]?\d{1,9}", re.ASCII)
_LIMIT = re.compile(
    r"\d{1,9}|(?:\[[ugpo]:[\w@.*-]+=\d{1,9}\])(?:,\s*\[[ugpo]:[\w@.*-]+=\d{1,9}\])*", re.ASCII
)
# Hosts that may be addresses of IPv6 (2000::/3, fc00::/7, fe80::/10) as well as names.
_UNCLEAR_HOST = r"(?![\d*?!\[\]-]*$)(?:[23]|f(?:[c-f]|\[[c-f-]+\]))[\da-f]{0,3}[*?\[][\da-f*?!\[\]-]*"
_UNCLEAR_BARS: Mapping[str, re.Pattern[str]] = {
    "acl_hosts": re.compile(f"-{_UNCLEAR_HOST}", re.ASCII | re.IGNORECASE),
    "acl_users": re.compile(f"-[^@]*@{_UNCLEAR_HOST}", re.ASCII | re.IGNORECASE),
}
_PLAIN_SIZE = re.compile(r"\d+[kmgt]?b", re.ASCII)


def apply(kind: str, now: Mapping[str, str], changes: Iterable[Change]) -> dict[str, str]:
    """The attributes after ``set`` (changes with an operator) or ``unset`` (without one).

    Raises:
        UnknownAttribute, ReadOnlyAttribute, InvalidValue: the first change that is none; ``now`` is as it was.
    """
    found = dict(now)
    for change in changes:
        attribute, resource = _known(kind, change.name)
        if not change.operator:
            for name in [name for name in found if name == change.name or _covers(change.name, name)]:
                del found[name]
            continue
        if attribute.kind is Kind.RESOURCES and not resource:
            raise InvalidValue(f"{change.name} wants a resource: {change.name}.walltime = 01:00:00")
        if attribute.kind is Kind.RESOURCE_LIMIT and resource not in LIMITED_RESOURCES:
            raise InvalidValue(f"{change.name}: write {change.name}.{' or .'.join(LIMITED_RESOURCES)}")
        _assign(found, attribute, resource, change)
    return found


def known(kind: str, name: str) -> bool:
    """Whether objects of this kind have the attribute (``name`` with or without its resource)."""
    base = name.partition(".")[0]
    return base in ATTRIBUTES[kind] or base in READ_ONLY[kind]


def is_list(kind: str, name: str) -> bool:
    attribute = ATTRIBUTES[kind].get(name)
    return attribute is not None and attribute.kind is Kind.LIST


def members(text: str) -> list[str]:
    """The members of a LIST."""
    return [word.strip() for word in text.split(",") if word.strip()]


def resources(attributes: Mapping[str, str], name: str) -> dict[str, str]:
    """The values of a RESOURCES attribute by resource: ``resources(a, "resources_max")["walltime"]``."""
    prefix = f"{name}."
    return {key[len(prefix) :]: value for key, value in attributes.items() if key.startswith(prefix)}


def limit_of(text: str, letter: str, name: str) -> int | None:
    """What OpenPBS' form allows the user (letter u), group (g) or project (p): its own entry, else the generic one."""
    if not text:
        return None
    match = re.search(rf"\[{letter}:{re.escape(name)}=(\d+)\]", text)
    return int(match[1]) if match else _generic(text, letter)


def total_limit(attributes: Mapping[str, str], torque: str, openpbs: str) -> int | None:
    """A limit for all together: Torque's own attribute, or ``[o:PBS_ALL=N]`` of OpenPBS' form."""
    if torque in attributes:
        return int(attributes[torque])
    text = attributes.get(openpbs)
    if text is None:
        return None
    return int(text) if text.isdigit() else _generic(text, "o")


def _generic(text: str, letter: str) -> int | None:
    match = re.search(rf"\[{letter}:PBS_(?:GENERIC|ALL)=(\d+)\]", text)
    return int(match[1]) if match else None


def _known(kind: str, name: str) -> tuple[Attribute, str]:
    base, _, resource = name.partition(".")
    if base in READ_ONLY[kind]:
        raise ReadOnlyAttribute(f"Cannot set attribute, read only or insufficient permission  {base}")
    attribute = ATTRIBUTES[kind].get(base)
    if attribute is None or (resource and attribute.kind not in _BY_RESOURCE):
        raise UnknownAttribute(f"Undefined attribute {name}")
    return attribute, resource


def _covers(name: str, other: str) -> bool:
    return "." not in name and other.startswith(f"{name}.")


def _assign(found: dict[str, str], attribute: Attribute, resource: str, change: Change) -> None:
    if not change.value.isprintable():
        raise InvalidValue(f"{change.name}: a value is one line without control characters")
    value = _value(attribute, resource, change.value)
    if change.operator != "-=":
        _check_bars(attribute.name, value)
    if change.operator == "=":
        found[change.name] = value
    elif attribute.kind is Kind.LIST:
        had = members(found.get(change.name, ""))
        given = members(value)
        if change.operator == "+=":
            left = [*had, *(word for word in given if word not in had)]
        else:
            left = [word for word in had if word not in given]
        found[change.name] = ",".join(left)
    elif attribute.kind is Kind.INTEGER:
        sign = 1 if change.operator == "+=" else -1
        result = int(found.get(change.name, "0")) + sign * int(value)
        found[change.name] = _value(attribute, resource, str(result))
    else:
        raise InvalidValue(f"{change.name} takes = only, no {change.operator}")
    if found[change.name] == "":
        del found[change.name]


def _value(attribute: Attribute, resource: str, text: str) -> str:
    """The value as it is kept. Raises InvalidValue."""
    name = attribute.name
    match attribute.kind:
        case Kind.RESOURCES:
            return _resource_value(resource, text)
        case Kind.BOOLEAN:
            return str(parse_boolean(name, text))
        case Kind.INTEGER if name in _NOT_NEGATIVE and text.strip().startswith("-"):
            raise InvalidValue(f"{name} = {text}: write a whole number of at least 0")
        case Kind.INTEGER:
            return _bounded(name, int(_integer(name, text)), str)
        case Kind.TEXT if name == "default_qsub_arguments":
            return _arguments(text)
        case Kind.OPENING:
            parse_opening(text)
            return " ".join(text.split())
        case Kind.SIZE if parse_size(text) < _LEAST_LOG:
            raise InvalidValue(f"{name} = {text}: write a size of at least {format_size(_LEAST_LOG)}")
        case Kind.SIZE:
            return _size(text)
        case Kind.DURATION:
            return _bounded(name, int(parse_duration(text)), format_duration)
        case Kind.LIST if attribute.pattern and (wrong := _unlike(text, attribute.pattern)):
            raise InvalidValue(f"{name}: '{wrong}' is none of {attribute.pattern}")
        case Kind.LIST:
            return ",".join(dict.fromkeys(members(text)))
        case Kind.CHOICE:
            return _chosen(name, text, attribute.choices)
        case Kind.LIMIT | Kind.RESOURCE_LIMIT if not _LIMIT.fullmatch(text.strip()):
            raise InvalidValue(f"{name} = {text}: write a number or e.g. [u:PBS_GENERIC=4]")
        case _ if attribute.pattern and not re.fullmatch(attribute.pattern, text):
            raise InvalidValue(f"{name} = {text}: write {attribute.pattern}")
        case _ if "'" in text and '"' in text:
            raise InvalidValue(f"{name}: a text holds one kind of quote at most")
        case _:
            return text.strip()


def _bounded(name: str, value: int, shown: Callable[[int], str]) -> str:
    least, most = _BOUNDS.get(name, (value, value))
    if not least <= value <= most:
        raise InvalidValue(f"{name} = {shown(value)}: write {shown(least)} to {shown(most)}")
    return shown(value)


def _unlike(text: str, pattern: str) -> str:
    """The first member of a list that is not as it must be; empty: none."""
    return next((word for word in members(text) if not re.fullmatch(pattern, word, re.ASCII)), "")


def _check_bars(name: str, text: str) -> None:
    """A name with wildcards bars everybody who comes over TLS, so it must be no address that lacks its colon.

    Raises:
        InvalidValue: the entry may mean both.
    """
    if pattern := _UNCLEAR_BARS.get(name):
        for entry in filter(pattern.fullmatch, members(text)):
            raise InvalidValue(
                f"{name}: '{entry}' may mean addresses or names: write addresses with a colon, as in fd00:*,"
                " and names in full"
            )


def _arguments(text: str) -> str:
    """Words of qsub that all of its runs begin with."""
    try:
        parse("qsub", shlex.split(text))
    except (ValueError, UsageError) as error:
        raise InvalidValue(f"default_qsub_arguments = {text}: {error}") from None
    return text.strip()


def _resource_value(resource: str, text: str) -> str:
    if not _RESOURCE.fullmatch(resource):
        raise InvalidValue(f"'{resource}' is no name of a resource")
    if resource in _DURATIONS:
        return format_duration(parse_duration(text))
    if resource in _SIZES:
        return _size(text)
    # Torque's "nodes" may be a whole request: resources_default.nodes = 1:ppn=4
    if resource in _COUNTS and not (resource == "nodes" and ":" in text):
        return _integer(resource, text)
    return text.strip()


def _size(text: str) -> str:
    """As it was written, where that is plain; else in kb."""
    size = parse_size(text)
    lower = text.strip().lower()
    return lower if _PLAIN_SIZE.fullmatch(lower) else f"{-(-size // 1024)}kb"


def _integer(name: str, text: str) -> str:
    if not _INTEGER.fullmatch(text.strip()):
        raise InvalidValue(f"{name} = {text}: write a whole number")
    return str(int(text))


def _chosen(name: str, text: str, choices: tuple[str, ...]) -> str:
    found = [choice for choice in choices if text.strip() and choice.lower().startswith(text.strip().lower())]
    if len(found) != 1:
        raise InvalidValue(f"{name} = {text}: write one of {', '.join(choices)}")
    return found[0]
