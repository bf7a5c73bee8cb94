"""The agent's side of the probe: starts it, asks it, and gives it up when NVML does not answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any

import msgspec

from hpcmesos import wire
from hpcmesos.agent.events import Event, ProbeReport, ProbeSilent, Process, Reading

log = logging.getLogger(__name__)

FIRST_TIMEOUT = 60.0  # s; without persistence the driver wakes every card first
TIMEOUT = 8.0  # s for an answer; less than the machine's CHECK_TIMEOUT
_PAUSE = 5.0  # s between two probes that failed; doubled up to _LONGEST_PAUSE
_LONGEST_PAUSE = 80.0


class Probe:
    """One child at a time. ``ours`` says which GPUs are this agent's; answers go to ``sink`` as events."""

    def __init__(
        self,
        ours: Callable[[Sequence[wire.Gpu]], Collection[str]],
        sink: Callable[[Event], None],
        first_timeout: float = FIRST_TIMEOUT,
    ) -> None:
        self.answered = (
            asyncio.Event()
        )  # set with the first answer or silence: GPUs are known as far as they can be
        self._ours = ours
        self._sink = sink
        self._first_timeout = self._timeout = first_timeout
        self._wanted = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def ask(self) -> None:
        """Wants one more report; those wanted while one is under way become one."""
        self._wanted.set()

    async def run(self) -> None:
        """Until cancelled, or until NVML says that there is none here."""
        pause = _PAUSE
        while True:
            self.ask()
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "hpcmesos.agent.gpus",
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=wire.MAX_FRAME,
            )  # fmt: skip
            silent = 0.0
            try:
                if not await self._serve(child):
                    return
            except TimeoutError:
                silent = self._timeout
            except (OSError, ValueError, EOFError, msgspec.MsgspecError) as error:
                log.warning("the probe failed: %s", error or "it ended")
            finally:
                self.answered.set()
                await _end(child)
            self._sink(ProbeSilent(silent))
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _serve(self, child: asyncio.subprocess.Process) -> bool:
        """Asks this child as often as wanted. False: there is no NVML. Raises TimeoutError when it is stuck."""
        number = 0
        self._timeout = self._first_timeout
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            number += 1
            asked = self._loop.time()
            answer = await asyncio.wait_for(self._question(child, number), self._timeout)
            if answer["error"]:
                log.info("no GPUs: %s", answer["error"])
                return False
            readings = [reading(g) for g in answer["gpus"]]
            ours = self._ours([r.gpu for r in readings])
            self._sink(ProbeReport(asked, tuple(r for r in readings if r.gpu.uuid in ours)))
            self.answered.set()
            self._timeout = TIMEOUT

    async def _question(self, child: asyncio.subprocess.Process, number: int) -> dict[str, Any]:
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(b'{"id": %d}\n' % number)
        line = await child.stdout.readline()
        if not line:
            raise EOFError
        answer: dict[str, Any] = msgspec.json.decode(line)
        return answer


async def _end(child: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        child.kill()
    with contextlib.suppress(TimeoutError):  # blocked in the driver, it dies when the driver lets go of it
        await asyncio.wait_for(child.wait(), 1.0)


def reading(facts: dict[str, Any]) -> Reading:
    """One GPU of the probe's answer."""
    return Reading(
        msgspec.convert(facts, wire.Gpu),
        tuple(Process(pid, user) for pid, user in facts["processes"]),
        facts["lost"],
        facts["error"],
        tuple(facts.get("xids", ())),
        facts.get("figures", {}),
    )
