"""A job's attributes in the order that clients' patterns rely on, as values that each format then writes its way.

Order and names: T:src/server/job_attr_def.c and the output of ``qstat -f`` of Torque 6.1 and OpenPBS 23.06. Clients
need Job_Name right before Job_Owner, and job_state right before queue.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime, tzinfo

from hpcmesos.pbs.facts import JobFacts
from hpcmesos.pbs.personalities import (
    Personality,
    element_name,
    exec_host_text,
    exit_field,
    start_field,
    state_letter,
)
from hpcmesos.units import parse_duration

Value = str | int | bool | datetime | Mapping[str, str]
"""A mapping is shown as NAME.KEY (text), as an element with children (XML), or as an object (JSON)."""

VARIABLES = "Variable_List"

_SUBSTATES = {"Q": 10, "H": 20, "W": 30, "R": 42, "E": 50, "C": 59}
_SUBSTATE_BEGUN = 70  # of an array
_SUBSTATE_FINISHED_PBSPRO = {True: 92, False: 93}  # ended with 0, ended otherwise
_ORIGIN = tuple(
    f"PBS_O_{name}"
    for name in (
        *("QUEUE", "HOME", "LOGNAME", "PATH", "MAIL", "SHELL", "TZ", "LANG"),
        *("WORKDIR", "HOST", "SERVER", "SYSTEM"),
    )
)
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def job_attributes(
    job: JobFacts, personality: Personality, *, show_variables: bool
) -> Iterator[tuple[str, Value]]:
    """The attributes that have a value, in order.

    ``show_variables`` is for the job's owner and operators: Variable_List and the words of qsub, which may repeat it.
    In a list with other people's jobs the caller leaves ``environment`` and ``submit_args`` of those empty.
    """
    for name, value in _all_attributes(job, personality, show_variables):
        if value is not None and value != "" and value != {}:
            yield name, value


def time_text(time: datetime, zone: tzinfo | None) -> str:
    """``Tue Mar  3 10:00:00 2026`` in ``zone``, whatever the locale."""
    local = time.astimezone(zone) if zone is not None else time
    clock = f"{local.hour:02d}:{local.minute:02d}:{local.second:02d}"
    return f"{_DAYS[local.weekday()]} {_MONTHS[local.month - 1]} {local.day:2d} {clock} {local.year}"


def gpu_text(job: JobFacts) -> str:
    """``n1-gpu/0+n1-gpu/1``: Torque's exec_gpus."""
    return "+".join(f"{node}-gpu/{index}" for node, _, index in job.exec_gpus)


def plain_text(value: Value, zone: tzinfo | None) -> str:
    """A value that is no mapping, as text."""
    if isinstance(value, datetime):
        return time_text(value, zone)
    return str(value)


def variables_text(variables: Mapping[str, str]) -> str:
    """``A=1,B=2``: Variable_List as one text."""
    return ",".join(f"{name}={value}" for name, value in variables.items())


