"""What mails and webhook calls say of a job. Pure; the words are Torque's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hpcmesos.model import Cause
from hpcmesos.queue.accounting import used
from hpcmesos.queue.notices import MAIL, WEBHOOK, Notice
from hpcmesos.queue.records import IDLE, AttemptRecord, EventRecord, JobRecord

# No encoded words ("=?"): what they stand for may be no address at all.
_ADDRESS = re.compile(r"(?!.*=\?)[\w.+=/~!#$%&'*?^{|}-]+(@[\w.-]+)?", re.ASCII)
_BY_ITSELF = (Cause.OK, Cause.APP, Cause.SIGNAL)
_LINES = 20
_SENTENCES = {
    "b": "Begun execution",
    "e": "Execution terminated",
    "a": "Aborted by PBS Server",
    "w": "GPUs are idle",
}
NEVER = "never"


def letter(event: EventRecord, job: JobRecord) -> str:
    """b(egin), e(nd), a(bort), as -m names them, w(arning); empty: nothing that one tells of."""
    if event.kind == "started":
        return "b"
    if event.kind == IDLE:
        return "w"
    if event.target != "C" or event.source == "C":
        return ""
    array_ended = job.cause is None and job.exit_status is not None
    return "e" if array_ended or job.cause in _BY_ITSELF else "a"


def wanted(letter: str, job: JobRecord) -> bool:
    """Whether the job's owner asked for mail about it (-m). e: any end; f: failures; elements of arrays only with j."""
    points = str(job.submission.get("mail_points") or "a")
    if letter == "" or "n" in points or "p" in points or (job.index is not None and "j" not in points):
        return False
    if letter in ("a", "w"):
        return "a" in points or "e" in points or "f" in points
    return letter in points or (letter == "e" and "f" in points and job.exit_status not in (0, None))


def recipients(job: JobRecord, domain: str) -> list[str]:
    """Addresses from -M, else the owner; what is no plain address is left out."""
    found = []
    for name in job.submission.get("mail_users") or [job.owner]:
        text = str(name)
        if not _ADDRESS.fullmatch(text) or text.startswith("-"):
            continue
        if "@" not in text:
            if domain == NEVER:
                continue
            text = f"{text}@{domain or job.submit_host or 'localhost'}"
        found.append(text)
    return list(dict.fromkeys(found))


def subject(job: JobRecord) -> str:
    return f"PBS JOB {job.id}"


def text(
    letter: str, job: JobRecord, attempt: AttemptRecord | None, hosts: Sequence[str], warning: str = ""
) -> str:
    """The body of a mail; of a failure with its cause, culprit and last lines."""
    lines = [f"PBS Job Id: {job.id}", f"Job Name:   {_plain(job.name)}"]
    if hosts:
        lines.append(f"Exec host:  {'+'.join(hosts)}")
    lines.append(_SENTENCES[letter])
    if letter == "w":
        lines.append(_plain(warning))
    elif letter != "b":
        lines += _end(job, attempt)
    return "\n".join(lines) + "\n"


def body(
    letter: str, job: JobRecord, attempt: AttemptRecord | None, hosts: Sequence[str], warning: str = ""
) -> dict[str, Any]:
    """What a webhook gets."""
    runs = letter in ("b", "w")
    ended = attempt is not None and not runs
    return {
        "event": {"b": "begin", "e": "end", "a": "abort", "w": "warning"}[letter],
        "job": str(job.id),
        "name": job.name,
        "owner": job.owner,
        "queue": job.queue,
        "project": job.project,
        "hosts": list(hosts),
        "warning": warning or None,
        "exit_status": None if runs else job.exit_status,
        "cause": None if runs or job.cause is None else str(job.cause),
        "culprit": attempt.culprit if ended and attempt else None,
        "succeeded": job.succeeded,
        "failed": job.failed,
        "last_lines": _last_lines(attempt) if ended and job.exit_status != 0 else [],
    }


def notices(
    event: EventRecord,
    job: JobRecord,
    attempt: AttemptRecord | None,
    hosts: Sequence[str],
    channels: Mapping[str, str],
) -> list[Notice]:
    """What is to be sent. ``channels``: those that the site has; of mail with its domain."""
    kind = letter(event, job)
    warning = str(event.payload.get("text", "")) if kind == "w" else ""
    found = []
    if MAIL in channels and wanted(kind, job):
        content = {"subject": subject(job), "text": text(kind, job, attempt, hosts, warning)}
        found += [
            Notice(channel=MAIL, recipient=one, content=content) for one in recipients(job, channels[MAIL])
        ]
    if WEBHOOK in channels and kind and job.index is None:
        content = body(kind, job, attempt, hosts, warning)
        found.append(Notice(channel=WEBHOOK, recipient=str(job.id), content=content))
    return found


def _end(job: JobRecord, attempt: AttemptRecord | None) -> list[str]:
    lines = [] if job.exit_status is None else [f"Exit_status={job.exit_status}"]
    if job.succeeded is not None:
        lines.append(f"elements: {job.succeeded} ended well, {job.failed} did not")
    if job.cause not in (None, Cause.OK):
        lines.append(f"cause={job.cause}")
    if job.comment:
        lines.append(f"comment={_plain(job.comment)}")
    if attempt is None:
        return lines
    if attempt.culprit:
        lines.append(f"culprit={_plain(attempt.culprit)}")
    lines += [f"resources_used.{name}={value}" for name, value in used(attempt).items()]
    if job.exit_status != 0 and (last := _last_lines(attempt)):
        lines += ["", f"Its last {len(last)} lines:", *last]
    return lines


def _last_lines(attempt: AttemptRecord | None) -> list[str]:
    if attempt is None:
        return []
    tail = attempt.stderr_tail or attempt.stdout_tail
    return [_plain(line) for line in tail.decode(errors="replace").splitlines()[-_LINES:]]


def _plain(text: str) -> str:
    """One line that does nothing to a terminal."""
    return "".join(char if char.isprintable() or char == "\t" else "?" for char in text)
