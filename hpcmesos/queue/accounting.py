"""PBS accounting lines: ``MM/DD/YYYY HH:MM:SS;TYPE;JOBID;key=value ...`` (Torque src/server/accounting.c), and their
files, one a day, as accounting tools expect them under server_priv/accounting.

Formatting is pure; times are written in the zone of the datetimes that come in.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, tzinfo
from pathlib import Path

import msgspec

from hpcmesos.queue.records import AttemptRecord, JobRecord, ShareRecord
from hpcmesos.units import format_duration


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One record. ``kind``: Q queued, S started, E ended, D deleted by a user, A aborted by the server, R requeued."""

    at: datetime
    kind: str
    job: str
    fields: Mapping[str, str]

    def __str__(self) -> str:
        return self.line(f"{self.at:{_STAMP}}")

    def line(self, stamp: str) -> str:
        """The record with this for its time."""
        text = " ".join([f"{key}={value}" for key, value in self.fields.items()])
        if text.count(" ") >= len(self.fields) or not text.isprintable():
            text = " ".join(f"{key}={_one_word(value)}" for key, value in self.fields.items())
        return f"{stamp};{self.kind};{self.job};{text}"


_STAMP = "%m/%d/%Y %H:%M:%S"


def queued(job: JobRecord, at: datetime) -> Entry:
    indices = {"array_indices": str(job.array_spec)} if job.array_spec else {}
    return Entry(at, "Q", job_name(job), {"queue": job.queue, **indices})


def started(job: JobRecord, shares: Sequence[ShareRecord], at: datetime) -> Entry:
    return Entry(at, "S", job_name(job), _start_fields(job, shares))


def ended(job: JobRecord, attempt: AttemptRecord, shares: Sequence[ShareRecord], at: datetime) -> Entry:
    """``job``: complete or exiting, with its exit status."""
    fields = {
        **_start_fields(job, shares),
        "session": str(int(attempt.usage.get("session", 0))),
        "total_execution_slots": str(sum(share.slots for share in shares)),
        "unique_node_count": str(len(shares)),
        "end": _epoch(attempt.ended_at),
        "Exit_status": str(job.exit_status),
        **{f"resources_used.{name}": value for name, value in used(attempt).items()},
        **{f"resources_used.{name}": text for name, text in gpu_used(attempt.usage).items()},
    }
    return Entry(at, "E", job_name(job), fields)


def used(attempt: AttemptRecord) -> dict[str, str]:
    """What an attempt used, as PBS writes it."""
    usage = attempt.usage
    return {
        "cput": format_duration(usage.get("cput", 0)),
        "mem": f"{int(usage.get('mem', 0)) // 1024}kb",
        "walltime": format_duration(usage.get("walltime", 0)),
    }


def gpu_used(usage: Mapping[str, float]) -> dict[str, str]:
    """What was measured of an attempt's real GPUs, as it is shown; empty: nothing was."""
    forms = {
        "gpu_percent": ("gpu_percent", "{:.0f}", 1),
        "gpu_percent_max": ("gpu_percent_max", "{:.0f}", 1),
        "gpu_mem": ("gpu_memory", "{:.0f}kb", 1024),
        "gpu_energy": ("gpu_energy", "{:.0f}J", 1),
    }
    return {
        name: form.format(usage[figure] // unit if unit > 1 else usage[figure])
        for name, (figure, form, unit) in forms.items()
        if figure in usage
    }


def deleted(job: JobRecord, requestor: str, at: datetime, name: str = "") -> Entry:
    """``requestor``: a user of this server. ``name``: of elements of an array that never got a row."""
    return Entry(at, "D", name or job_name(job), {"requestor": f"{requestor}@{job.server}"})


def array_ended(job: JobRecord, at: datetime) -> Entry:
    """An array is complete; what its elements used is in their own records (OpenPBS)."""
    fields = {
        "user": job.owner,
        **_job_fields(job),
        "array_indices": str(job.array_spec),
        "end": str(int(at.timestamp())),
        "Exit_status": str(job.exit_status),
    }
    return Entry(at, "E", job_name(job), fields)


def aborted(job: JobRecord, at: datetime) -> Entry:
    """The server gave the job up, e.g. because a dependency can never be met."""
    return Entry(at, "A", job_name(job), {"queue": job.queue})


def requeued(job: JobRecord, at: datetime) -> Entry:
    return Entry(at, "R", job_name(job), {"queue": job.queue})


def job_name(job: JobRecord) -> str:
    return str(job.id)


class AccountingFiles:
    """Appends entries to ``directory/YYYYMMDD``, by the day of each entry in ``zone`` (None: as the entry has it)."""

    def __init__(self, directory: Path, zone: tzinfo | None = None) -> None:
        self._directory = directory
        self._zone = zone
        directory.mkdir(parents=True, exist_ok=True)

    def append(self, entries: Iterable[Entry]) -> None:
        """One write a file; an entry is whole or absent for readers."""
        days: defaultdict[str, list[str]] = defaultdict(list)
        stamps: dict[datetime, tuple[str, str]] = {}  # of many entries, most are of one second
        for entry in entries:
            second = entry.at.replace(microsecond=0)
            if second not in stamps:
                local = second.astimezone(self._zone) if self._zone else second
                stamps[second] = f"{local:%Y%m%d}", f"{local:{_STAMP}}"
            day, stamp = stamps[second]
            days[day].append(f"{entry.line(stamp)}\n")
        for day, lines in days.items():
            with (self._directory / day).open("ab", buffering=0) as file:
                file.write("".join(lines).encode())


def _start_fields(job: JobRecord, shares: Sequence[ShareRecord]) -> dict[str, str]:
    submission = job.submission
    fields = {"user": job.owner, "group": job.egroup or job.owner}
    if account := submission.get("account"):
        fields["account"] = str(account)
    hosts = "+".join(f"{share.node}/{slot}" for share in shares for slot in range(share.slots))
    fields |= {**_job_fields(job), "exec_host": hosts}
    resources = submission.get("resource_list", {})
    return fields | {f"Resource_List.{name}": str(value) for name, value in sorted(resources.items())}


def _job_fields(job: JobRecord) -> dict[str, str]:
    created = _epoch(job.created_at)
    return {
        "jobname": job.name,
        "queue": job.queue,
        "ctime": created,
        "qtime": created,
        "etime": _epoch(job.queued_at) if job.queued_at else created,
        "start": _epoch(job.started_at),
        "owner": f"{job.owner}@{job.submit_host}",
    }


def _epoch(at: datetime | None) -> str:
    return "0" if at is None else str(int(at.timestamp()))


def _one_word(value: str) -> str:
    """Fields are separated by spaces and records by lines."""
    if value.isprintable() and " " not in value:
        return value
    return "".join("_" if char.isspace() or not char.isprintable() else char for char in value)