def _pbspro_used(job: JobFacts) -> dict[str, str]:
    """OpenPBS also tells the CPUs given and how busy they were, in per cent of one."""
    used = dict(job.resources_used)
    if "walltime" in used and (cpus := job.resource_list.get("ncpus")):
        used["ncpus"] = cpus
        seconds = max(1, parse_duration(used["walltime"]))
        used["cpupercent"] = str(100 * parse_duration(used.get("cput", "0")) // seconds)
    return dict(sorted(used.items()))


def _in_order(variables: Mapping[str, str]) -> dict[str, str]:
    """Where the job comes from first, as both families have it; clients look for ``PBS_O_WORKDIR=...,PBS``."""
    origin = {name: variables[name] for name in _ORIGIN if name in variables}
    return origin | dict(sorted((name, value) for name, value in variables.items() if name not in origin))


def _all_attributes(
    job: JobFacts, personality: Personality, private: bool
) -> Iterator[tuple[str, Value | None]]:
    torque = personality is Personality.TORQUE
    yield "Job_Name", element_name(job.name, job.array_index, personality)
    yield "Job_Owner", f"{job.owner}@{job.submit_host}"
    yield "resources_used", job.resources_used if torque else _pbspro_used(job)
    is_array, live = job.array is not None, job.in_live_array
    yield "job_state", state_letter(job.state, personality, is_array=is_array, in_live_array=live)
    yield "queue", job.queue
    yield "server", job.server
    yield "Account_Name", job.account
    yield "Checkpoint", job.checkpoint
    yield "ctime", job.ctime
    yield "depend", job.depend
    yield "Error_Path", job.error_path
    yield "exec_host", exec_host_text(job.exec_host, personality)
    if torque:
        yield "exec_gpus", gpu_text(job)
    else:
        yield "exec_vnode", "+".join(f"({node}:ncpus={slots})" for node, slots in job.exec_host)
    yield "exec_gpu_uuids", "+".join(f"{node}/{uuid}" for node, uuid, _ in job.exec_gpus)
    yield "Execution_Time", job.execution_time
    yield "Hold_Types", job.hold_types
    yield "interactive", "True" if job.interactive else None
    yield "Join_Path", job.join
    yield "Keep_Files", job.keep
    yield "Mail_Points", job.mail_points
    yield "Mail_Users", job.mail_users
    yield "mtime", job.mtime
    yield "Output_Path", job.output_path
    yield "Priority", job.priority
    yield "qtime", job.qtime
    yield "Rerunable", str(job.rerunable)
    yield "Resource_List", dict(sorted(job.resource_list.items()))
    yield "session_id", job.session_id
    if not torque:
        yield start_field(personality), job.start_time
    yield "substate", _substate(job, torque)
    yield VARIABLES, _in_order(job.environment) if private else None
    yield "etime", job.etime
    yield from _torque_end(job, private) if torque else _pbspro_end(job, private)
    yield from _ours(job)


def _torque_end(job: JobFacts, private: bool) -> Iterator[tuple[str, Value | None]]:
    yield "euser", job.owner
    yield "egroup", job.group
    yield "queue_type", "E"
    yield "comment", job.comment or job.pending_reason
    yield exit_field(Personality.TORQUE), job.exit_status
    yield "submit_args", job.submit_args if private else None
    yield start_field(Personality.TORQUE), job.start_time
    yield "start_count", max(job.run_count, 1) if job.start_time else job.run_count
    yield "fault_tolerant", "False"
    yield "comp_time", job.comp_time
    yield "job_array_request", None if job.array is None else str(job.array)
    yield "job_array_id", job.array_index
    yield from _progress(job)
    yield "job_radix", 0
    yield "submit_host", job.submit_host
    yield "init_work_dir", job.workdir
    yield "project", job.project
    if job.walltime_remaining is not None:
        yield "Walltime", {"Remaining": str(job.walltime_remaining)}


def _pbspro_end(job: JobFacts, private: bool) -> Iterator[tuple[str, Value | None]]:
    yield "comment", job.comment or job.pending_reason
    yield "run_count", job.run_count or None
    yield exit_field(Personality.PBSPRO), job.exit_status
    yield "Submit_arguments", job.submit_args if private else None
    if job.array is not None:
        yield "array", "True"
        yield from _progress(job)
    yield "array_id", job.array_id
    yield "array_index", job.array_index
    yield "project", job.project or "_pbs_project_default"
    yield "Submit_Host", job.submit_host
    if job.array is not None:
        yield "max_run_subjobs", job.array.limit


def _progress(job: JobFacts) -> Iterator[tuple[str, Value | None]]:
    """How far an array is, as OpenPBS writes it; Torque has no words for it."""
    if job.array is None:
        return
    counts = job.array_counts
    waiting = sum(counts.get(state, 0) for state in "QHW")
    numbers = f"Running:{counts.get('R', 0)} Exiting:{counts.get('E', 0)} Expired:{counts.get('C', 0)}"
    yield "array_state_count", f"Queued:{waiting} {numbers}"
    yield "array_indices_submitted", str(replace(job.array, limit=None))
    yield "array_indices_remaining", job.array_remaining


def _ours(job: JobFacts) -> Iterator[tuple[str, Value | None]]:
    """What neither family has: why the attempt ended, and each step and rank of it."""
    yield "end_cause", job.cause
    for number, record in enumerate(job.earlier, 1):
        yield f"attempt_{number}", ";".join(f"{name}={value}" for name, value in record.items())
    yield "estimated_start", job.estimated_start
    yield "first_failed_rank", job.first_failed
    yield "last_lines", job.last_lines
    for number, record in enumerate(job.steps):
        yield f"step_{number}", record
    for number, record in enumerate(job.ranks):
        yield f"rank_{number}", ";".join(f"{name}={value}" for name, value in record.items())
    yield from job.extra.items()


def _substate(job: JobFacts, torque: bool) -> int | None:
    if job.substate is not None:
        return job.substate
    if job.array is not None and job.state == "R":
        return _SUBSTATE_BEGUN
    if job.state == "C" and not torque:
        return _SUBSTATE_FINISHED_PBSPRO[job.exit_status == 0]
    return _SUBSTATES.get(job.state)
