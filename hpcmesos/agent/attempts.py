"""The part of the state machine that starts attempts here, ends them, and tells the leader how far they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from hpcmesos import wire
from hpcmesos.agent.events import AskProbe
from hpcmesos.agent.gpu_health import GpuHealth
from hpcmesos.agent.state import REPEAT_ENDED, Attempt, Phase
from hpcmesos.model import GpuState


class Attempts(GpuHealth):
    """What becomes of one attempt, whoever wants it: the leader, the shepherd, the probe or the clock."""

    def _prepare(self, attempt: Attempt) -> None:
        self._set_attempt(replace(attempt, phase=Phase.PREPARING))
        self._command("prepare", attempt.name, spec=self._with_minors(attempt))
        if attempt.go:
            self._command("go", attempt.name)

    def _with_minors(self, attempt: Attempt) -> Mapping[str, Any] | None:
        """The spec, with the device numbers of its real GPUs here: only their node knows them. Of a MIG instance
        they are its card's and, in ``instances``, (card, GPU instance, compute instance).
        """
        held = [self.state.gpus[uuid].told for uuid in attempt.gpus]
        minors = [gpu.minor for gpu in held if not gpu.simulated and gpu.minor is not None]
        if not (minors and attempt.spec):
            return attempt.spec
        parts = [[gpu.minor, *gpu.instance] for gpu in held if gpu.parent]
        return {**attempt.spec, "minors": minors} | ({"instances": parts} if parts else {})

    def _on_end(self, message: wire.End) -> None:
        attempt = self.state.attempts.get(message.attempt)
        if attempt is None:
            self._tell_unknown(message.attempt, message.cause)
        elif attempt.phase is Phase.CHECKING:
            self._end_here(replace(attempt, end=message), message.cause, message.message)
        elif attempt.phase is Phase.ENDED:
            self._repeat(attempt)
        else:
            self._set_attempt(replace(attempt, phase=Phase.ENDING, end=message))
            self._command_end(message)

    def _on_ended(self, attempt: Attempt | None, ended: wire.Ended) -> None:
        if attempt is None:
            if ended.attempt in self.state.over:
                self._command("forget", ended.attempt)
                return
            attempt = Attempt(ended.attempt, Phase.ENDING, ended.head)
        if attempt.use.samples:
            used = {f"gpu_{name}": value for name, value in attempt.use.told().items()}
            ended = replace(ended, usage={**ended.usage, **used})
        if attempt.phase is not Phase.ENDED:
            self._release(attempt, dirty=True)
            self._repeat(replace(attempt, phase=Phase.ENDED, ended=ended, spec=None))

    def _end_here(self, attempt: Attempt, cause: str, text: str) -> None:
        """The end of a part that the shepherd never had or has lost."""
        ended = wire.Ended(
            attempt=attempt.name, head=attempt.head, cause=cause, message=text, ended_boot=self.boot
        )
        self._on_ended(attempt, ended)

    def _release(self, attempt: Attempt, *, dirty: bool) -> None:
        """``dirty``: something of the attempt may have run on them."""
        held = [s for s in self.state.gpus.values() if s.attempt == attempt.name]
        real = dirty and attempt.phase is not Phase.CHECKING
        for slot in held:
            if slot.state is GpuState.LOST:
                self._set_slots([replace(slot, attempt=None)])
            elif real and not slot.told.simulated:
                self._set_gpu(slot, GpuState.CLEANING)
            else:
                self._set_gpu(slot, GpuState.FREE)
        if any(s.state is GpuState.CLEANING for s in self.state.gpus.values()):
            self._ask_probe()

    def _refused(self, name: str, reason: str, culprit: str = "") -> wire.Refused:
        node = self.state.hello.node
        return wire.Refused(attempt=name, culprit=culprit or node, reason=f"node {node}: {reason}")

    def _refuse(self, name: str, reason: str) -> None:
        refused = self._refused(name, reason)
        self._set_over(name, refused)
        self._tell(refused)

    def _refuse_checking(self, attempt: Attempt, reason: str) -> None:
        self._release(attempt, dirty=False)
        self._drop_attempt(attempt.name)
        self._refuse(attempt.name, reason)

    def _repeat(self, attempt: Attempt, pause: float = REPEAT_ENDED) -> None:
        """Tells the leader (again) how far an attempt is; ``pause``: s until it is told of an end once more."""
        if attempt.ended is not None:
            self._set_attempt(replace(attempt, since=self.now, pause=pause))
            self._tell(attempt.ended)
        elif attempt.started is not None:
            self._tell_started(attempt.name)
        elif attempt.phase is Phase.READY:
            self._tell(wire.Ready(attempt=attempt.name))

    def _tell_started(self, name: str) -> None:
        attempt = replace(self.state.attempts[name], untold=None)
        self._set_attempt(attempt)
        if attempt.started is not None:
            self._tell(attempt.started)

    def _tell_unknown(self, name: str, cause: str) -> None:
        """An answer for an attempt that is not here; a PREPARE of it that comes later is refused."""
        self._set_over(name, self.state.over.get(name))
        text = f"node {self.state.hello.node} holds nothing of {name}"
        self._tell(wire.Ended(attempt=name, head=False, cause=cause, message=text))

    def _ask_probe(self) -> None:
        self._set(probe_asked=self.now)
        self.effects.append(AskProbe())
