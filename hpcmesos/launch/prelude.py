"""What comes before the script on the head: the prologues of all members, and the ring."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hpcmesos.launch import preflight
from hpcmesos.launch.members import Gang
from hpcmesos.launch.order import Order
from hpcmesos.launch.site_scripts import ABORT, Result, Scripts, joined
from hpcmesos.launch.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Prelude:
    """What it leaves to the script. ``output``: stdout and stderr of the prologues; ``ring``: a line about it."""

    output: tuple[bytes, bytes] = (b"", b"")
    ring: str = ""


def wanted(workspace: Workspace, scripts: Scripts) -> bool:
    """Whether an attempt on one node has anything to wait for; a gang has its members."""
    return workspace.spec.get("ring") == "check" or scripts.wanted("prologue")


async def run(
    workspace: Workspace,
    scripts: Scripts,
    gang: Gang | None,
    *,
    running: Callable[[], bool],
    interactive: bool,
) -> Prelude | Order:
    """Comes back when the script may start, or with how the attempt is to end because it was refused.

    ``running``: whether the attempt goes on; once it does not, nothing more begins. ``interactive``: a person waits.
    """
    if gang and (failed := await gang.prologues()):
        node, code, text = failed
        return _refusal(node, Result(text, code, told=True), interactive)
    output = (b"", b"")
    if running() and scripts.wanted("prologue"):
        results = await scripts.prologue()
        output = joined(results)
        if results[-1].code:
            return _refusal(workspace.services.config.node, results[-1], interactive)
    ring = ""
    if running() and workspace.spec.get("ring") == "check":
        outcome = await preflight.check(workspace)
        if not outcome.closed:
            return Order("START_FAILED", 0.0, outcome.message, outcome.culprits)
        ring = outcome.message
    return Prelude(output, ring)


def _refusal(node: str, result: Result, interactive: bool) -> Order:
    """1, and anything for a person who waits at a terminal: the job is over. Else it runs again, elsewhere."""
    message = f"on {node}, {result}"
    if (result.code == ABORT and not result.staging) or interactive:
        return Order("APP", 0.0, message)
    return Order("START_FAILED", 0.0, message, None if result.staging else node)
