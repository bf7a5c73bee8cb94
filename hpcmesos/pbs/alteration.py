"""qalter: from its words to what changes of a job. Pure (qalter(1B) of both families)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from hpcmesos.errors import InvalidValue, UsageError
from hpcmesos.model import Request
from hpcmesos.pbs import resources
from hpcmesos.pbs.options import ParsedCommand, parse
from hpcmesos.pbs.paths import PathTemplate, parse_path
from hpcmesos.pbs.quoting import split_list, unquote
from hpcmesos.pbs.resources import SHAPES, Resources
from hpcmesos.pbs.values import (
    Dependency,
    check_choice,
    check_name,
    check_printable,
    merge_attribute,
    parse_attributes,
    parse_depend,
    parse_execution_time,
    parse_mail_users,
    parse_priority,
    parse_umask,
    parse_variables,
)

_CHOSEN = {"j": "join", "k": "keep", "m": "mail_points"}
_TEXTS = {"A": "account", "P": "project", "c": "checkpoint"}
_SHOWN = {
    "j": "Join_Path",
    "k": "Keep_Files",
    "o": "Output_Path",
    "e": "Error_Path",
    "a": "Execution_Time",
    "S": "Shell_Path_List",
    "v": "Variable_List",
    "h": "Hold_Types",
    "c": "Checkpoint",
    "t": "job_array_request",
    "q": "queue",
}
"""Options that a job which runs cannot take any more, and how its attributes are called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alteration:
    """What is asked for; None and empty: unchanged."""

    ids: tuple[str, ...]
    name: str | None = None
    queue: str | None = None
    priority: int | None = None
    rerunable: bool | None = None
    holds: str | None = None  # letters of u, o, s that are to be there; "": none
    not_before: datetime | None = None  # aware
    dependencies: tuple[Dependency, ...] | None = None
    limit: int | None = None  # -t %N: elements that run at once
    resources: Mapping[str, str] = field(default_factory=dict)
    stdout: str | None = None
    stderr: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    submission: Mapping[str, Any] = field(default_factory=dict)  # by the names under which it is stored
    not_running: tuple[str, ...] = ()  # attributes among these that a running job cannot take

    def path(self, letter: str, cwd: str, host: str) -> PathTemplate | None:
        """The new place of standard output ("o") or error ("e")."""
        text = self.stdout if letter == "o" else self.stderr
        return None if text is None else parse_path(text, letter, cwd, host)


def parse_qalter(
    argv: Sequence[str], now: datetime, environ: Mapping[str, str], *, decimal_umask: bool = False
) -> Alteration:
    """Reads qalter's words. ``now``: aware, in the client's zone; ``environ``: for ``-v NAME``.

    ``decimal_umask``: as Torque, a umask that does not begin with 0 is decimal.

    Raises:
        UsageError: for unknown options, and when no job is named.
        Rejection: a leaf of it, for a value that is none.
    """
    command = parse("qalter", argv)
    ids = (*command.operands, *(command.rest or ()))
    if not ids:
        raise UsageError("name at least one job: qalter [options] job_id ...")
    attributes = _attributes(command)
    name, priority, rerun, when, array = (_last(command, letter) for letter in "Nprat")
    stored = _stored(command, attributes)
    if "umask" in attributes:
        stored["umask"] = parse_umask(attributes["umask"], decimal=decimal_umask)
    blocked = [shown for letter, shown in _SHOWN.items() if command.has(letter)]
    blocked += [key for key in attributes if key in ("depend", "umask", "group_list")]
    asked = resources.collect(command.all("l"))
    blocked += [f"Resource_List.{resource}" for resource in asked if resource != "walltime"]
    depend = attributes.get("depend")
    queue = _last(command, "q")
    return Alteration(
        ids=ids,
        name=None if name is None else check_name(name),
        queue=None if queue is None else queue.partition("@")[0] or None,
        priority=None if priority is None else parse_priority(priority),
        rerunable=None if rerun is None else check_choice("qalter", "r", rerun) == "y",
        holds=_holds(command),
        not_before=None if when is None else parse_execution_time(when, now),
        dependencies=None if depend is None else parse_depend(depend),
        limit=None if array is None else _limit(array),
        resources=asked,
        stdout=_last(command, "o"),
        stderr=_last(command, "e"),
        variables={
            key: value for text in command.all("v") for key, value in parse_variables(text, environ).items()
        },
        submission=stored,
        not_running=tuple(blocked),
    )


