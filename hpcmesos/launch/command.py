"""``hpcmesos`` inside jobs: ``run`` is done here, anything else by the real one, if this node has it."""

from __future__ import annotations

import os
import sys

from hpcmesos.launch import programs


def main(argv: list[str]) -> int:
    if argv[:1] == ["run"]:
        from hpcmesos.launch import run

        return run.main(argv[1:])
    real = programs.find("hpcmesos", [])
    if real is None:
        sys.stderr.write("hpcmesos: inside a job only 'hpcmesos run' is known on this node\n")
        return 127
    os.execv(real, [real, *argv])  # noqa: S606  (an argument list is the point)
