"""Generates the directories of q-commands, ``DIR/torque`` and ``DIR/pbspro``; users put one first in PATH.

They are generated, not installed by the wheel, because another system's qsub may live on the same machine. Each is a
Python program; where ``stub.c`` was compiled, its first line names that, which is told the rest in comments (ADR 015).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import hpcmesos
from hpcmesos.launch import programs

COMMANDS = (
    *("qsub", "qstat", "qdel", "qhold", "qrls", "pbsnodes"),
    *("qalter", "qmove", "qorder", "qrerun", "qrun", "qsig", "qmsg", "qselect", "tracejob"),
    *("showq", "checkjob", "showstart", "mdiag", "msub", "canceljob", "mjobctl"),
    *("qmgr", "qterm", "qenable", "qdisable", "qstart", "qstop"),
)
ALIASES = {"qnodes": "pbsnodes"}
"""Other names under which commands are called (Torque)."""
PERSONALITIES = ("torque", "pbspro")

STUB = """#!{interpreter}
{remarks}import sys
sys.path.append({packages!r})
from hpcmesos.launch.qstub import main
sys.exit(main([{command!r}, {socket!r}, {personality!r}, {client!r}, *sys.argv[1:]], {submit_filter!r}))
"""

_REMARKS = """# python: {python}
# command: {command}
# sockets: {socket}
# personality: {personality}
# submit filter: {submit_filter}
"""
"""What ``stub.c`` reads, in this order."""

_LONGEST_FIRST_LINE = 127
"""Bytes, with ``#!`` and the line's end: what every kernel takes."""

CLIENT = """#!/bin/sh
exec {python} -m hpcmesos.cli "$@"
"""


def write(directory: Path, *sockets: Path, submit_filter: Path) -> None:
    """Writes all commands for the masters behind ``sockets``; each is replaced in one step: a running one is safe.

    ``submit_filter``: the program that sees scripts first; it need not be there.
    """
    compiled = _compiled()
    interpreter = os.path.realpath(sys.executable)
    packages = str(Path(hpcmesos.__file__).parents[1])
    for personality in PERSONALITIES:
        target = directory / personality
        target.mkdir(parents=True, exist_ok=True)
        client = target / "hpcmesos"
        _replace(client, CLIENT.format(python=sys.executable))
        for name, command in {**{name: name for name in COMMANDS}, **ALIASES}.items():
            text = _text(
                compiled,
                python=interpreter,
                packages=packages,
                command=command,
                socket=",".join(map(str, sockets)),
                personality=personality,
                client=str(client),
                submit_filter=str(submit_filter),
            )
            _replace(target / name, text)


def _compiled() -> str:
    """The compiled stub, where it is, runs on this machine and can stand in a first line; else nothing."""
    stub = programs.STUB
    if len(stub.split()) != 1 or len(os.fsencode(f"#!{stub}\n")) > _LONGEST_FIRST_LINE:
        return ""
    try:
        probe = subprocess.run([stub], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except OSError:
        return ""
    return "" if probe.returncode else stub


def _text(compiled: str, **values: str) -> str:
    remarks = _REMARKS.format(**values)
    if not compiled or len(remarks.splitlines()) != _REMARKS.count("\n"):  # a path with a line's end in it
        compiled, remarks = "", ""
    return STUB.format(interpreter=compiled or f"{values['python']} -IS", remarks=remarks, **values)


def _replace(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.new")
    draft.write_text(text)
    draft.chmod(0o755)
    draft.replace(path)
