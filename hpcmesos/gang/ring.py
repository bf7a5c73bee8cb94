"""One rank of the ring: ``python -I -m hpcmesos.gang.ring SECONDS``. It runs inside jobs; nobody imports it.

What it does next stands on stdout, a line of JSON each, before it waits for anybody: whoever watches knows where a
ring stands without any MPI. After SECONDS a thread that needs no interpreter writes to stderr where the rank is: one
that waits inside MPI is alive, one that says nothing is not.
"""

from __future__ import annotations

import faulthandler
import json
import os
import statistics
import sys
from typing import Any

from hpcmesos.gang import ring_report

_WARM_UP = 2
_SMALL, _SMALL_ROUNDS = 8, 21
_LARGE, _LARGE_ROUNDS = 1 << 20, 7


def _say(stage: str, **more: Any) -> None:
    sys.stdout.write(json.dumps({"stage": stage, **more}) + "\n")
    sys.stdout.flush()


def main(seconds: float) -> None:
    """Raises whatever MPI raises; the ring is broken then."""
    faulthandler.dump_traceback_later(seconds)
    gpus = [uuid for uuid in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if uuid]
    _say(ring_report.INIT, gpus=gpus)
    from mpi4py import MPI  # begins MPI

    world = MPI.COMM_WORLD
    try:
        _pass_token(world)
        figures: dict[str, float] = {}
        for partner, begins in ring_report.duties(world.rank, world.size):
            _say(ring_report.MEASURE, waits_for=partner)
            if begins:
                figures = _measure(MPI.Wtime, world, partner)
            else:
                _answer(world, partner)
        _say(ring_report.DONE, waits_for=None, **figures)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        world.Abort(1)


def _pass_token(world: Any) -> None:
    """Rank 0 sends a list around to which every rank adds itself."""
    left, right = (world.rank - 1) % world.size, (world.rank + 1) % world.size
    _say(ring_report.TOKEN, waits_for=left)
    if world.size == 1:
        return
    if world.rank == 0:
        world.send([0], right)
        if world.recv(source=left) != list(range(world.size)):
            raise RuntimeError("the token came back with other ranks than it met")
    else:
        world.send([*world.recv(source=left), world.rank], right)


def _measure(clock: Any, world: Any, partner: int) -> dict[str, float]:
    """Latency: half of the median round of small messages; bandwidth: from the median round of large ones."""
    small = _rounds(clock, world, partner, _SMALL, _SMALL_ROUNDS)
    large = _rounds(clock, world, partner, _LARGE, _LARGE_ROUNDS)
    return {"latency": small / 2 * 1e6, "bandwidth": 2 * _LARGE / max(large, 1e-9) / 1e6}


def _rounds(clock: Any, world: Any, partner: int, size: int, rounds: int) -> float:
    data = bytearray(size)
    seconds: list[float] = []
    for _ in range(_WARM_UP + rounds):
        start = clock()
        world.Send(data, partner)
        world.Recv(data, partner)
        seconds.append(clock() - start)
    return statistics.median(seconds[_WARM_UP:])


def _answer(world: Any, partner: int) -> None:
    for size, rounds in ((_SMALL, _SMALL_ROUNDS), (_LARGE, _LARGE_ROUNDS)):
        data = bytearray(size)
        for _ in range(_WARM_UP + rounds):
            world.Recv(data, partner)
            world.Send(data, partner)


if __name__ == "__main__":
    main(float(sys.argv[1]))
