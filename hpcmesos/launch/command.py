"""``hpcmesos`` inside jobs: ``run`` and ``ring`` are done here, anything else by the real one, if this node has it."""

from __future__ import annotations

import os
import sys

from hpcmesos.launch import programs


def main(argv: list[str]) -> int:
    """Exit code of what was run here; else it does not come back. 127: this node has no other ``hpcmesos``."""
    if argv[:1] == ["run"]:
        from hpcmesos.launch import run

        return run.main(argv[1:])
    if argv[:1] == ["ring"] and not _names_nodes(argv):
        from hpcmesos.launch import ring

        return ring.main(argv[1:])
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
