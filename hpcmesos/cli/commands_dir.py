"""Generates the directories of q-commands, ``DIR/torque`` and ``DIR/pbspro``; users put one first in PATH.

They are generated, not installed by the wheel, because another system's qsub may live on the same machine.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import hpcmesos

COMMANDS = (
    *("qsub", "qstat", "qdel", "qhold", "qrls", "pbsnodes"),
    *("qalter", "qmove", "qorder", "qrerun", "qrun", "qsig", "qmsg", "qselect", "tracejob"),
    *("showq", "checkjob", "showstart", "mdiag", "msub", "canceljob", "mjobctl"),
    *("qmgr", "qterm", "qenable", "qdisable", "qstart", "qstop"),
)
ALIASES = {"qnodes": "pbsnodes"}
"""Other names under which commands are called (Torque)."""
PERSONALITIES = ("torque", "pbspro")

STUB = """#!{python} -IS
import sys
sys.path.append({packages!r})
from hpcmesos.launch.qstub import main
sys.exit(main([{command!r}, {socket!r}, {personality!r}, {client!r}, *sys.argv[1:]], {submit_filter!r}))
"""

CLIENT = """#!/bin/sh
exec {python} -m hpcmesos.cli "$@"
"""


def write(directory: Path, *sockets: Path, submit_filter: Path) -> None:
    """Writes all commands for the masters behind ``sockets``; each is replaced in one step: a running one is safe.

    ``submit_filter``: the program that sees scripts first; it need not be there.
    """
    interpreter = os.path.realpath(sys.executable)
    packages = str(Path(hpcmesos.__file__).parents[1])
    for personality in PERSONALITIES:
        target = directory / personality
        target.mkdir(parents=True, exist_ok=True)
        client = target / "hpcmesos"
        _replace(client, CLIENT.format(python=sys.executable))
        for name, command in {**{name: name for name in COMMANDS}, **ALIASES}.items():
            text = STUB.format(
                python=interpreter,
                packages=packages,
                command=command,
                socket=",".join(map(str, sockets)),
                personality=personality,
                client=str(client),
                submit_filter=str(submit_filter),
            )
            _replace(target / name, text)


def _replace(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.new")
    draft.write_text(text)
    draft.chmod(0o755)
    draft.replace(path)
