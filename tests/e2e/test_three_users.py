"""Three users' jobs at once on one cluster: each is its owner's, and nobody reaches another's."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass

import pytest

from tests.e2e.cluster_kit import THIRD_USER, LiveCluster, wait_until

VICTIM = """#!/bin/sh
umask 077
echo "$(id -un) $(id -G | tr ' ' ,) $$ $PBS_JOBDIR"
echo mine >/tmp/three-$PBS_JOBID-$$
until test -e "$PBS_O_WORKDIR/stop"; do sleep 0.05; done
rm -f /tmp/three-$PBS_JOBID-$$
"""

PROBES = {
    "reads its script": "cat {directory}/script",
    "lists its spool": "ls {directory}",
    "reads its output": "cat {output}",
    "reads its file in /tmp": "cat /tmp/three-{job}-{pid}",
    "reads its environment": "cat /proc/{pid}/environ",
    "signals its process": "kill -0 {pid}",
    "enters its root": "ls /proc/{pid}/root/tmp",
    "deletes it": "qdel {job}",
    "alters it": "qalter -N stolen {job}",
}


@dataclass
class Victim:
    user: str
    job: str
    pid: str
    directory: str
    output: str


def start(cluster: LiveCluster, user: str) -> Victim:
    job = cluster.qsub(VICTIM, "-v", "SECRET=42x", user=user)
    output = cluster.work(user) / f"STDIN.o{job.split('.')[0]}"
    said = wait_until(lambda: output.exists() and output.read_text().strip(), f"the first line of {job}")
    name, groups, pid, directory = said.split()
    entry = pwd.getpwnam(user)
    assert name == user
    assert set(map(int, groups.split(","))) == set(os.getgrouplist(user, entry.pw_gid))
    status = output.stat()
    assert (status.st_uid, status.st_mode & 0o777) == (entry.pw_uid, 0o600)
    return Victim(user, job, pid, directory, str(output))


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: three real users")
def test_nobody_reaches_anothers_job(cluster: LiveCluster, users: tuple[str, str]) -> None:
    victims = [start(cluster, user) for user in (*users, THIRD_USER)]
    path = f"PATH={cluster.environ['PATH']} HPCMESOS_STATE={cluster.state}"
    for me in victims:
        others = [one for one in victims if one is not me]
        lines = [
            f'({path}; export PATH HPCMESOS_STATE; {probe.format(**vars(other))}) >/dev/null 2>&1 && echo "{what}"'
            for other in others
            for what, probe in PROBES.items()
            if other is others[0] or not what.endswith("it")
        ]
        # The same on oneself shows that each probe works where it may.
        own = [
            f'({path}; export PATH HPCMESOS_STATE; {probe.format(**vars(me))}) >/dev/null 2>&1 || echo "not: {what}"'
            for what, probe in PROBES.items()
            if what in ("reads its script", "reads its output", "reads its environment")
        ]
        script = "#!/bin/sh\n" + "\n".join([*lines, "echo own", *own]) + "\n"
        job = cluster.qsub(script, user=me.user)
        cluster.wait(job, timeout=180)
        assert cluster.output(job, user=me.user) == "own\n"
    for one in victims:
        assert cluster.job(one.job)["job_state"] == "R"
        (cluster.work(one.user) / "stop").touch()
        assert cluster.wait(one.job)["Exit_status"] == 0
        (cluster.work(one.user) / "stop").unlink()
