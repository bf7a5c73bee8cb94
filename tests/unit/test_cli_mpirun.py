"""The words of ``hpcmesos mpirun`` and the job that they become."""

from __future__ import annotations

import pytest

from hpcmesos.cli.mpirun import parse, qsub_words
from hpcmesos.errors import UsageError


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["-n", "4", "a.out", "-n", "9"],
            "-V -W capture=true -l procs=4 -d /here -N a.out -- mpiexec -n 4 a.out -n 9",
        ),
        (["/opt/a.out"], "-V -W capture=true -l procs=1 -d /here -N a.out -- mpiexec /opt/a.out"),
        (["-l", "nodes=2:ppn=2", "x"], "-l nodes=2:ppn=2 -V -W capture=true -d /here -N x -- mpiexec x"),
        (
            ["-hqgpu", "-n2", "-N", "me", "--", "-x"],
            "-hqgpu -N me -V -W capture=true -l procs=2 -d /here -- mpiexec -n 2 -x",
        ),
        (["-d", "/there", "-np", "3", "x"], "-d /there -V -W capture=true -l procs=3 -N x -- mpiexec -n 3 x"),
    ],
)
def test_words(words: list[str], expected: str) -> None:
    assert " ".join(qsub_words(parse(words), "/here")) == expected


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([], "a program is needed"),
        (["-n"], "requires an argument -- 'n'"),
        (["-n", "none", "x"], "-n none: a number of ranks"),
        (["-n0", "x"], "a number of ranks"),
        (["-l"], "requires an argument -- 'l'"),
        (["-t", "1-3", "x"], "does not take -t"),
        (["-Y", "x"], "invalid option -- 'Y'"),
    ],
)
def test_refusals(words: list[str], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        parse(words)
