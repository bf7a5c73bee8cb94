"""A site's submit filter, as Torque has it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.cluster_kit import LiveCluster
from tests.e2e.conftest import running

FILTER = """#!/bin/sh
case "$*" in
  *secret*) echo "secret is not allowed" >&2; exit 255 ;;
  *broken*) exit 3 ;;
esac
echo "$# $*" >"$HOME_OF_TEST/seen" 2>/dev/null
id -un >"$HOME_OF_TEST/user" 2>/dev/null
sed 's/plain/filtered/'
echo "echo appended $PBS_O_SUBMIT_FILTER" | sed 's/PATH/x/'
"""


@pytest.fixture(scope="module")
def own() -> Iterator[LiveCluster]:
    with running(LiveCluster(agents=1, gpus=0)) as cluster:
        path = cluster.described.submit_filter
        path.write_text(FILTER)
        path.chmod(0o755)
        yield cluster


@pytest.mark.parametrize("full", [False, True], ids=["stub", "full client"])
def test_the_filter_sees_arguments_and_script_and_changes_it(own: LiveCluster, full: bool) -> None:
    script = own.work() / "job.pbs"
    script.write_text("#!/bin/sh\necho plain $PBS_O_SUBMIT_FILTER\n")
    command = ["hpcmesos", "qsub"] if full else ["qsub"]
    environ = {"HOME_OF_TEST": str(own.work())}
    for words, stdin in (
        (["-N", "a_b", str(script)], None),
        (["-N", "a_b"], script.read_text()),
    ):
        done = own.run(*command, *words, stdin=stdin, environ=environ)
        assert (done.returncode, done.stderr) == (0, ""), done
        job = done.stdout.strip()
        assert own.wait(job)["Exit_status"] == 0
        assert own.output(job, name="a_b") == f"filtered {own.described.submit_filter}\nappended\n"
        assert (own.work() / "seen").read_text() == f"{len(words)} {' '.join(words)}\n"
        if own.user:
            assert (own.work() / "user").read_text() == f"{own.user}\n"


@pytest.mark.parametrize("full", [False, True], ids=["stub", "full client"])
@pytest.mark.parametrize("tail", [[], ["--", "true"]], ids=["script", "program"])
def test_what_it_refuses_is_not_submitted(own: LiveCluster, full: bool, tail: list[str]) -> None:
    before = own.run("qselect", "-x").stdout
    command = ["hpcmesos", "qsub"] if full else ["qsub"]
    done = own.run(*command, "-N", "secret", *tail, stdin="#!/bin/sh\ntrue\n")
    assert (done.returncode, done.stdout) == (1, "")
    rejected = "qsub: Your job has been administratively rejected by the queueing system"
    assert done.stderr.splitlines() == ["secret is not allowed", rejected]
    done = own.run(*command, "-N", "broken", *tail, stdin="#!/bin/sh\ntrue\n")
    assert (done.returncode, done.stdout) == (1, "")
    assert "failed (exit code 3), the job is not submitted" in done.stderr
    assert own.run("qselect", "-x").stdout == before


def test_one_that_cannot_be_run_lets_nothing_past(own: LiveCluster) -> None:
    path = own.described.submit_filter
    path.chmod(0o644)
    try:
        done = own.run("qsub", stdin="#!/bin/sh\ntrue\n")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == f"qsub: submit filter {path}: Permission denied\n"
    finally:
        path.chmod(0o755)


def test_a_job_without_a_script_passes_unchanged(own: LiveCluster) -> None:
    done = own.run("qsub", "-N", "prog", "--", "echo", "plain", environ={"HOME_OF_TEST": str(own.work())})
    job = done.stdout.strip()
    own.wait(job)
    assert own.output(job, name="prog") == "plain\n"
