"""How the login shell of a job comes to its script."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hpcmesos.launch import files
from hpcmesos.launch.owners import Owner
from hpcmesos.launch.processes import Children
from hpcmesos.launch.settings import Config

OWNER = Owner("ann", os.getuid(), os.getgid(), (), "/", "/bin/sh", switch=False)


def run(place: Path, script: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """What `enter` of an attempt with this script does, in ``place``, its owner's home."""
    config = cast(
        "Config",
        SimpleNamespace(
            state=str(place),
            hosts=str(place / "hosts"),
            bin=str(place / "bin"),
            sockets=str(place / "sockets"),
            python=sys.executable,
            containers=False,
        ),
    )
    files.write_commands(config)
    spec: dict[str, Any] = {
        "attempt": "1.h#1",
        "me": 0,
        "argv": None,
        "shell": None,
        "script": base64.b64encode(script.encode()).decode(),
        "script_args": [],
        "job_path": [],
        "names_resolve": False,
        "members": [{"node": "n1", "address": "127.0.0.1", "slots": 1, "gpus": [], "ports": []}],
    }
    (place / "attempts").mkdir()
    paths = files.job_paths(config, spec)
    files.Directories(config, Children()).make(spec, paths, OWNER)
    environ = {"HOME": str(place), "PATH": os.environ["PATH"], **environ}
    enter = os.path.join(paths.directory, "enter")
    return subprocess.run(
        [enter], capture_output=True, text=True, env=environ, cwd=place, timeout=30, check=False
    )


@pytest.mark.parametrize("name", ["$HOME/mine", '$(echo "$HOME")/mine', "~/mine", "mine", "./mine"])
def test_a_login_bash_reads_the_file_of_its_user_as_bash_does(tmp_path: Path, name: str) -> None:
    (tmp_path / "mine").write_text("read=read\n")
    script = '#!/bin/bash -l\necho "$read:$BASH_ENV:$(env | grep -c ^HPCMESOS_)"\ncommand -v mpiexec\n'
    done = run(tmp_path, script, BASH_ENV=name)
    assert done.stdout == f"read:{name}:0\n{tmp_path}/bin/mpiexec\n", done.stderr


def test_a_carriage_return_behind_the_interpreter_is_shown(tmp_path: Path) -> None:
    done = run(tmp_path, "#!/bin/sh\r\ntrue\r\n")
    named = "/bin/sh\\r, which the first line of the script names, cannot be executed on this node"
    assert done.stderr.splitlines()[0] == f"hpcmesos: {named}"
