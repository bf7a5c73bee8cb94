"""What comes before the script on the head: the prologues of all members, and the ring."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hpcmesos.launch import preflight
from hpcmesos.launch.order import Order
from hpcmesos.launch.site_scripts import ABORT, Result, joined

if TYPE_CHECKING:
    from hpcmesos.launch.attempt import Attempt


@dataclass(frozen=True, slots=True)
class Prelude:
    """What it leaves to the script. ``output``: stdout and stderr of the prologues; ``ring``: a line about it."""

    output: tuple[bytes, bytes] = (b"", b"")
    ring: str = ""


def wanted(attempt: Attempt) -> bool:
    """Whether there is anything to wait for."""
    ring = attempt.spec.get("ring") == "check"
    return ring or attempt.gang is not None or attempt.scripts.wanted("prologue")


async def run(attempt: Attempt) -> Prelude | Order:
    """Comes back when the script may start, or was refused; the attempt may be over meanwhile."""
    if attempt.gang and (failed := await attempt.gang.prologues()):
        node, code, text = failed
        return _refusal(attempt, node, Result(text, code, told=True))
    output = (b"", b"")
    if attempt.phase == "running" and attempt.scripts.wanted("prologue"):
        results = await attempt.scripts.prologue()
        output = joined(results)
        if results[-1].code:
            return _refusal(attempt, attempt.services.config.node, results[-1])
    ring = ""
    if attempt.phase == "running" and attempt.spec.get("ring") == "check":
        outcome = await preflight.check(attempt.workspace)
        if not outcome.closed:
            return Order("START_FAILED", 0.0, outcome.message, outcome.culprits)
        ring = outcome.message
    return Prelude(output, ring)


def _refusal(attempt: Attempt, node: str, result: Result) -> Order:
    """1, and anything for a person who waits at a terminal: the job is over. Else it runs again, elsewhere."""
    message = f"on {node}, {result}"
    if (result.code == ABORT and not result.staging) or attempt.terminal:
        return Order("APP", 0.0, message)
    return Order("START_FAILED", 0.0, message, None if result.staging else node)
