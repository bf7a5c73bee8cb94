"""The tables of qstat, column for column (T:src/cmds/qstat.c; OpenPBS 23.06 as observed)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from hpcmesos.pbs.facts import JobFacts, QueueFacts, ServerFacts, element_id
from hpcmesos.pbs.personalities import Personality, element_name, exec_host_text, state_letter
from hpcmesos.units import format_duration, parse_duration

_NONE = "-- "  # right-aligned, the way both families show what a job lacks
_LINE_COLUMNS = 79

_PLAIN_TORQUE = (
    "Job ID                    Name             User            Time Use S Queue\n"
    "------------------------- ---------------- --------------- -------- - -----\n"
)
_PLAIN_PBSPRO = (
    "Job id            Name             User              Time Use S Queue\n"
    "----------------  ---------------- ----------------  -------- - -----\n"
)
_ALT_TORQUE = (
    "                                                                                  Req'd       Req'd       Elap\n"
    "Job ID                  Username    Queue    Jobname          SessID  NDS   TSK   Memory      Time    S   Time\n"
    "----------------------- ----------- -------- ---------------- "
    "------ ----- ------ --------- --------- - ---------\n"
)
_ALT_PBSPRO = (
    "                                                            Req'd  Req'd   Elap\n"
    "Job ID          Username Queue    Jobname    SessID NDS TSK Memory Time  S Time\n"
    "--------------- -------- -------- ---------- ------ --- --- ------ ----- - -----\n"
)
_QUEUES_TORQUE = (
    "Queue              Max    Tot   Ena   Str   Que   Run   Hld   Wat   Trn   Ext T   Cpt\n"
    "----------------   ---   ----    --    --   ---   ---   ---   ---   ---   --- -   ---\n"
)
_QUEUES_PBSPRO = (
    "Queue              Max   Tot Ena Str   Que   Run   Hld   Wat   Trn   Ext Type\n"
    "---------------- ----- ----- --- --- ----- ----- ----- ----- ----- ----- ----\n"
)
_SERVER_TORQUE = (
    "Server             Max   Tot   Que   Run   Hld   Wat   Trn   Ext   Com Status\n"
    "----------------   ---   ---   ---   ---   ---   ---   ---   ---   --- ----------\n"
)
_SERVER_PBSPRO = (
    "Server             Max   Tot   Que   Run   Hld   Wat   Trn   Ext Status\n"
    "---------------- ----- ----- ----- ----- ----- ----- ----- ----- -----------\n"
)
_LIMITS = (
    "Queue            Memory CPU Time Walltime Node  Run Que Lm  State\n"
    "---------------- ------ -------- -------- ----  --- --- --  -----\n"
)
_TOTALS_INDENT = " " * 47
_COUNTED_STATES = "QRHWTE"
_STATE_WORDS = {
    "T": "Transit",
    "Q": "Queued",
    "H": "Held",
    "W": "Waiting",
    "R": "Running",
    "E": "Exiting",
    "C": "Complete",
}


def plain(jobs: Iterable[JobFacts], personality: Personality = Personality.TORQUE) -> str:
    """Plain ``qstat``; no job, no text at all."""
    torque = personality is Personality.TORQUE
    table = _plain_torque if torque else _plain_pbspro
    rows = "".join(row for job in jobs for row in table(job, _titles(job, personality)))
    return (_PLAIN_TORQUE if torque else _PLAIN_PBSPRO) + rows if rows else ""


def alternate(
    jobs: Iterable[JobFacts],
    server: str,
    personality: Personality = Personality.TORQUE,
    *,
    with_nodes: bool = False,
    with_comment: bool = False,
    one_line: bool = False,
) -> str:
    """``qstat -a -i -r -u``, with the nodes (-n) and the comment (-s) of each job; no job, no text at all."""
    torque = personality is Personality.TORQUE
    lines: list[str] = []
    for job in jobs:
        row = _alternate_torque(job) if torque else _alternate_pbspro(job)
        nodes = _nodes_lines(job, personality, one_line) if with_nodes else []
        if one_line and nodes:
            row += f"{'  ' if torque else ' '}{nodes.pop().strip() or _NONE}"
        lines += [row, *nodes]
        if with_comment:
            lines.append(f"   {_comment(job) or f' {_NONE}'}")
    if not lines:
        return ""
    return f"\n{server}: \n{_ALT_TORQUE if torque else _ALT_PBSPRO}" + "".join(f"{line}\n" for line in lines)


def queues(found: Iterable[QueueFacts], personality: Personality = Personality.TORQUE) -> str:
    """``qstat -Q``."""
    if personality is Personality.TORQUE:
        return _QUEUES_TORQUE + "".join(map(_queue_torque, found))
    return _QUEUES_PBSPRO + "".join(map(_queue_pbspro, found))


def queue_limits(found: Iterable[QueueFacts], server: str) -> str:
    """``qstat -q``: the limits of each queue, and the sums of running and queued jobs."""
    rows: list[str] = []
    running = queued = 0
    for queue in found:
        run, que = queue.counts.get("R", 0), _not_running(queue.counts)
        running, queued = running + run, queued + que
        limit = "--" if queue.max_running is None else str(queue.max_running)
        memory, cput, walltime, nodes = (
            queue.limits.get(name, blank)
            for name, blank in (
                ("mem", "  --  "),
                ("cput", "   --   "),
                ("walltime", "   --   "),
                ("nodes", "  -- "),
            )
        )
        state = f"{'E' if queue.enabled else 'D'} {'R' if queue.started else 'S'}"
        limits = f"{memory:>6.6} {cput:>8.8} {walltime:>8.8} {nodes:>5.5}"
        rows.append(f"{queue.name:<16.16} {limits} {run:3d} {que:3d} {limit:>2.2}   {state}\n")
    totals = f"{_TOTALS_INDENT}----- -----\n{_TOTALS_INDENT}{running:5d} {queued:5d}\n"
    return f"\nserver: {server}\n\n{_LIMITS}{''.join(rows)}{totals}"


def server_table(server: ServerFacts, personality: Personality = Personality.TORQUE) -> str:
    """``qstat -B``."""
    torque = personality is Personality.TORQUE
    states = _COUNTED_STATES + ("C" if torque else "")
    counts = " ".join(f"{server.counts.get(state, 0):>5}" for state in states)
    total = sum(server.counts.values())
    row = f"{server.name:<16.16} {server.max_running or 0:>5} {total:>5} {counts} {server.status:<10}\n"
    return (_SERVER_TORQUE if torque else _SERVER_PBSPRO) + row


def why(jobs: Iterable[JobFacts]) -> str:
    """``qstat --why``: id, state and the reason, one line for each job."""
    return "".join(f"{job.id} {job.state} {_why_sentence(job)}\n" for job in jobs)


def state_count(counts: Mapping[str, int]) -> str:
    """``Transit:0 Queued:3 ... Complete:1``, as queues and the server show it."""
    return " ".join(f"{word}:{counts.get(state, 0)}" for state, word in _STATE_WORDS.items())


def _why_sentence(job: JobFacts) -> str:
    over = no_longer_waits(job.state, job.exit_status, job.cause, [node for node, _ in job.exec_host])
    if over and job.pending_reason:  # of an array that has begun
        return f"{over}; what waits of it: {_one_line(job.pending_reason)}"
    if over and job.comment:
        return f"{over}; {_one_line(job.comment)}"
    return over or _one_line(job.pending_reason or job.comment or "has not been considered yet")


def no_longer_waits(
    state: str, exit_status: int | None = None, cause: str | None = None, nodes: Sequence[str] = ()
) -> str:
    """What is said of a job that does not wait; empty: it does."""
    match state:
        case "R":
            return f"runs on {', '.join(nodes)}" if nodes else "runs"
        case "S":
            return "is suspended; an operator lets it go on: qsig -s resume"
        case "E":
            return "is ending: what is left of it is being ended, or its output delivered"
        case "C" if exit_status is None:
            return "was deleted before it ran"
        case "C":
            return f"has ended with exit status {exit_status}{f', cause {cause}' if cause else ''}"
        case _:
            return ""


def _titles(job: JobFacts, personality: Personality) -> Iterator[tuple[str, str]]:
    """Id and name of the job, or of each of the elements that the facts stand for: a million of them may wait."""
    if not job.alike:
        yield job.id, shown_name(job, personality)
    for index in job.alike:
        yield element_id(job, index), element_name(job.name, index, personality)


def shown_name(job: JobFacts, personality: Personality) -> str:
    """The name, as the family names elements of arrays."""
    return element_name(job.name, job.array_index, personality)


def _plain_torque(job: JobFacts, titles: Iterable[tuple[str, str]]) -> Iterator[str]:
    used = job.resources_used.get("cput", "0")
    rest = f"{job.owner:<15.15} {used:>8} {job.state:.1} {job.queue:<15}\n"
    for job_id, name in titles:
        yield f"{job_id:<26} {name if len(name) <= 16 else f'...{name[-13:]}':<16} {rest}"


def _plain_pbspro(job: JobFacts, titles: Iterable[tuple[str, str]]) -> Iterator[str]:
    used = job.resources_used.get("cput", "0")
    rest = f"{_star(job.owner, 16):<16}  {used:>8} {_letter(job):.1} {_star(job.queue, 16):<16}\n"
    for job_id, name in titles:
        yield f"{_star(job_id, 17):<17} {_star(name, 16):<16} {rest}"


def _letter(job: JobFacts) -> str:
    """The state as OpenPBS writes it."""
    is_array, live = job.array is not None, job.in_live_array
    return state_letter(job.state, Personality.PBSPRO, is_array=is_array, in_live_array=live)


def _alternate_torque(job: JobFacts) -> str:
    wanted = job.resource_list
    name = shown_name(job, Personality.TORQUE)
    names = f"{job.id:<23.22} {job.owner:<11.11} {job.queue:<8.8} {name:<16.16}"
    session = _NONE if job.session_id is None else str(job.session_id)
    nodes, cpus, memory = (wanted.get(name, _NONE) for name in ("nodect", "ncpus", "mem"))
    numbers = f"{session:>6.6} {nodes:>5.5} {cpus:>6.6} {memory:>9.9} {wanted.get('walltime', _NONE):>9.9}"
    elapsed = _elapsed(job)
    return f"{names} {numbers} {job.state:.1} {_NONE if elapsed is None else format_duration(elapsed):>9.9}"


def _alternate_pbspro(job: JobFacts) -> str:
    wanted = job.resource_list
    names = (
        f"{_star(job.id, 15):<15} {_star(job.owner, 8):<8} {_star(job.queue, 8):<8} {_star(job.name, 10):<10}"
    )
    session = _NONE if job.session_id is None else str(job.session_id)
    nodes, cpus = (_star(wanted.get(name, "--"), 3) for name in ("nodect", "ncpus"))
    memory = wanted.get("mem", _NONE)
    walltime = _hours(parse_duration(wanted["walltime"])) if "walltime" in wanted else _NONE
    elapsed = _elapsed(job)
    numbers = f"{session:>6.6} {nodes:>3} {cpus:>3} {memory:>6.5} {walltime:>5.5}"
    return f"{names} {numbers} {_letter(job):.1} {_NONE if elapsed is None else _hours(elapsed):>5.5}"


def _elapsed(job: JobFacts) -> int | None:
    if job.walltime_used is not None:
        return job.walltime_used
    used = job.resources_used.get("walltime")
    return None if used is None else parse_duration(used)


def _hours(seconds: int) -> str:
    """``HH:MM``, as OpenPBS' narrow columns show durations."""
    return f"{seconds // 3600:02d}:{seconds % 3600 // 60:02d}"


