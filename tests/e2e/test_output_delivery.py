"""Files of jobs: where output goes, whose it is, what is staged in and out."""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path

import pytest

from tests.e2e.cluster_kit import LiveCluster, wait_until


def home(cluster: LiveCluster) -> Path:
    return Path(pwd.getpwnam(cluster.user).pw_dir if cluster.user else os.environ["HOME"])


def test_kept_output_grows_in_the_home_directory(cluster: LiveCluster) -> None:
    job = cluster.qsub("#!/bin/sh\necho out\necho err >&2\n", "-k", "o", "-N", "kept")
    shown = cluster.wait(job)
    assert (shown["Exit_status"], shown["Keep_Files"]) == (0, "o")
    path = home(cluster) / f"kept.o{job.split('.')[0]}"
    try:
        assert path.read_text() == "out\n"
        assert cluster.output(job, name="kept", kind="e") == "err\n"
        assert not (cluster.work() / path.name).exists()
        assert cluster.run("hpcmesos", "logs", job).stdout == "out\n"
    finally:
        path.unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("words", "mode"), [([], 0o600), (["-W", "umask=022"], 0o644), (["-W", "umask=027"], 0o640)]
)
def test_output_is_its_owners_with_the_umask_asked_for(
    cluster: LiveCluster, words: list[str], mode: int
) -> None:
    job = cluster.qsub("#!/bin/sh\numask\n", *words, "-o", f"{mode:o}.out")
    cluster.wait(job)
    status = (cluster.work() / f"{mode:o}.out").stat()
    assert stat.S_IMODE(status.st_mode) == mode
    assert pwd.getpwuid(status.st_uid).pw_name == (cluster.user or pwd.getpwuid(os.getuid()).pw_name)


def test_files_are_staged_in_and_out_as_the_owner(cluster: LiveCluster) -> None:
    work = cluster.work()
    (work / "data.in").write_text("42\n")
    host = os.uname().nodename
    name = f"staged.{os.getpid()}"
    job = cluster.qsub(
        f"#!/bin/sh\ncat {name}.in && sed s/4/5/ {name}.in >{name}.out\n",
        *("-W", f"stagein={name}.in@{host}:{work}/data.in"),
        *("-W", f"stageout={name}.out@{host}:{work}/stage.txt"),
    )
    try:
        assert cluster.wait(job)["Exit_status"] == 0
        assert cluster.output(job) == "42\n"
        assert (work / "stage.txt").read_text() == "52\n"
        if cluster.user:
            assert (work / "stage.txt").owner() == cluster.user
    finally:
        for letter in ("in", "out"):
            (home(cluster) / f"{name}.{letter}").unlink(missing_ok=True)


def test_what_cannot_be_staged_in_is_said_and_the_job_held(cluster: LiveCluster) -> None:
    host = os.uname().nodename
    job = cluster.qsub("#!/bin/sh\ntouch in-spite\n", "-d", ".", "-W", f"stagein=x@{host}:/nonexistent/x")
    held = wait_until(lambda: (seen := cluster.job(job))["job_state"] == "H" and seen, "held", 60)
    assert "stagein of /nonexistent/x: exit code 1" in held["comment"]
    assert not (cluster.work() / "in-spite").exists()


def test_what_cannot_be_staged_out_is_said_and_the_status_is_the_scripts(cluster: LiveCluster) -> None:
    host = os.uname().nodename
    job = cluster.qsub("#!/bin/sh\nexit 6\n", "-W", f"stageout=nothing.here@{host}:/tmp/x")
    ended = cluster.wait(job)
    assert ended["Exit_status"] == 6
    assert "stageout of nothing.here: exit code 1" in ended["comment"]


def test_a_malformed_transfer_is_refused(cluster: LiveCluster) -> None:
    done = cluster.run("qsub", "-W", "stagein=nonsense", stdin="#!/bin/sh\ntrue\n")
    assert (done.returncode, done.stdout) == (168, "")
    assert done.stderr == "qsub: illegal -W stagein value 'nonsense'; write LOCAL@HOST:REMOTE\n"
