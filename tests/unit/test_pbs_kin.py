"""Jobs of one call that are alike: what makes them kin, and what each has for itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from itertools import product

import pytest

from hpcmesos.errors import InvalidScript, InvalidValue, Rejection, UsageError
from hpcmesos.pbs.kin import Words
from hpcmesos.pbs.submission import Submission, SubmitContext, build, build_submission

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
    "#!/bin/sh\n#PBS -N a/b\ntrue\n",
    '#!/bin/sh\n#PBS -F "\'open"\ntrue\n',
    "#!/bin/sh\n#PBS -N '' -F ''\ntrue\n",
    "#!/bin/sh\n#PBS -v =1\ntrue\n",
    "#!/bin/sh\n#PBS -v A\ntrue\n",
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
    ["-F", "8"],
    ["-F", ""],
    ["-F", "'open"],
    ["-F", "'open", "-F", "x", "-N", "a/b", "-N", "one"],
    ["-N", "a/b"],
    ["-N", "one", "-F", "x"],
    ["-v", "=1"],
    ["-V", "-v", "B=7"],
    ["-hvA=1"],
    ["-h"],
    ["job.sh"],
    [],
)


def kind(argv: list[str], script: str | None = None) -> object:
    return Words.read(argv).kind(script, CONTEXT)


def as_kin(argv: list[str], script: str | None, first: list[str]) -> Submission:
    """The job of ``argv``, built from what it shares with ``first``, which is of its kind."""
    words = Words.read(argv)
    shared = build(Words.read(first).shared, script, CONTEXT)
    given = words.script_args
    return replace(
        shared,
        name=words.name(shared.name),
        argv=words.program,
        submit_args=words.submit_args,
        environment={**shared.environment, **words.variables(CONTEXT)},
        script_args=shared.script_args if given is None else given,
    )


def outcome(build_one: Callable[[], Submission]) -> Submission | type[Rejection]:
    """The job, or that it is refused; of several faults either way may name another one first."""
    try:
        return build_one()
    except Rejection as error:
        return type(error)


def test_kin_are_built_alike_but_for_name_program_and_words() -> None:
    jobs = [
        (argv, script)
        for argv, script in product(WORDS, SCRIPTS)
        if (script is None) == ("--" in argv)  # either a program or a script
    ]
    pairs = refused = 0
    for (one, script), (other, another) in product(jobs, jobs):
        if kind(one, script) != kind(other, another):
            continue
        pairs += one != other
        alone = outcome(partial(build_submission, other, another, CONTEXT))
        refused += isinstance(alone, type)
        assert outcome(partial(as_kin, other, another, one)) == alone, (one, other, another)
    assert pairs and refused


@pytest.mark.parametrize(
    ("argv", "directive"), [(["-N", "good"], "#PBS -N a/b"), (["-F", "x"], '#PBS -F "\'open"')]
)
def test_what_a_job_overrides_is_not_judged(argv: list[str], directive: str) -> None:
    script = f"#!/bin/sh\n{directive}\ntrue\n"
    job = as_kin(argv, script, argv)
    assert job == build_submission(argv, script, CONTEXT)
    assert argv[1] in (job.name, *job.script_args)
    with pytest.raises(InvalidValue, match=argv[0]):
        as_kin([], script, [])


def test_a_sweep_is_of_one_kind() -> None:
    assert kind(["-N", "a", "--", "prog", "1"]) == kind(["-N", "b", "--", "other", "2", "3"])
    assert kind(["--", "prog", "1"]) == kind(["--", "prog", "2"])
    assert kind(["-v", "A=1"], "true\n") == kind(["-v", "A=2"], "true\n") == kind([], "true\n")
    assert kind(["-F", "x"], "true\n") == kind(["-F", "'a b' c", "-v", "A=2"], "true\n")
    assert kind(["-p", "1"], "#!/bin/sh\ntrue\n") == kind(["-p", "1"], "#!/bin/sh\nfalse\n")


def test_what_more_than_the_name_depends_on_parts_them() -> None:
    sweep = kind(["-N", "a", "--", "prog"])
    assert sweep != kind(["-N", "a", "-h", "--", "prog"])
    assert sweep != kind(["-N", "a", "--"])
    assert sweep != kind(["-N", "a"], "true\n")
    assert (
        kind(["-N", "a"], "true\n") != kind([], "true\n") != kind(["-F", "x"], "true\n")
    )  # the script's own
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
