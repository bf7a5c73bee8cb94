"""qselect: which jobs its words choose. Pure (qselect(1B) of both families)."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from hpcmesos.errors import HpcmesosError, UsageError
from hpcmesos.pbs.facts import JobFacts
from hpcmesos.pbs.options import ParsedCommand, parse
from hpcmesos.pbs.personalities import Personality
from hpcmesos.pbs.quoting import split_list
from hpcmesos.pbs.values import parse_execution_time, parse_priority
from hpcmesos.units import parse_duration, parse_size

Compare = Callable[[Any, Any], bool]

_OPERATORS: Mapping[str, Compare] = {
    ".eq.": operator.eq,
    ".ne.": operator.ne,
    ".ge.": operator.ge,
    ".gt.": operator.gt,
    ".le.": operator.le,
    ".lt.": operator.lt,
}
_OPERATOR = re.compile(r"\.(?:eq|ne|ge|gt|le|lt)\.")
_RESOURCE = re.compile(r"\s*([A-Za-z_][\w-]*)\s*(\.(?:eq|ne|ge|gt|le|lt)\.|=)\s*(.*)", re.ASCII)
_STATES = frozenset("EHQRTWSCFBXMU")
_TIMES: Mapping[str, Callable[[JobFacts], datetime | None]] = {
    "a": lambda job: job.execution_time,
    "c": lambda job: job.ctime,
    "e": lambda job: job.comp_time,
    "g": lambda job: job.etime,
    "m": lambda job: job.mtime,
    "q": lambda job: job.qtime,
    "s": lambda job: job.start_time,
    "t": lambda job: job.estimated_start,
}

Test = Callable[[JobFacts], bool]


def _whole(text: str) -> int:
    return int(text)


_READERS: tuple[Callable[[str], int], ...] = (_whole, parse_duration, parse_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """``queues``, ``users``, ``states`` narrow what has to be read; ``tests`` decide."""

    queues: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    states: frozenset[str] = frozenset()  # Torque's letters; empty: all that are not over
    history: bool = False  # finished jobs too
    elements: bool = False  # an array's elements instead of the array
    arrays_only: bool = False
    tests: tuple[Test, ...] = ()

    def chooses(self, job: JobFacts) -> bool:
        return all(test(job) for test in self.tests)


def parse_qselect(argv: Sequence[str], personality: Personality, now: datetime) -> Selection:
    """Reads qselect's words; times are in the zone of ``now``.

    Raises:
        UsageError: for unknown options, operands, and values that are none.
    """
    command = parse("qselect", argv)
    if command.operands or command.rest:
        raise UsageError("qselect takes no operands: qselect [options]; see qselect --help")
    try:
        tests = tuple(_tests(command, now))
    except UsageError:
        raise
    except HpcmesosError as error:
        raise UsageError(str(error)) from None
    queues = (text.partition("@")[0] for text in command.all("q"))
    users = (user.partition("@")[0] for text in command.all("u") for user in split_list(text))
    return Selection(
        queues=tuple(queue for queue in queues if queue),
        users=tuple(dict.fromkeys(users)),
        states=_states("".join(command.all("s"))),
        history=command.has("x") or command.has("H"),
        elements=command.has("T") or personality is Personality.TORQUE,
        arrays_only=command.has("J"),
        tests=tests,
    )


def _tests(command: ParsedCommand, now: datetime) -> list[Test]:
    tests: list[Test] = []
    for text in command.all("N"):
        tests.append(_equals("name", text))
    for text in command.all("A"):
        tests.append(_equals("account", text))
    for text in command.all("P"):
        tests.append(_project(text))
    for text in command.all("r"):
        if text not in ("y", "n"):
            raise UsageError(f"illegal -r value '{text}'; y or n")
        tests.append(_equals("rerunable", text == "y"))
    for text in command.all("h"):
        tests.append(_holds(text))
    for text in command.all("c"):
        compare, value = _compared(text)
        tests.append(_checkpoint(compare, value))
    for text in command.all("p"):
        compare, value = _compared(text)
        tests.append(_priority(compare, parse_priority(value)))
    for text in command.all("a"):
        tests.append(_time("a", *_compared(text), now))
    for text in command.all("t"):
        if text[:1] not in _TIMES:
            raise UsageError(f"illegal -t value '{text}'; one of {', '.join(_TIMES)} and [op]date_time")
        tests.append(_time(text[0], *_compared(text[1:]), now))
    for text in command.all("l"):
        tests += [_resource(piece) for piece in split_list(text)]
    return tests


def _compared(text: str) -> tuple[Compare, str]:
    """``[op]value``; without an operator: equal."""
    match = _OPERATOR.match(text)
    return (operator.eq, text) if match is None else (_OPERATORS[match[0]], text[match.end() :])


def _equals(attribute: str, value: object) -> Test:
    return lambda job: getattr(job, attribute) == value


def _project(text: str) -> Test:
    return lambda job: (job.project or "_pbs_project_default") == text


def _holds(text: str) -> Test:
    if text != "n" and (not text or not set(text) <= set("uosp")):
        raise UsageError(f"illegal -h value '{text}'; letters of u, o and s, or n")
    wanted = set(text)
    return lambda job: set(job.hold_types) == wanted


def _checkpoint(compare: Compare, value: str) -> Test:
    return lambda job: compare(job.checkpoint, value)


def _priority(compare: Compare, value: int) -> Test:
    return lambda job: compare(job.priority, value)


def _time(letter: str, compare: Compare, text: str, now: datetime) -> Test:
    wanted = parse_execution_time(text, now)
    moment = _TIMES[letter]

    def test(job: JobFacts) -> bool:
        found = moment(job)
        return found is not None and compare(found.replace(microsecond=0), wanted)

    return test


def _resource(piece: str) -> Test:
    match = _RESOURCE.fullmatch(piece)
    if match is None:
        raise UsageError(f"illegal -l value '{piece}'; write e.g. ncpus.gt.2 or walltime.le.1:00:00")
    name, sign, text = match.groups()
    compare = _OPERATORS[".eq." if sign == "=" else sign]

    def test(job: JobFacts) -> bool:
        found = job.resource_list.get(name)
        return found is not None and compare(*_alike(found, text))

    return test


def _alike(found: str, wanted: str) -> tuple[Any, Any]:
    """Both as whole numbers, durations or sizes if they can be that, else as texts."""
    for read in _READERS:
        try:
            return read(found), read(wanted)
        except (ValueError, HpcmesosError):
            continue
    return found, wanted


def _states(letters: str) -> frozenset[str]:
    if not set(letters) <= _STATES:
        raise UsageError(
            f"illegal -s value '{letters}'; letters of EHQRTWSC (B, F, X in the pbspro personality)"
        )
    return frozenset({"F": "C", "B": "R", "X": "C"}.get(letter, letter) for letter in letters)
