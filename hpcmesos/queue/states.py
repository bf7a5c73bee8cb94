"""The one table of a job's states, and the table from an attempt's end to Exit_status. Pure.

``docs/state-machine.md`` is rendered from here; a test compares them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from hpcmesos.errors import IllegalTransition
from hpcmesos.model import Cause, JobState

Q, H, W, R, E, C = (
    JobState.QUEUED,
    JobState.HELD,
    JobState.WAITING,
    JobState.RUNNING,
    JobState.EXITING,
    JobState.COMPLETE,
)

INITIAL: Mapping[JobState, str] = MappingProxyType(
    {Q: "submit", H: "submit with a hold or a dependency", W: "submit with an execution time"}
)
"""The states in which a job may be inserted."""

TRANSITIONS: Mapping[tuple[JobState, JobState], str] = MappingProxyType(
    {
        (Q, R): "start",
        (Q, H): "hold",
        (Q, W): "execution time set",
        (Q, C): "delete",
        (H, Q): "release",
        (H, W): "release before its execution time",
        (H, C): "delete",
        (W, Q): "due",
        (W, H): "hold",
        (W, C): "delete",
        (R, Q): "requeue",
        (R, H): "requeue with a hold",
        (R, W): "requeue before its execution time",
        (R, E): "end",
        (R, C): "end with output delivered",
        (E, C): "delivered",
    }
)
"""Every edge with what triggers it. Beside them a job that is not complete may change fields without moving."""

LIVE = frozenset(JobState) - {C}

_DELETED, _DELETED_BY_KILL = 256 + 15, 256 + 9
_WALLTIME = {"torque": -11, "pbspro": -29}  # JOB_EXEC_OVERLIMIT_WT; JOB_EXEC_KILL_WALLTIME
_OUT_OF_MEMORY = -10  # Torque JOB_EXEC_OVERLIMIT_MEM
_RETRY = -3  # JOB_EXEC_RETRY
_NO_CODE = -1  # JOB_EXEC_FAIL1


def check(source: JobState, target: JobState) -> str:
    """What triggers the edge; "change" when a live job stays where it is.

    Raises:
        IllegalTransition: the table has no such edge.
    """
    if source is target and source in LIVE:
        return "change"
    try:
        return TRANSITIONS[source, target]
    except KeyError:
        raise IllegalTransition(f"a job cannot go from {source} to {target}") from None


def exit_status(
    cause: Cause, code: int | None, signal: int | None, forced: bool, personality: str = "torque"
) -> int:
    """Exit_status of a job whose last attempt ended so.

    The script's own end (``code``, or 256 + ``signal``) unless infrastructure ended it. ``forced``: it took SIGKILL.
    An end that reports neither code nor signal is -1.
    """
    match cause:
        case Cause.DELETED | Cause.GPU_IDLE:
            return _DELETED_BY_KILL if forced else _DELETED
        case Cause.WALLTIME:
            return _WALLTIME[personality]
        case Cause.OOM:
            return _OUT_OF_MEMORY
        case Cause.NODE_LOST | Cause.GPU_LOST | Cause.START_FAILED | Cause.PREEMPTED:
            return _RETRY
        case Cause.OK | Cause.APP | Cause.SIGNAL:
            if signal is not None:
                return 256 + signal
            return _NO_CODE if code is None else code


def render() -> str:
    """The table as Markdown with a Mermaid diagram."""
    names = {state: state.name.capitalize() for state in JobState}
    lines = ["# State machines", "", "Rendered from `hpcmesos/queue/states.py`; a test compares them.", ""]
    lines += ["## Job", "", "```mermaid", "stateDiagram-v2"]
    lines += [f"    [*] --> {state}: {trigger}" for state, trigger in INITIAL.items()]
    lines += [f"    {a} --> {b}: {trigger}" for (a, b), trigger in TRANSITIONS.items()]
    lines += [f"    {C} --> [*]", "```", "", "| state | name | goes to |", "|---|---|---|"]
    for state in JobState:
        targets = [f"{b} ({trigger})" for (a, b), trigger in TRANSITIONS.items() if a is state]
        lines.append(f"| {state} | {names[state]} | {', '.join(targets) or 'nowhere'} |")
    return "\n".join(lines) + "\n\n" + _REST


_REST = """\
A job that is not complete may also change fields (priority, comment, request, ...) where it is. Only
`LeaderTransaction.move_jobs` changes a state; the UPDATE names the source state, and the event is written in the same
transaction. Every edge that is not in this table raises `IllegalTransition` before anything is written.

## Attempt

*Created* by the commit of START, together with its shares and GPU allocations (all of them or none); from then on it
counts as running on every member. *Ended* once, by the head's report or by the leader's verdict (NODE_LOST,
START_FAILED); the first end stays. A job that is requeued gets a new attempt with the next number; an ended attempt
never comes back.

## Share (one attempt's part of one node)

*Live* from the commit of START. *Released* when that node reports that its part is over and all processes are gone, or
when an operator or the node's new boot id says that they are. A share may outlive its attempt's end, for every node
reports by itself. Its CPUs and memory count as used until it is released.

## GPU

`free` -> `allocated` (START) -> `cleaning` (share released) -> `free` (the node found it clean), or `quarantined`
after 60 s. `lost`: the node no longer shows it, or it failed; it comes back as what the node reports.
`unknown-attempt`: its node says that it is allocated, and the database knows no allocation; an operator decides. A GPU
with a live allocation never becomes free or cleaning by a report; it does by the release of its share.
"""
