"""What the programs inside jobs know of each other: the next program of a name, and what a Python rank gets along."""

from __future__ import annotations

import os
import sys

_HERE = os.path.dirname(os.path.abspath(__file__))
START = os.path.join(_HERE, "__main__.py")
STARTER = os.path.join(_HERE, "starter")
"""Compiled of ``starter.c``, where there was a compiler when this was installed."""
STUB = os.path.join(_HERE, "stub")
"""The same of ``stub*.c``: the commands that users type begin with it. Without words it does nothing."""
RING_RANK = "hpcmesos-ring-rank"
"""What starts one rank of the ring, with the interpreter of the node where it runs: in every job's PATH."""
LAUNCHERS = ("mpiexec", "mpirun", "hydra", "prte", "prun", "orte", "orted")
"""How the names of launchers' processes begin."""
_RANK_PYTHON = os.path.join(_HERE, "rank_python")


def python_path(given: str) -> str:
    """PYTHONPATH of a rank: what ends MPI when a Python rank fails, then the user's own."""
    return f"{_RANK_PYTHON}:{given}" if given else _RANK_PYTHON


def find(name: str, places: list[str]) -> str | None:
    """The program of that name that is not ours: in PATH, else the first of ``places``, else beside the interpreter."""
    found = [
        os.path.join(directory, name) for directory in os.environ.get("PATH", "").split(":") if directory
    ]
    found += [*places, os.path.join(os.path.dirname(sys.executable), name)]
    return next((place for place in found if _is_program(place) and not _is_ours(place)), None)


def _is_program(path: str) -> bool:
    return os.path.isfile(path) and os.access(path, os.X_OK)


def _is_ours(path: str) -> bool:
    """Another node's front counts too: nodes of one host have one each."""
    try:
        with open(path, "rb", buffering=0) as file:
            head = file.read(1024)
    except OSError:
        return False
    return head.startswith(b"#!/bin/sh\nexec ") and b"/hpcmesos/launch/__main__.py" in head
