"""``hpcmesos`` inside jobs: ``run`` and ``ring`` are done here, anything else by the real one, if this node has it."""

from __future__ import annotations

import os
import sys

from hpcmesos.launch import programs, quick

_PATIENCE = 8.0
"""Seconds in which the host of a neighbour in the ring has to answer: three lost packets' worth."""


def main(argv: list[str]) -> int:
    """Exit code of what was run here; else it does not come back. 127: this node has no other ``hpcmesos``."""
    if argv[:1] == ["run"]:
        from hpcmesos.launch import run

        return run.main(argv[1:])
    if argv[:1] == ["ring"] and not _names_nodes(argv):
        from hpcmesos.launch import ring

        return ring.main(argv[1:])
    if argv[:1] == [programs.RING_RANK]:
        _knock(argv[2].split(","))
        rank = [sys.executable, "-I", "-m", "hpcmesos.gang.ring", argv[1]]
        os.execv(sys.executable, rank)  # noqa: S606  (no shell is the point)
    real = programs.find("hpcmesos", [])
    if real is None:
        sys.stderr.write(
            "hpcmesos: inside a job only 'hpcmesos run' and 'hpcmesos ring' are known on this node\n"
        )
        return 127
    os.execv(real, [real, *argv])  # noqa: S606  (an argument list is the point)


def _names_nodes(argv: list[str]) -> bool:
    """A ring over other nodes than the job's is a job of its own."""
    return any(word.startswith("--nodes") for word in argv)


def _knock(doors: list[str]) -> None:
    """A rank of the ring, at the host of its right neighbour: MPI_Init itself may wait in vain and say for nobody.

    ``doors``: for each rank the ``address:port`` of its host's shepherd.
    """
    rank = int(os.environ["RANK"])
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
