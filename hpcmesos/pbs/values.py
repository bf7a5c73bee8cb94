"""Small values of qsub's options: execution time, dependencies, attributes, names (qsub(1B) of both families)."""

from __future__ import annotations

import calendar
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from hpcmesos.errors import BadDependency, InvalidValue
from hpcmesos.gang.frameworks import ROLES
from hpcmesos.pbs.quoting import split_list, unquote

MAX_NAME_LENGTH = 236
"""Characters of a job's name: ``NAME.oSEQ-INDEX`` still fits into the 255 bytes of a file name."""

PRIORITY_RANGE = (-1024, 1023)
MOST_RECIPIENTS = 50
"""Of a job's mail."""

_DATE_TIME = re.compile(r"((?:(?:(?:\d\d)?\d\d)?\d\d)?\d\d)?(\d\d)(\d\d)(?:\.(\d\d))?", re.ASCII)
_ATTRIBUTE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\s*=", re.ASCII)
_PRIORITY = re.compile(r"[+-]?\d{1,4}", re.ASCII)
_UMASK = re.compile(r"0?o?[0-7]{1,4}", re.ASCII)
_NAME_REFUSED = re.compile(r"[\s/\x00-\x1f\x7f]")
_APPENDED = frozenset({"stagein", "stageout", "x"})
_COUNT = re.compile(r"\s*\d+\s*", re.ASCII)
_NUMERIC = frozenset({"umask", "block", "interactive"})

_CHOICES = {
    "j": re.compile(r"oe|eo|n"),
    "k": re.compile(r"n|(?!.*(.).*\1)d?[oed]*[oe][oed]*"),
    "m": re.compile(r"[npabefj]+"),
    "r": re.compile(r"[yn]"),
}
_ENDS = ("", "ok", "notok", "any")
DEPENDENCY_KINDS = frozenset(
    {"on", "synccount", "syncwith", "afterstartarray", "beforestartarray"}
    | {f"{side}{end}" for side in ("after", "before") for end in _ENDS}
    | {f"{side}{end}array" for side in ("after", "before") for end in _ENDS[1:]}
)
_COUNTED = frozenset({"on", "synccount"})


@dataclass(frozen=True, slots=True)
class Dependency:
    """One term of ``-W depend=``: ``kind`` (``afterok``, ``on``, ...) and its job ids (or the count) as text."""

    kind: str
    jobs: tuple[str, ...]

    def __str__(self) -> str:
        return ":".join((self.kind, *self.jobs))


def parse_depend(text: str) -> tuple[Dependency, ...]:
    """Reads ``KIND:ID[:ID...][,KIND:...]``.

    Raises:
        BadDependency: for an unknown kind, a term without job ids, and a count that is none.
    """
    return tuple(_depend_term(term) for term in split_list(unquote(text)))


def parse_attributes(text: str) -> dict[str, str]:
    """Reads ``NAME=VALUE[,NAME=VALUE...]`` of ``-W``; a piece without ``NAME=`` continues the value before it.

    Raises:
        InvalidValue: when the first piece names no attribute.
    """
    found: dict[str, str] = {}
    name = ""
    for piece in split_list(text.replace("group_list:", "group_list=", 1)):
        if _ATTRIBUTE.match(piece) and not (name == "framework" and _is_role(piece)):
            name, _, value = (part.strip() for part in piece.partition("="))
            merge_attribute(found, name, value)
        elif name:
            found[name] += f",{piece}"
        else:
            raise InvalidValue(f"illegal -W value '{text}'; write attribute=value, e.g. depend=afterok:12")
    return found


def _is_role(piece: str) -> bool:
    """Whether ``piece``, behind ``framework=``, goes on with it: ``ps=1``; a misspelt role too, to be refused."""
    name, _, value = (part.strip() for part in piece.partition("="))
    return name in ROLES or (name not in _NUMERIC and bool(_COUNT.fullmatch(value)))


def merge_attribute(found: dict[str, str], name: str, value: str) -> None:
    """Later values replace earlier ones, but for the lists stagein, stageout and x, which grow."""
    found[name] = f"{found[name]},{value}" if name in _APPENDED and found.get(name) else value


