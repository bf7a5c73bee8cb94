"""A user's secrets reach that user's jobs, as files, and nothing else."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.e2e.cluster_kit import LiveCluster, wait_until

SECRET = "xyzzy-93-plugh"  # looked for everywhere

SHOW = """#!/bin/sh
stat -c '%a %U' $HPCMESOS_SECRETS $HPCMESOS_SECRETS/* >facts
cat $HPCMESOS_SECRETS/key >>facts
echo $HPCMESOS_SECRETS >where
touch ready
while ! [ -e go ]; do sleep 0.05; done
env
"""


def test_a_secret_is_a_file_of_the_job_and_nowhere_else(cluster: LiveCluster, users: tuple[str, str]) -> None:
    ann, bob = users
    assert cluster.run("hpcmesos", "secret", "set", "key", stdin=SECRET, user=ann).returncode == 0
    assert "key" in cluster.run("hpcmesos", "secret", "list", user=ann).stdout
    assert "key" not in cluster.run("hpcmesos", "secret", "list", user=bob).stdout
    refused = cluster.run("qsub", "-W", "secret=key", stdin=SHOW, user=bob)
    assert refused.returncode != 0
    assert "no secret 'key'" in refused.stderr

    job = cluster.qsub(SHOW, "-W", "secret=key", "-d", ".", user=ann)
    work = cluster.work(ann)
    wait_until(lambda: (work / "ready").exists(), "the script has looked")
    place = Path((work / "where").read_text().strip())
    assert (work / "facts").read_text() == f"750 root\n400 {ann}\n{SECRET}"
    foreign = subprocess.run(["cat", place / "key"], user=bob, capture_output=True, check=False)
    assert foreign.returncode != 0

    for shown in (cluster.run("qstat", "-f", job, user=ann).stdout, cluster.run("tracejob", job).stdout):
        assert SECRET not in shown
    assert SECRET not in cluster.run("hpcmesos", "audit", "--json").stdout
    held = subprocess.run(["grep", "-rl", SECRET, cluster.state], capture_output=True, text=True, check=False)
    assert held.stdout == ""  # neither database, journal nor logs

    (work / "go").touch()
    cluster.wait(job)
    assert SECRET not in cluster.output(job, user=ann)
    assert not place.exists()

    assert cluster.run("hpcmesos", "secret", "remove", "key", user=ann).returncode == 0
    assert cluster.run("qsub", "-W", "secret=key", stdin=SHOW, user=ann).returncode != 0


def test_a_secret_that_is_taken_away_before_the_job_begins_holds_it(
    cluster: LiveCluster,
) -> None:
    assert cluster.run("hpcmesos", "secret", "set", "gone", stdin="x").returncode == 0
    job = cluster.qsub("#!/bin/sh\ntrue\n", "-W", "secret=gone", "-h")
    assert cluster.run("hpcmesos", "secret", "remove", "gone").returncode == 0
    assert cluster.run("qrls", job).returncode == 0
    held = cluster.wait_state(job, "H")
    assert held["Hold_Types"] == "u"
    assert "secret gone is not there any more" in held["comment"]
    assert cluster.run("hpcmesos", "secret", "set", "gone", stdin="y").returncode == 0
    assert cluster.run("qrls", job).returncode == 0
    assert cluster.wait(job)["Exit_status"] == 0
