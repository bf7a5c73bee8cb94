"""Jobs run as their owner; output belongs to the owner and is in place before the job is complete."""

from __future__ import annotations

import os
import pwd

from tests.e2e.cluster_kit import LiveCluster


def test_two_users(cluster: LiveCluster, users: tuple[str, str]) -> None:
    jobs = {user: cluster.qsub("#!/bin/sh\nid -un\nid -Gn\numask\npwd\n", user=user) for user in users}
    for user, job in jobs.items():
        assert cluster.wait(job)["Exit_status"] == 0
        entry = pwd.getpwnam(user)
        path = cluster.work(user) / f"STDIN.o{job.split('.')[0]}"
        status = path.stat()
        assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (entry.pw_uid, entry.pw_gid, 0o600)
        name, groups, umask, directory = path.read_text().splitlines()
        assert (name, groups.split()[0], umask, directory) == (user, user, "0077", entry.pw_dir)
        assert os.path.exists(cluster.work(user) / f"STDIN.e{job.split('.')[0]}")


def test_output_is_there_when_the_job_is_complete(cluster: LiveCluster) -> None:
    for _ in range(10):
        done = cluster.run("qsub", "-W", "block=true", stdin="#!/bin/sh\necho out\necho err >&2\n")
        job = done.stdout.strip()
        assert cluster.output(job) == "out\n"
        assert cluster.output(job, kind="e") == "err\n"


def test_variables_are_for_the_owner(cluster: LiveCluster, users: tuple[str, str]) -> None:
    ann, bob = users
    job = cluster.qsub("#!/bin/sh\necho $SECRET\n", "-v", "SECRET=42x", user=ann)
    cluster.wait(job)
    assert "SECRET=42x" in cluster.run("qstat", "-f", job, user=ann).stdout
    assert "42x" not in cluster.run("qstat", "-f", job, user=bob).stdout
    assert cluster.output(job, user=ann) == "42x\n"
