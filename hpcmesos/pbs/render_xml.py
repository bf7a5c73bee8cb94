"""``qstat -x`` of Torque: an XML declaration, then one line; times are seconds since 1970."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime

from hpcmesos.pbs.attributes import VARIABLES, Value, job_attributes, variables_text
from hpcmesos.pbs.facts import JobFacts
from hpcmesos.pbs.personalities import Personality

_DECLARATION = '<?xml version="1.0"?>\n'
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_NOT_A_NAME = re.compile(r"[^A-Za-z0-9_.-]", re.ASCII)


def jobs_xml(jobs: Iterable[JobFacts], *, show_variables: bool = False) -> str:
    """The jobs with all their attributes; a document also when there are none."""
    return data(_job(job, show_variables) for job in jobs)


def data(elements: Iterable[str]) -> str:
    """The frame around jobs or nodes."""
    return f"{_DECLARATION}<Data>{''.join(elements)}</Data>\n"


def element(name: str, text: str) -> str:
    """``<name>text</name>``, escaped; what XML cannot hold becomes ``?``, line breaks become references."""
    escaped = _NOT_XML.sub("?", text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    one_line = escaped.replace("\n", "&#10;").replace("\r", "&#13;")
    tag = _NOT_A_NAME.sub("_", name)
    return f"<{tag}>{one_line}</{tag}>"


def _job(job: JobFacts, show_variables: bool) -> str:
    attributes = job_attributes(job, Personality.TORQUE, show_variables=show_variables)
    return f"<Job>{element('Job_Id', job.id)}{''.join(_attribute(*pair) for pair in attributes)}</Job>"


def _attribute(name: str, value: Value) -> str:
    if isinstance(value, datetime):
        return element(name, str(int(value.timestamp())))
    if not isinstance(value, Mapping):
        return element(name, str(value))
    if name == VARIABLES:
        return element(name, variables_text(value))
    return f"<{name}>{''.join(element(key, text) for key, text in value.items())}</{name}>"
