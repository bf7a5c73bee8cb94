"""The script of a chaos job, and what it wrote: a run log that owes nothing to what hpcmesos says of the job.

Each job has one file of lines ``WORD ATTEMPT NODE TIME VALUE``, appended with fsync. Its script and each of its parts
hold a lock as long as any process of theirs lives, so that a second run beside it sees it and writes ``overlap``.

    start     the script begins; VALUE: the GPUs that it sees
    part      a part of a gang begins on its node; VALUE: the GPUs that it sees
    overlap   the lock of the script, or of a part, is held by somebody else
    broken    the parallel program did not end as it must; VALUE: its code
    end       the script ends; VALUE: the exit code that comes next
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.plan import PlannedJob

BROKEN = 99
"""Exit code of a script whose parallel program did not end as it must."""

_SAY = """\
say() {{
    echo "$1 $HPCMESOS_ATTEMPT $HPCMESOS_NODE $(date +%s.%N) ${{2:--}}" |
        dd of={runs}/{key}.log oflag=append conv=notrunc,fsync status=none
}}
"""
_PART = """\
#!/bin/sh
{say}
exec 8>>{runs}/{key}.parts
flock -n -s 8 || say overlap part
say part "$CUDA_VISIBLE_DEVICES"
sleep {seconds}
"""
_SCRIPT = """\
#!/bin/sh
{say}
exec 9>>{runs}/{key}.lock 8>>{runs}/{key}.parts
flock -n 9 || say overlap script
flock -n 8 || say overlap parts
exec 8>&-
say start "$CUDA_VISIBLE_DEVICES"
{work}
say end {code}
exit {code}
"""
_LAUNCH = {
    "pbsdsh": "pbsdsh -u sh {part}",
    "hpcmesos run": "hpcmesos run -n {nodes} sh {part}",
    "mpiexec": "mpiexec -n {nodes} sh {part}",
}


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a run log; ``time``: seconds since the epoch."""

    word: str
    attempt: int
    node: str
    time: float
    value: str


def write(job: PlannedJob, runs: Path) -> str:
    """The job's script; what its parts run is left in ``runs``."""
    say = _SAY.format(runs=runs, key=job.key)
    work = f"sleep {job.seconds:.1f}" if job.seconds else ":"
    if job.launcher:
        part = runs / f"{job.key}.sh"
        part.write_text(_PART.format(say=say, runs=runs, key=job.key, seconds=f"{job.seconds:.1f}"))
        launch = _LAUNCH[job.launcher].format(part=part, nodes=job.nodes)
        work = f"{launch}\nbroken=$?\n[ $broken = 0 ] || {{ say broken $broken; say end {BROKEN}; exit {BROKEN}; }}"
    return _SCRIPT.format(say=say, runs=runs, key=job.key, work=work, code=job.code)


def read(runs: Path, key: str) -> list[Line]:
    """What a job's runs wrote, in the order of writing."""
    try:
        return list(parse((runs / f"{key}.log").read_text()))
    except FileNotFoundError:
        return []


def parse(text: str) -> Iterator[Line]:
    """Raises ValueError for a line that no script wrote."""
    for line in text.splitlines():
        word, attempt, node, time, value = line.split(" ", 4)
        yield Line(word, int(attempt.rpartition("#")[2]), node, float(time), value)
