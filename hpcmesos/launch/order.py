"""Why and how an attempt is to end."""

from __future__ import annotations

from dataclasses import dataclass

NODE_LOST = "NODE_LOST"
WISHED = frozenset({"DELETED", "GPU_IDLE", "PREEMPTED"})
"""Causes that nobody is to blame for: a master orders them, of all members."""
_HURRY = 5.0
"""Seconds of grace, at most, when a member is lost: the whole gang has to be gone 30 s after the loss."""


@dataclass(frozen=True, slots=True)
class Order:
    """``kill_delay``: seconds from SIGTERM to SIGKILL; 0: SIGKILL at once. ``culprit``: the node at fault, if known."""

    cause: str
    kill_delay: float = 0.0
    message: str = ""
    culprit: str | None = None

    @property
    def remark(self) -> str:
        """For the job's own log: ``job killed: NODE_LOST of node7: not heard for 20 s``."""
        if self.cause == "WALLTIME":
            return self.message
        whose = f" of {self.culprit}" if self.culprit else ""
        return f"job killed: {self.cause}{whose}" + (f": {self.message}" if self.message else "")

    @classmethod
    def lost(cls, culprit: str, message: str, kill_delay: float) -> Order:
        """A member is lost."""
        return cls(NODE_LOST, min(kill_delay, _HURRY), message, culprit)
