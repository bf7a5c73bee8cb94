"""How an attempt has ended on one node: what is known by now, and the message that tells it."""

from __future__ import annotations

import os
import resource
import time
from dataclasses import dataclass
from typing import Any

from hpcmesos.launch.clock import boottime
from hpcmesos.launch.enclosure import Enclosure
from hpcmesos.launch.order import Order


@dataclass(slots=True)
class Ending:
    """Fills while the attempt runs and ends.

    ``order``: it was told to end. ``status``: of the script, as wait4(2) tells it; None: it has not been reaped, or
    there was none. ``forced``: its grace was not enough, or there was none. ``stuck``: processes that cannot be
    killed. ``unstaged``: why files of the job are not where they should be.
    """

    order: Order | None = None
    status: int | None = None
    forced: bool = False
    stuck: tuple[int, ...] = ()
    unstaged: str = ""
    cpu: float = 0.0
    peak: int = 0

    def charge(self, usage: resource.struct_rusage) -> None:
        """Adds the usage of a process that was reaped."""
        self.cpu += usage.ru_utime + usage.ru_stime
        self.peak = max(self.peak, usage.ru_maxrss * 1024)

    @property
    def codes(self) -> tuple[int | None, int | None]:
        """Exit code and signal of the script."""
        status = self.status
        code = os.WEXITSTATUS(status) if status is not None and os.WIFEXITED(status) else None
        return code, os.WTERMSIG(status) if status is not None and os.WIFSIGNALED(status) else None

    def cause(self, enclosure: Enclosure, failure: str) -> str:
        """A `model.Cause`. ``failure``: why the script's program could not be executed; empty: it was."""
        if self.order:
            return self.order.cause
        if enclosure.out_of_memory():
            return "OOM"
        if failure:
            return "START_FAILED"
        if self.status is None or self.status == 0:
            return "OK"
        return "SIGNAL" if os.WIFSIGNALED(self.status) else "APP"

    def usage(self, enclosure: Enclosure) -> dict[str, float]:
        """CPU seconds and peak bytes: what was counted of all, or of those that were reaped where that is more."""
        cpu, peak = enclosure.usage()
        return {"cput": max(cpu, self.cpu), "mem": max(peak, self.peak)}

    def message(self, failure: str, left_out: int) -> str:
        """All that there is to say, for people. ``left_out``: bytes of output that were dropped."""
        stuck = f"processes that cannot be killed: {' '.join(map(str, self.stuck))}" if self.stuck else ""
        trimmed = f"{left_out} bytes in the middle of the output are left out" if left_out else ""
        ordered = self.order.message if self.order else ""
        return "; ".join(filter(None, [ordered, failure, stuck, self.unstaged, trimmed]))


def of_memory(member: dict[str, Any]) -> str:
    """Why an attempt ended with OOM, by its share of the node."""
    limit = f": {int(member['mem']) >> 20} MiB on {member['node']}" if member.get("mem") else ""
    return f"it wanted more memory than it had asked for{limit}"


def report(attempt: str, **known: Any) -> dict[str, Any]:
    """The event by which an attempt ends now: the fields of `wire.Ended`, with what nobody knows left open."""
    return {
        "event": "ended",
        "attempt": attempt,
        "code": None,
        "signal": None,
        "culprit": None,
        "started_at": None,
        "ended_at": time.time(),
        "ended_boot": boottime(),
        "usage": {},
        "ranks": [],
        "steps": [],
        **known,
    }
