"""Between an MPI launcher and one rank: what is said before there is a rank."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

EARLY = """
import os, sys
from hpcmesos.launch import rank_wrapper

number, spawn = int(sys.argv[1]), rank_wrapper._spawn

def slowly(command, tap):
    os.kill(os.getpid(), number)
    return spawn(command, tap)

rank_wrapper._spawn = slowly
status, asked = rank_wrapper._run(["sleep", "60"], None)
print(os.WTERMSIG(status), asked)
"""


@pytest.mark.parametrize(("number", "asked"), [(signal.SIGTERM, True), (signal.SIGUSR1, False)])
def test_a_rank_hears_what_came_before_it_was_there(number: signal.Signals, asked: bool) -> None:
    told = subprocess.run(
        [sys.executable, "-c", EARLY, str(int(number))],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert told.stdout.split() == [str(int(number)), str(asked)]