def altered(shown: Mapping[str, str], wanted: Mapping[str, str]) -> Resources:
    """The resources of a job that shows ``shown`` as its Resource_List, once ``wanted`` are changed.

    A new shape (select, nodes, procs, ncpus, gpus) replaces the old one; everything else stays.

    Raises:
        InvalidValue: what is asked for makes no sense, by itself or together with what stays.
    """
    kept = _own_words(shown)
    if not SHAPES.isdisjoint(wanted):
        kept = {name: text for name, text in kept.items() if name not in SHAPES}
    return resources.build({**kept, **wanted})


def changed_request(
    old: Request, submission: Mapping[str, Any], wanted: Mapping[str, str]
) -> tuple[Request, dict[str, str]]:
    """The request of a job with this submission, once ``wanted`` are changed, and its new Resource_List.

    What resources do not name stays as it was. Raises what altered() raises.
    """
    built = altered(submission.get("resource_list", {}), wanted)
    request = replace(
        built.request, framework=old.framework, silence=old.silence, constraints=old.constraints
    )
    if submission.get("image"):
        request = request.in_containers()
    return request, dict(built.display)


def lengthens(before: Request, after: Request) -> bool:
    """Whether a job that runs may run longer: only operators grant that."""
    old, new = before.walltime, after.walltime
    return old is not None and (new is None or new > old)


def _own_words(shown: Mapping[str, str]) -> dict[str, str]:
    """The user's own words of a Resource_List: without what was derived from them for display."""
    words = {name: text for name, text in shown.items() if name != "nodect"}
    if "select" in words or "procs" in words or words.get("ncpus") == shown.get("nodect"):
        words.pop("ncpus", None)
    return words


def _attributes(command: ParsedCommand) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in command.all("W"):
        for name, value in parse_attributes(text).items():
            merge_attribute(found, name, check_printable("W", value))
    return found


def _last(command: ParsedCommand, letter: str) -> str | None:
    value = command.last(letter)
    return None if value is None else check_printable(letter, unquote(value))


def _stored(command: ParsedCommand, attributes: Mapping[str, str]) -> dict[str, Any]:
    """What lies in the submission under a name of its own."""
    stored: dict[str, Any] = {}
    for letter, name in _CHOSEN.items():
        if (value := _last(command, letter)) is not None:
            stored[name] = check_choice("qalter", letter, value)
    for letter, name in _TEXTS.items():
        if (value := _last(command, letter)) is not None:
            stored[name] = value
    if (users := _last(command, "M")) is not None:
        stored["mail_users"] = list(parse_mail_users(users))
    if (shell := _last(command, "S")) is not None:
        stored["shell"] = next(iter(split_list(shell)), "").partition("@")[0] or None
    if "group_list" in attributes:
        stored["group_list"] = list(split_list(attributes["group_list"]))
    extra = {key: value for key, value in attributes.items() if key not in ("depend", "umask", "group_list")}
    return stored | ({"extra": extra} if extra else {})


def _holds(command: ParsedCommand) -> str | None:
    text = _last(command, "h")
    if text is None:
        return None
    if text != "n" and (not text or not set(text) <= set("uos")):
        raise InvalidValue(f"illegal -h value '{text}'; letters of u, o and s, or n")
    return "" if text == "n" else "".join(sorted(set(text)))


def _limit(text: str) -> int:
    number = text.removeprefix("%")
    if not (number.isascii() and number.isdigit() and 0 < int(number) < 10**9):
        raise InvalidValue(f"illegal -t value '{text}'; write %N, at most N elements at once")
    return int(number)
