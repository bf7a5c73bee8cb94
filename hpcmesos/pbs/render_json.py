"""``qstat -f -F json`` as OpenPBS writes it, the same in both personalities, with "Jobs" always there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from datetime import datetime, tzinfo

from hpcmesos.pbs.attributes import VARIABLES, Value, job_attributes, plain_text
from hpcmesos.pbs.facts import JobFacts
from hpcmesos.pbs.personalities import Personality

_ALWAYS_TEXT = frozenset({"Job_Name", "project", "Account_Name"})
_INTEGER = re.compile(r"0|-?[1-9]\d{0,14}", re.ASCII)

Json = str | int | dict[str, str | int]


def jobs_json(
    jobs: Iterable[JobFacts],
    zone: tzinfo | None,
    *,
    now: datetime,
    version: str,
    server: str,
    show_variables: bool = False,
) -> str:
    """One object; a finished job has state ``F`` and ``Exit_status``; whole numbers are numbers."""
    found: dict[str, dict[str, Json]] = {}
    for job in jobs:
        attributes = job_attributes(job, Personality.PBSPRO, show_variables=show_variables)
        found[job.id] = {name: _json_value(name, value, zone) for name, value in attributes}
    return document("Jobs", found, now=now, version=version, server=server)


def document(kind: str, found: Mapping[str, object], *, now: datetime, version: str, server: str) -> str:
    """The frame that OpenPBS puts around jobs and nodes."""
    frame = {"timestamp": int(now.timestamp()), "pbs_version": version, "pbs_server": server, kind: found}
    return json.dumps(frame, indent=4) + "\n"


def number_or_text(text: str) -> str | int:
    """A whole number as a number, anything else as it is."""
    return int(text) if _INTEGER.fullmatch(text) else text


def _json_value(name: str, value: Value, zone: tzinfo | None) -> Json:
    if isinstance(value, Mapping):
        return (
            dict(value) if name == VARIABLES else {key: number_or_text(text) for key, text in value.items()}
        )
    text = plain_text(value, zone)
    return text if name in _ALWAYS_TEXT else number_or_text(text)
