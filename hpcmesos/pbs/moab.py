"""The commands of Maui and Moab that old scripts and clients call: showq, checkjob, showstart, mdiag -j (T:contrib,
Maui's MUI.c). Pure; text for people, XML for nextflow and batchspawner.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta, tzinfo
from xml.sax.saxutils import quoteattr

from hpcmesos.pbs.attributes import time_text
from hpcmesos.pbs.facts import JobFacts
from hpcmesos.units import format_duration, parse_duration

_ACTIVE, _IDLE, _BLOCKED = "active", "eligible", "blocked"
_CLASSES: Mapping[str, str] = {"R": _ACTIVE, "E": _ACTIVE, "Q": _IDLE, "H": _BLOCKED, "W": _BLOCKED}
_STATES = {"R": "Running", "E": "Running", "Q": "Idle", "H": "UserHold", "W": "Deferred", "C": "Completed"}
_ROW = "{:<18} {:>8} {:>10} {:>5} {:>11} {:>20}\n"
_TITLES = (
    (_ACTIVE, "ACTIVE JOBS--------------------", "REMAINING", "STARTTIME"),
    (_IDLE, "IDLE JOBS----------------------", "WCLIMIT", "QUEUETIME"),
    (_BLOCKED, "BLOCKED JOBS----------------", "WCLIMIT", "QUEUETIME"),
)


def showq(jobs: Iterable[JobFacts], processors: int, zone: tzinfo) -> str:
    """Three tables. ``processors``: of the whole cluster."""
    sorted_in = _sorted_in(jobs)
    parts: list[str] = []
    for name, title, limit, time in _TITLES:
        parts.append(f"{title}\n{_ROW.format('JOBNAME', 'USERNAME', 'STATE', 'PROC', limit, time)}\n")
        parts += [_row(job, zone) for job in sorted_in[name]]
        parts.append("\n" if sorted_in[name] else "")
        if name == _ACTIVE:
            parts.append(_active_line(sorted_in[name], processors))
    numbers = [len(sorted_in[name]) for name, *_ in _TITLES]
    total = "Total Jobs: {}   Active Jobs: {}   Idle Jobs: {}   Blocked Jobs: {}\n"
    return "".join(parts) + "\n" + total.format(sum(numbers), *numbers)


def showq_xml(jobs: Iterable[JobFacts]) -> str:
    """``<Data>`` with a ``queue`` for each of active, eligible and blocked."""
    sorted_in = _sorted_in(jobs)
    queues = (
        f'<queue count="{len(found)}" option="{name}">{"".join(map(_xml_job, found))}</queue>'
        for name, found in sorted_in.items()
    )
    return f"<Data>{''.join(queues)}</Data>\n"


def mdiag_xml(jobs: Iterable[JobFacts]) -> str:
    """``mdiag -j ID --xml``."""
    return f"<Data>{''.join(map(_xml_job, jobs))}</Data>\n"


def submitted_xml(job_id: str) -> str:
    """``msub --xml``."""
    return f"<Data><job JobID={quoteattr(job_id)}/></Data>\n"


def checkjob(job: JobFacts, zone: tzinfo) -> str:
    """What is known of one job; clients look for State, Creds, Allocated Nodes and Completion Code."""
    limit = _limit(job)
    used = format_duration(job.walltime_used or 0)
    account = f"  account:{job.account}" if job.account else ""
    lines = [
        "",
        f"checking job {_number(job.id)}",
        "",
        f"AName: {job.name}",
        f"State: {_STATES[job.state]}{_completion(job, zone)}",
        f"Creds:  user:{job.owner}  group:{job.group or job.owner}{account}  class:{job.queue}",
        f"WallTime: {used} of {limit}",
        f"SubmitTime: {_time(job.ctime, zone)}",
        f"  (Time Queued  Total: {_queued(job)})",
        "",
    ]
    if job.start_time is not None:
        lines.append(f"StartTime: {_time(job.start_time, zone)}")
    lines += [
        f"Total Tasks: {_processors(job)}",
        "",
        f"Req[0]  TaskCount: {_processors(job)}  Partition: {job.server}",
    ]
    if job.exec_host:
        lines += ["Allocated Nodes:", "".join(f"[{node}:{slots}]" for node, slots in job.exec_host), ""]
    lines.append(f"IWD: {job.workdir}")
    lines.append(f"StartCount: {job.run_count}")
    lines.append(f"Flags: {'RESTARTABLE' if job.rerunable else ''}".rstrip())
    if job.pending_reason:
        lines.append(f"BLOCK MSG: {job.pending_reason}")
    return "\n".join(lines) + "\n\n"


def showstart(job: JobFacts, now: datetime, zone: tzinfo) -> str:
    """When a job starts at the earliest, as far as that is known."""
    first = f"job {_number(job.id)} requires {_processors(job)} procs for {_limit(job)}\n\n"
    start = job.start_time or job.estimated_start
    if job.state == "C":
        return f"{first}job has ended\n"
    if start is None:
        return (
            f"{first}Earliest start is not known: {job.pending_reason or 'it has not been looked at yet'}\n"
        )
    wait = format_duration(max(0.0, (start - now).total_seconds()))
    lines = [f"Earliest start in      {wait:>14} on {_time(start, zone)}"]
    if walltime := job.resource_list.get("walltime"):
        end = start + timedelta(seconds=parse_duration(walltime))
        left = format_duration(max(0.0, (end - now).total_seconds()))
        lines.append(f"Earliest completion in {left:>14} on {_time(end, zone)}")
    return first + "\n".join(lines) + f"\nBest Partition: {job.server}\n"


def _sorted_in(jobs: Iterable[JobFacts]) -> dict[str, list[JobFacts]]:
    found: dict[str, list[JobFacts]] = {_ACTIVE: [], _IDLE: [], _BLOCKED: []}
    for job in jobs:
        if job.state in _CLASSES:
            found[_CLASSES[job.state]].append(job)
    return found


def _row(job: JobFacts, zone: tzinfo) -> str:
    active = _CLASSES[job.state] == _ACTIVE
    left = _limit(job) if job.walltime_remaining is None else format_duration(job.walltime_remaining)
    time = job.start_time if active else job.qtime
    shown = _time(time, zone)[:19].rstrip()
    state = _STATES[job.state]
    return _ROW.format(_number(job.id), job.owner[:8], state, _processors(job), left, shown)


def _active_line(jobs: Sequence[JobFacts], processors: int) -> str:
    used = sum(_processors(job) for job in jobs)
    part = 100 * used / processors if processors else 0.0
    noun = "Active Job" if len(jobs) == 1 else "Active Jobs"
    return f"{len(jobs):>6} {noun:<12} {used:>5} of {processors:>4} Processors Active ({part:.2f}%)\n\n"


def _xml_job(job: JobFacts) -> str:
    fields = {
        "AllocNodeList": ",".join(node for node, _ in job.exec_host),
        "Class": job.queue,
        "JobID": _number(job.id),
        "JobName": job.name,
        "ReqProcs": str(_processors(job)),
        "State": _STATES[job.state],
        "SubmissionTime": "" if job.ctime is None else str(int(job.ctime.timestamp())),
        "StartTime": "" if job.start_time is None else str(int(job.start_time.timestamp())),
        "CompletionCode": "" if job.exit_status is None else str(job.exit_status),
        "User": job.owner,
    }
    written = " ".join(f"{name}={quoteattr(value)}" for name, value in fields.items() if value)
    return f"<job {written}/>"


def _completion(job: JobFacts, zone: tzinfo) -> str:
    if job.state != "C":
        return ""
    code = "CNCLD" if job.exit_status is None else str(job.exit_status)
    return f"  Completion Code: {code}  Time: {_time(job.comp_time, zone)}"


def _queued(job: JobFacts) -> str:
    if job.ctime is None or job.start_time is None:
        return "00:00:00"
    return format_duration((job.start_time - job.ctime).total_seconds())


def _limit(job: JobFacts) -> str:
    return job.resource_list.get("walltime", "99:23:59:59")


def _processors(job: JobFacts) -> int:
    return int(job.resource_list.get("ncpus", "1"))


def _number(job_id: str) -> str:
    """Moab's names of jobs have no server."""
    return job_id.partition(".")[0]


def _time(time: datetime | None, zone: tzinfo) -> str:
    return "N/A" if time is None else time_text(time, zone)
