"""What is refused at submit: one clear line on stderr, the right exit code, no trace in the database."""

from __future__ import annotations

import pytest

from tests.e2e.cluster_kit import LiveCluster
from tests.e2e.remote_kit import Remote


def known_jobs(cluster: LiveCluster) -> set[str]:
    """Their ids; that old ones leave the list meanwhile is none of our concern."""
    shown = cluster.run("qstat", "-f", check=True).stdout
    return {line.removeprefix("Job Id: ") for line in shown.splitlines() if line.startswith("Job Id: ")}


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("-l", "nodes=1:gpus=0.5"), 168, "gpus=1"),
        (("-l", "nodes=99"), 190, "99"),
        (("-q", "nosuch"), 172, "nosuch"),
        (("-l", "walltime=1:2:x"), 168, "walltime"),
    ],
    ids=["half-a-gpu", "too-many-nodes", "unknown-queue", "bad-walltime"],
)
def test_refused_requests(cluster: LiveCluster, options: tuple[str, ...], code: int, words: str) -> None:
    before = known_jobs(cluster)
    done = cluster.run("qsub", *options, stdin="#!/bin/sh\ntrue\n")
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("qsub: ")
    assert words in done.stderr
    assert known_jobs(cluster) <= before


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"#!/bin/sh\n" + b"# padding\n" * 524_288, "MiB"), (b"#!/bin/sh\necho \0\n", "NUL")],
    ids=["5-MiB-script", "NUL-bytes"],
)
def test_refused_scripts(cluster: LiveCluster, content: bytes, words: str) -> None:
    path = cluster.work() / "refused.sh"
    path.write_bytes(content)
    for arguments, stdin in (([str(path)], None), ([], content)):
        done = cluster.run("qsub", *arguments, stdin=stdin)
        assert (done.returncode, done.stdout) == (1, ""), done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert words in done.stderr


def test_missing_script(cluster: LiveCluster) -> None:
    done = cluster.run("qsub", "/no/such/script")
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1
    assert "/no/such/script" in done.stderr


def test_foreign_qdel(cluster: LiveCluster, users: tuple[str, str]) -> None:
    ann, bob = users
    job = cluster.qsub("#!/bin/sh\nsleep 600\n", user=ann)
    done = cluster.run("qdel", job, user=bob)
    assert done.returncode == 159, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert cluster.job(job)["job_state"] in ("Q", "R")
    assert cluster.run("qdel", job, user=ann).returncode == 0
    cluster.wait(job)


def test_unknown_job(cluster: LiveCluster) -> None:
    for command in ("qstat", "qdel", "qhold", "qrls"):
        done = cluster.run(command, "999999")
        assert done.returncode == 153, (command, done.stderr)
        assert "Unknown Job Id" in done.stderr


def test_wrong_token(cluster: LiveCluster) -> None:
    remote = Remote(cluster)
    remote.file.write_text("not-a-token\n")
    done = remote.run("qstat")
    assert done.returncode == 159, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "token" in done.stderr