def _nodes_lines(job: JobFacts, personality: Personality, one_line: bool) -> list[str]:
    """The line or lines of ``-n``, domains dropped; folded after a ``+`` unless ``one_line``."""
    hosts = [(node.partition(".")[0], slots) for node, slots in job.exec_host]
    text = exec_host_text(hosts, personality)
    if not text or one_line:
        return [f"   {text}" if text else f"    {_NONE}"]
    lines = ["   "]
    for token in (f"{host}+" for host in text.split("+")):
        if len(lines[-1]) + len(token) > _LINE_COLUMNS and lines[-1].strip():
            lines.append("   ")
        lines[-1] += token
    return [*lines[:-1], lines[-1].removesuffix("+")]


def _comment(job: JobFacts) -> str:
    return _one_line(job.comment or job.pending_reason or "")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _star(text: str, width: int) -> str:
    """Cut to ``width``, with a star in the last column (OpenPBS)."""
    return text if len(text) <= width else f"{text[: width - 1]}*"


def _queue_torque(queue: QueueFacts) -> str:
    counts = " ".join(f"{queue.counts.get(state, 0):>5}" for state in _COUNTED_STATES)
    flags = f"{_yes(queue.enabled):>5} {_yes(queue.started):>5}"
    total, done = sum(queue.counts.values()), queue.counts.get("C", 0)
    most, kind = queue.max_running or 0, "R" if queue.routes else "E"
    return f"{queue.name:<16} {most:>5} {total:>6} {flags} {counts} {kind} {done:>5}\n"


def _queue_pbspro(queue: QueueFacts) -> str:
    counts = " ".join(f"{queue.counts.get(state, 0):>5}" for state in _COUNTED_STATES)
    flags = f"{_yes(queue.enabled):>3} {_yes(queue.started):>3}"
    total = sum(queue.counts.values())
    most, kind = queue.max_running or 0, "Rou*" if queue.routes else "Exe*"
    return f"{_star(queue.name, 16):<16} {most:>5} {total:>5} {flags} {counts} {kind}\n"


def _yes(flag: bool) -> str:
    return "yes" if flag else "no"


def _not_running(counts: Mapping[str, int]) -> int:
    return sum(count for state, count in counts.items() if state not in ("R", "E", "C"))
