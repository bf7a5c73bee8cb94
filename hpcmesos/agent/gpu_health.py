"""The part of the state machine that keeps unfit GPUs out of use, and counts what attempts use of theirs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from msgspec.structs import replace

from hpcmesos import wire
from hpcmesos.agent import health
from hpcmesos.agent.events import Note, Reading, RememberFaults
from hpcmesos.agent.health import Fault
from hpcmesos.agent.state import Draft, Phase, Slot
from hpcmesos.model import GpuState

FAULT_CLEARS = 3600.0  # s without a new error after which a GPU that had one may work again
TELL_FIGURES = 9.0  # s between two reports of figures, at least: the probe is asked more often than that


class GpuHealth(Draft):
    """Faults and figures; see `health`."""

    def _judge(self, slot: Slot, reading: Reading) -> None:
        """What a reading says of the GPU, but for who is on it."""
        for xid in reading.xids:
            self.effects.append(Note(f"{_where(slot)}: {health.xid_text(xid)}"))
        fault = health.fault_of(reading.xids, reading.figures)
        kept = slot.fault
        if fault is not None and (kept is None or kept.clears):
            self._set_fault(slot, fault)
            if slot.told.parent:
                self._remember({slot.told.parent: fault})
        elif kept is not None and kept.clears and self.now >= slot.fault_at + FAULT_CLEARS:
            self._set_fault(slot, None)
        self._count(self.state.gpus[slot.told.uuid], reading)

    def _set_fault(self, slot: Slot, fault: Fault | None) -> None:
        """Kept out of use from its release on, or at once if nobody has it; without a fault it is cleaned first.

        An instance that is forgiven frees the card from what instances to come would inherit; the others keep theirs.
        """
        if fault is None or slot.fault is None:
            what = f"is kept out of use: {fault.text}" if fault else "may be used again"
            self.effects.append(Note(f"{_where(slot)} {what}"))
        slot = replace(slot, fault=fault, fault_at=self.now)
        self._set_slots([slot])
        if fault is not None and slot.state in (GpuState.FREE, GpuState.CLEANING):
            self._set_gpu(slot, GpuState.QUARANTINED)
        elif fault is None and slot.state is GpuState.QUARANTINED:
            self._set_gpu(slot, GpuState.FREE if slot.told.simulated else GpuState.CLEANING)
        self._remember({slot.told.uuid: fault} | ({slot.told.parent: None} if fault is None else {}))

    def _remember(self, changes: Mapping[str, Fault | None]) -> None:
        """By UUID of GPUs and of cards in MIG mode, whose instances to come have the card's fault; None: no more."""
        after = {**self.state.faults, **changes}
        faults = {uuid: fault for uuid, fault in after.items() if fault is not None}
        if faults != self.state.faults:
            self._set(faults=faults)
            self.effects.append(RememberFaults(faults))

    def _on_set_gpu(self, message: wire.SetGpu) -> None:
        """An operator's word: it takes a GPU, or all instances of a card, out of use until he says so again, and
        forgives any fault.
        """
        fault = Fault(message.fault, clears=False) if message.fault else None
        for slot in list(self.state.gpus.values()):
            if message.uuid in (slot.told.uuid, slot.told.parent):
                self._set_fault(slot, fault)
        if any(slot.told.parent == message.uuid for slot in self.state.gpus.values()):
            self._remember({message.uuid: fault})

    def _count(self, slot: Slot, reading: Reading) -> None:
        energy, before = reading.figures.get("energy"), slot.energy
        self._set_slots([replace(slot, energy=energy)])
        attempt = self.state.attempts.get(slot.attempt or "")
        if attempt and attempt.phase in (Phase.RUNNING, Phase.ENDING) and reading.figures:
            spent = max(0.0, energy - before) if energy is not None and before is not None else 0.0
            self._set_attempt(replace(attempt, use=attempt.use.sampled(reading.figures, spent)))

    def _tell_figures(self, readings: Iterable[Reading]) -> None:
        figures = {r.gpu.uuid: dict(r.figures) for r in readings if r.figures}
        if figures and self.now >= self.state.figures_told + TELL_FIGURES:
            self._set(figures_told=self.now)
            uses = {a.name: a.use.told() for a in self.state.attempts.values() if a.use.samples}
            self._tell(wire.GpuFigures(gpus=figures, uses=uses))


def _where(slot: Slot) -> str:
    return f"GPU {slot.told.index} ({slot.told.uuid})"