def parse_variables(text: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Reads ``NAME[=VALUE],...`` of ``-v``; a bare name takes its value from ``environ``, and is left out if unset.

    Raises:
        InvalidValue: for an empty name.
    """
    found: dict[str, str] = {}
    for piece in split_list(text):
        name, equals, value = piece.partition("=")
        if not name.strip():
            raise InvalidValue(f"illegal -v value '{text}'; write NAME or NAME=VALUE, joined by commas")
        if equals:
            found[name.strip()] = value
        elif name in environ:
            found[name] = environ[name]
    return found


def bare_names(text: str) -> tuple[str, ...]:
    """The names in a ``-v`` value that have no value of their own."""
    return tuple(piece for piece in split_list(text) if "=" not in piece)


def parse_execution_time(text: str, now: datetime) -> datetime:
    """Reads ``[[[[CC]YY]MM]DD]hhmm[.SS]`` in the zone of ``now``.

    Without a day it is the next such time, without a month the next month in which that day lies ahead.

    Raises:
        InvalidValue: when the text is not of that form, or names no date.
    """
    match = _DATE_TIME.fullmatch(text)
    wrong = InvalidValue(
        f"illegal -a value '{text}'; write [[[[CC]YY]MM]DD]hhmm[.SS], e.g. 2359 or 202612312359"
    )
    if match is None:
        raise wrong
    date, hour, minute, second = match.groups()
    try:
        time = now.replace(hour=int(hour), minute=int(minute), second=int(second or 0), microsecond=0)
        return _on_date(time, date or "", now)
    except (ValueError, OverflowError):
        raise wrong from None


def check_name(text: str) -> str:
    """The job's name, if it is one.

    Raises:
        InvalidValue: when it is empty, longer than ``MAX_NAME_LENGTH``, or holds blanks, slashes or control characters.
    """
    if not text or len(text) > MAX_NAME_LENGTH:
        raise InvalidValue(
            f"illegal -N value: a name has 1 to {MAX_NAME_LENGTH} characters, this one {len(text)}"
        )
    if _NAME_REFUSED.search(text) or not text.isprintable():
        raise InvalidValue(
            f"illegal -N value '{text}': a name holds no blanks, slashes or control characters"
        )
    return text


def check_printable(option: str, text: str) -> str:
    """The value of an option, if it is one line of characters that show as themselves.

    Such values come to stand in accounting records, headers of mails and on the terminals of others.

    Raises:
        InvalidValue: it holds control characters, line breaks, or characters that change how others are shown.
    """
    if not text.isprintable():
        raise InvalidValue(f"illegal -{option} value '{text}': it holds characters that cannot be printed")
    return text


def check_choice(command: str, option: str, value: str) -> str:
    """The value of -j, -k, -m or -r, if it is one; InvalidValue otherwise."""
    if not _CHOICES[option].fullmatch(value):
        raise InvalidValue(f"illegal -{option} value '{value}'; see {command} --help")
    return value


def default_name(path: str) -> str:
    """The name of a job whose script or program is ``path``."""
    name = _NAME_REFUSED.sub("_", path.rstrip("/").rpartition("/")[2])
    shown = "".join(letter if letter.isprintable() else "_" for letter in name)
    return shown[:MAX_NAME_LENGTH] or "STDIN"


def parse_priority(text: str) -> int:
    """An integer from -1024 to 1023; InvalidValue otherwise."""
    low, high = PRIORITY_RANGE
    if not _PRIORITY.fullmatch(text) or not low <= int(text) <= high:
        raise InvalidValue(f"illegal -p value '{text}'; a priority is an integer from {low} to {high}")
    return int(text)


def parse_mail_users(text: str) -> tuple[str, ...]:
    """Addresses by commas. Raises InvalidValue for more than a job may have mail sent to."""
    users = split_list(text)
    if len(users) > MOST_RECIPIENTS:
        raise InvalidValue(f"-M names {len(users)} recipients; at most {MOST_RECIPIENTS}")
    return users


def parse_umask(text: str, *, decimal: bool = False) -> int:
    """A mask: octal, with ``decimal`` (Torque) only when it begins with a 0; InvalidValue otherwise."""
    try:
        if decimal and text.isascii() and text.isdigit() and not text.startswith("0"):
            mask = int(text)
        elif _UMASK.fullmatch(text):
            mask = int(text.replace("o", ""), 8)
        else:
            mask = -1
    except ValueError:  # more digits than Python reads
        mask = -1
    if not 0 <= mask <= 0o777:
        raise InvalidValue(f"illegal umask '{text[:40]}'; write an octal mask, e.g. umask=022")
    return mask


def parse_boolean(name: str, text: str) -> bool:
    """``true``/``yes``/``y``/``t``/``1`` and their opposites, in any case; InvalidValue otherwise."""
    word = text.strip().lower()
    if word in {"true", "t", "yes", "y", "1"}:
        return True
    if word in {"false", "f", "no", "n", "0"}:
        return False
    raise InvalidValue(f"illegal value '{text}' of {name}; write true or false")


def _depend_term(term: str) -> Dependency:
    kind, *jobs = (part.strip() for part in term.split(":"))
    if kind not in DEPENDENCY_KINDS:
        raise BadDependency(f"unknown dependency '{kind}' in '{term}'; e.g. afterok:12, afterany:12:13, on:2")
    if not jobs or not all(jobs):
        raise BadDependency(f"dependency '{term}' lacks a job id; write e.g. afterok:12")
    if kind in _COUNTED and not (len(jobs) == 1 and jobs[0].isascii() and jobs[0].isdigit()):
        raise BadDependency(f"dependency '{term}' takes one count, e.g. {kind}:2")
    return Dependency(kind, tuple(jobs))


def _on_date(time: datetime, date: str, now: datetime) -> datetime:
    """``time`` on the day that ``date`` (``[[[CC]YY]MM]DD``) names."""
    if not date:
        return time if time > now else time + timedelta(days=1)
    day = int(date[-2:])
    if len(date) > 2:
        century = date[:-6] or str(now.year // 100)
        year = int(century + date[-6:-4]) if len(date) > 4 else now.year
        return time.replace(year=year, month=int(date[-4:-2]), day=day)
    months = (divmod(now.year * 12 + now.month - 1 + offset, 12) for offset in range(3))
    for year, month in months:
        if 1 <= day <= calendar.monthrange(year, month + 1)[1]:
            found = time.replace(year=year, month=month + 1, day=day)
            if found > now:
                return found
    raise ValueError(date)
