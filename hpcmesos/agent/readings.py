"""The part of the state machine that draws conclusions from what the probe sees, or from its silence."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from hpcmesos import wire
from hpcmesos.agent.attempts import Attempts
from hpcmesos.agent.events import Note, Reading
from hpcmesos.agent.state import NEVER_TOLD, Attempt, Phase, Slot
from hpcmesos.model import Cause, GpuState

LOST_KILL_DELAY = 10.0  # s between SIGTERM and SIGKILL for an attempt whose GPU is lost


class Readings(Attempts):
    """Who is on a GPU, and whether it is there: what that means for the GPU and for its attempt."""

    def _on_probe(self, asked: float, readings: tuple[Reading, ...]) -> None:
        seen = {r.gpu.uuid: r for r in readings}
        for uuid, reading in seen.items():
            if uuid not in self.state.gpus:
                self._appear(reading)
        for uuid, reading in seen.items():
            self._judge(self.state.gpus[uuid], reading)
        for slot in list(self.state.gpus.values()):
            if not slot.told.simulated and asked >= slot.since:
                self._look(slot, seen.get(slot.told.uuid))
        self._tell_figures(readings)
        for attempt in list(self.state.attempts.values()):
            if attempt.phase is Phase.CHECKING and asked >= attempt.since:
                self._checked(attempt, seen)

    def _appear(self, reading: Reading) -> None:
        uuid = reading.gpu.uuid
        live = (a for a in self.state.attempts.values() if a.phase is not Phase.ENDED)
        holder = next((a.name for a in live if uuid in a.gpus), None)
        told = replace(reading.gpu, state=NEVER_TOLD)
        fault = self.state.faults.get(uuid) or self.state.faults.get(reading.gpu.parent)
        if fault is not None:
            self._remember({uuid: fault})
        unheld = GpuState.QUARANTINED if fault else GpuState.CLEANING
        state = GpuState.ALLOCATED if holder else unheld
        self._set_slots([Slot(told, state, holder, fault=fault, fault_at=self.now)])

    def _look(self, slot: Slot, reading: Reading | None) -> None:
        """One GPU's next state from what the probe saw of it."""
        if reading is None or reading.lost:
            if slot.state is not GpuState.LOST:
                self._lose(
                    slot, reading.error if reading and reading.error else "NVML does not see it any more"
                )
        elif slot.state is GpuState.LOST:
            self._set_gpu(slot, GpuState.ALLOCATED if slot.attempt else GpuState.CLEANING, keep=True)
        elif slot.state is GpuState.ALLOCATED:
            self._set_slots([replace(slot, note=reading.error)])
        elif reading.processes or reading.error:
            note = _foreign(reading)
            if slot.state is GpuState.FREE:
                self.effects.append(Note(f"GPU {slot.told.index} ({slot.told.uuid}) is not clean: {note}"))
                self._set_gpu(slot, GpuState.CLEANING, note)
            else:
                self._set_slots([replace(slot, note=note)])
        elif slot.state is not GpuState.FREE and not slot.fault:
            self._set_gpu(slot, GpuState.FREE)

    def _lose(self, slot: Slot, why: str) -> None:
        where = f"GPU {slot.told.index} ({slot.told.uuid})"
        self.effects.append(Note(f"{where} is lost: {why}"))
        self._set_gpu(slot, GpuState.LOST, why, keep=True)
        attempt = self.state.attempts.get(slot.attempt or "")
        if attempt and attempt.phase in (Phase.PREPARING, Phase.READY, Phase.RUNNING):
            text = f"node {self.state.hello.node}: {where} is lost: {why}"
            self._on_end(
                wire.End(attempt=attempt.name, cause=Cause.GPU_LOST, kill_delay=LOST_KILL_DELAY, message=text)
            )

    def _checked(self, attempt: Attempt, seen: Mapping[str, Reading]) -> None:
        """PREPARE goes on when nothing is on the attempt's GPUs, and is refused else."""
        for uuid in attempt.gpus:
            slot, reading = self.state.gpus[uuid], seen.get(uuid)
            if slot.told.simulated or (reading and not (reading.processes or reading.error or reading.lost)):
                continue
            what = _foreign(reading) if reading else "NVML does not see it any more"
            self._refuse_checking(attempt, f"GPU {slot.told.index} ({uuid}) is not clean: {what}")
            dirty = self.state.gpus[uuid]
            if dirty.state is GpuState.FREE:
                self._set_gpu(dirty, GpuState.CLEANING, what)
            return
        self._prepare(attempt)

    def _on_probe_silent(self, seconds: float) -> None:
        note = (
            f"NVML has not answered for {seconds:.0f} s" if seconds else "the GPU probe of this node failed"
        )
        self.effects.append(Note(note))
        for attempt in list(self.state.attempts.values()):
            if attempt.phase is Phase.CHECKING and attempt.gpus:
                self._refuse_checking(attempt, note)
        for slot in list(self.state.gpus.values()):
            if slot.told.simulated:
                continue
            if slot.state in (GpuState.FREE, GpuState.CLEANING):
                self._set_gpu(slot, GpuState.QUARANTINED, note)
            else:
                self._set_slots([replace(slot, note=note)])


def _foreign(reading: Reading) -> str:
    if reading.processes:
        return ", ".join(str(p) for p in reading.processes[:4]) + " on it"
    return reading.error or "lost"
