"""``python -I -m hpcmesos.launch.ring_rank SECONDS DOORS``: a rank of the ring, with the interpreter of its own node.

Knocks at the host of its right neighbour before it goes on as ``hpcmesos.gang.ring``: MPI_Init itself may wait in vain
and say for nobody. ``DOORS``: for each rank the ``address:port`` of its host's shepherd, joined by commas.
"""

from __future__ import annotations

import os
import runpy
import sys

from hpcmesos.launch import quick

_PATIENCE = 8.0
"""Seconds in which the host of the neighbour has to answer: three lost packets' worth."""


def knock(rank: int, doors: list[str]) -> None:
    """Says on stdout, as a rank of the ring does, why the neighbour's host does not answer; one's own is not asked."""
    door = doors[(rank + 1) % len(doors)]
    if door == doors[rank]:
        return
    address, _, port = door.rpartition(":")
    family = quick.socket.AF_INET6 if ":" in address else quick.socket.AF_INET
    connection = quick.socket.socket(family, quick.socket.SOCK_STREAM)
    try:
        connection.settimeout(_PATIENCE)
        connection.connect((address, int(port)))
    except OSError as error:
        said = {"stage": "init", "cut": error.strerror or "it does not answer"}
        os.write(1, f"{quick.dumps(said)}\n".encode())
    finally:
        connection.close()


if __name__ == "__main__":
    knock(int(os.environ["RANK"]), sys.argv.pop().split(","))
    runpy.run_module("hpcmesos.gang.ring", run_name="__main__")
