"""tracejob's text (T:src/tools/tracejob.c; OpenPBS as observed). Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, tzinfo
from typing import Any

from hpcmesos.units import format_duration

_INDENT = 26


@dataclass(frozen=True, slots=True)
class Line:
    """``source``: S the server, A accounting, L the scheduler, M a node."""

    at: datetime
    source: str
    text: str


def render(job: str, lines: Iterable[Line], zone: tzinfo, width: int = 0) -> str:
    """The heading and the lines; ``width``: columns to fold them at, 0: not at all."""
    shown = []
    for line in lines:
        text = f"{line.at.astimezone(zone):%m/%d/%Y %H:%M:%S}".ljust(20) + f" {line.source:<5}{line.text}"
        if width > _INDENT + 10:
            folded = textwrap.wrap(text, width, subsequent_indent=" " * _INDENT, break_on_hyphens=False)
            text = "\n".join(folded)
        shown.append(f"{text}\n")
    return f"\nJob: {job}\n\n{''.join(shown)}"


def event_text(
    kind: str, payload: Mapping[str, Any], server: str, usage: Mapping[str, float]
) -> Iterator[str]:
    """An event of ours in the words that tools look for; ``usage``: of the last attempt."""
    user = f"{payload.get('user') or 'master'}@{server}"
    match kind:
        case "started":
            nodes = "+".join(map(str, payload.get("nodes", ())))
            yield f"Job Run at request of Scheduler@{server} on {nodes}"
        case "ended":
            yield f"Exit_status={payload.get('exit_status')} {_used(usage)}".rstrip()
        case "deleted" | "purged":
            yield f"Job deleted at request of {user}"
        case "held" | "released":
            yield f"Holds {payload.get('holds') or 'none'} set at request of {user}"
        case "altered":
            yield f"Job Modified at request of {user}"
        case "moved":
            yield f"Job moved from {payload.get('from')} to {payload.get('to')} at request of {user}"
        case "signalled":
            yield f"Job sent signal {payload.get('signal')} at request of {user}"
        case "rerun wished":
            yield f"Job rerun at request of {user}"
        case "requeued":
            yield f"Job requeued: attempt {payload.get('attempt')} ended, cause {payload.get('cause')}"
        case _:
            told = " ".join(f"{name}={value}" for name, value in payload.items())
            yield f"{kind} {told}".rstrip()


def _used(usage: Mapping[str, float]) -> str:
    words = []
    if "cput" in usage:
        words.append(f"resources_used.cput={format_duration(usage['cput'])}")
    if "mem" in usage:
        words.append(f"resources_used.mem={int(usage['mem']) // 1024}kb")
    if "walltime" in usage:
        words.append(f"resources_used.walltime={format_duration(usage['walltime'])}")
    return " ".join(words)
