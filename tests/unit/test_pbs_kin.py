"""Jobs of one call that are alike: what makes them kin, and what each has for itself."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from itertools import product

import pytest

from hpcmesos.errors import InvalidScript, InvalidValue, UsageError
from hpcmesos.pbs.kin import Words
from hpcmesos.pbs.submission import SubmitContext, build, build_submission

CONTEXT = SubmitContext(
    cwd="/data",
    umask=0o22,
    host="login",
    user="ann",
    home="/home/ann",
    environ={"HOME": "/home/ann"},
    server="hpcm",
    now=datetime(2026, 1, 5, tzinfo=UTC),
)
SCRIPTS = (
    None,
    "#!/bin/sh\ntrue\n",
    "#!/bin/sh\nfalse\n",
    "#!/bin/sh\n#PBS -N mine -p 3 -v A=0,C=9 -F x\ntrue\n",
)
WORDS = (
    ["-N", "one", "--", "prog", "1"],
    ["-N", "two", "--", "other"],
    ["--", "prog", "1"],
    ["--", "prog", "2"],
    ["--", "other"],
    ["-N", "one", "-l", "nodes=2", "--", "prog"],
    ["-p", "3", "-N", "one", "--", "prog"],
    ["-N", "one", "-p", "3", "--", "prog"],
    ["-N", "one"],
    ["-N", "two"],
    ["-v", "A=1"],
    ["-v", "A=1,B=2", "-v", "A=3,PBS_O_HOST=mine,HOME"],
    ["-v", "A=1", "-p", "3", "-N", "one"],
    ["-F", "7 'a b'"],
    ["-V", "-v", "B=7"],
    ["-hvA=1"],
    ["-h"],
    ["job.sh"],
    [],
)


def kind(argv: list[str], script: str | None = None) -> object:
    return Words.read(argv).kind(script, CONTEXT)


def test_kin_are_built_alike_but_for_name_program_and_words() -> None:
    jobs = [
        (argv, script)
        for argv, script in product(WORDS, SCRIPTS)
        if (script is None) == ("--" in argv)  # either a program or a script
    ]
    pairs = 0
    for (one, script), (other, another) in product(jobs, jobs):
        if kind(one, script) != kind(other, another):
            continue
        pairs += one != other
        words = Words.read(other)
        shared = build(Words.read(one).shared, script, CONTEXT)
        given = words.script_args
        alike = replace(
            shared,
            name=words.name(shared.name),
            argv=words.program,
            submit_args=words.submit_args,
            environment={**shared.environment, **words.variables(CONTEXT)},
            script_args=shared.script_args if given is None else given,
        )
        assert alike == build_submission(other, another, CONTEXT)
    assert pairs


def test_a_sweep_is_of_one_kind() -> None:
    assert kind(["-N", "a", "--", "prog", "1"]) == kind(["-N", "b", "--", "other", "2", "3"])
    assert kind(["--", "prog", "1"]) == kind(["--", "prog", "2"])
    assert kind(["-v", "A=1"], "true\n") == kind(["-v", "A=2", "-F", "x"], "true\n") == kind([], "true\n")
    assert kind(["-p", "1"], "#!/bin/sh\ntrue\n") == kind(["-p", "1"], "#!/bin/sh\nfalse\n")


def test_what_more_than_the_name_depends_on_parts_them() -> None:
    sweep = kind(["-N", "a", "--", "prog"])
    assert sweep != kind(["-N", "a", "-h", "--", "prog"])
    assert sweep != kind(["-N", "a", "--"])
    assert sweep != kind(["-N", "a"], "true\n")
    assert kind(["--", "prog"]) != kind(["--", "other"])  # it gives the job its name
    assert kind([], "#PBS -p 1\n") != kind([], "#PBS -p 2\n")


def test_what_is_a_jobs_own_is_checked() -> None:
    with pytest.raises(InvalidValue, match="-N"):
        Words.read(["-N", "a/b", "--", "prog"]).name("a")
    with pytest.raises(InvalidValue, match="-v"):
        Words.read(["-v", "=1", "--", "prog"]).variables(CONTEXT)
    with pytest.raises(InvalidValue, match="-F"):
        assert Words.read(["-F", "'open"]).script_args
    with pytest.raises(UsageError):
        Words.read(["-Y", "--", "prog"])
    with pytest.raises(InvalidScript, match="line 2"):
        kind([], '#!/bin/sh\n#PBS -N "open\n')
