"""What figures and errors of a GPU mean: what makes it unfit for jobs, and what a job has used of it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

FIGURES = (
    "utilization",
    "memory_used",
    "temperature",
    "power",
    "energy",
    "ecc_errors",
    "rows_failed",
    "nvlink_errors",
)
"""Percent of the time in which a kernel ran; bytes; degrees Celsius; W; J since the driver was loaded; uncorrected
errors since then; 1 when a row of its memory cannot be remapped; replays, recoveries and CRC errors of all its
NVLinks since the driver was loaded.
"""


class XidClass(StrEnum):
    APPLICATION = "application"  # the program's fault: never keeps a GPU out of use
    HARDWARE = "hardware"  # the GPU is unfit until the fault has not come back for a while
    OTHER = "other"  # noted, and no more


_APPLICATION = frozenset({13, 31, 43, 45, 68, 109})
"""Those that NVIDIA's own Kubernetes device plugin passes over (internal/rm/health.go)."""
_HARDWARE = {
    48: "double-bit ECC error",
    62: "internal micro-controller halt",
    64: "row remapping failed",
    74: "NVLink error",
    79: "GPU has fallen off the bus",
    95: "uncontained ECC error",
    119: "GSP does not answer",
    120: "GSP error",
    140: "unrecovered ECC error",
}
"""NVIDIA's catalogue of XIDs: those after which it says to drain the GPU, reset it or report it."""


def classify(xid: int) -> XidClass:
    if xid in _APPLICATION:
        return XidClass.APPLICATION
    return XidClass.HARDWARE if xid in _HARDWARE else XidClass.OTHER


def xid_text(xid: int) -> str:
    return f"XID {xid}: {_HARDWARE.get(xid, classify(xid).value + ' error')}"


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a GPU is kept out of use. ``clears``: whether it goes by itself once it has not come back for a while; what
    an operator said goes by his word alone.
    """

    text: str
    clears: bool = True


def fault_of(xids: tuple[int, ...], figures: Mapping[str, float]) -> Fault | None:
    """The fault that one reading shows, if it shows one."""
    if figures.get("rows_failed"):
        return Fault("a row of its memory cannot be remapped")
    bad = [xid for xid in xids if classify(xid) is XidClass.HARDWARE]
    return Fault(xid_text(bad[-1])) if bad else None


@dataclass(frozen=True, slots=True)
class Use:
    """What an attempt has used of one node's GPUs, from samples; sums are over samples of each GPU."""

    samples: int = 0
    busy: int = 0  # samples with utilisation: MIG instances have none
    busy_sum: float = 0.0  # percent
    busy_max: float = 0.0
    memory_max: float = 0.0  # bytes, of one GPU
    energy: float = 0.0  # J

    def sampled(self, figures: Mapping[str, float], energy: float) -> Use:
        """With one more sample of one GPU, which took ``energy`` J since the one before."""
        busy = figures.get("utilization", 0.0)
        return replace(
            self,
            samples=self.samples + 1,
            busy=self.busy + ("utilization" in figures),
            busy_sum=self.busy_sum + busy,
            busy_max=max(self.busy_max, busy),
            memory_max=max(self.memory_max, figures.get("memory_used", 0.0)),
            energy=self.energy + energy,
        )

    def told(self) -> dict[str, float]:
        """As it goes over the wire."""
        return {name: float(getattr(self, name)) for name in self.__dataclass_fields__}
