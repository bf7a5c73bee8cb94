"""The alarm under both event loops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import uvloop

from hpcmesos.agent.alarm import Alarm


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_set_again_before_it_rings(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """Also when it is due at once: uvloop then makes another kind of handle."""
    rung: list[float] = []

    async def work() -> None:
        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        def ring() -> None:
            rung.append(loop.time())
            done.set()

        alarm = Alarm(loop, ring)
        for later in (3600.0, -1.0, -1.0, 0.0, 0.0001, 3600.0):
            alarm.set(loop.time() + later)
        await asyncio.wait_for(done.wait(), 10)
        alarm.set(loop.time() - 1)
        alarm.set(None)
        await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(work())
    assert len(rung) == 1
