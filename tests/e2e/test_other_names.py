"""tracejob, and Moab's and Maui's commands, as their clients use them."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from tests.e2e.cluster_kit import LiveCluster

SLEEP = "#!/bin/sh\nsleep 600\n"


def test_tracejob_tells_from_submission_to_the_end(cluster: LiveCluster) -> None:
    job = cluster.qsub("#!/bin/sh\nexit 3\n", "-N", "three")
    first = cluster.run("tracejob", job, check=True).stdout
    assert first.startswith(f"\nJob: {job}\n\n")
    assert "Job Queued at request of" in first
    cluster.wait(job)
    lines = cluster.run("tracejob", "-n", "3", "-q", job, check=True).stdout.splitlines()[3:]
    assert all(re.fullmatch(r"\d\d/\d\d/\d{4} \d\d:\d\d:\d\d  [SA]    \S.*", line) for line in lines), lines
    text = "\n".join(lines)
    assert re.search(r"S +Job Run at request of Scheduler@hpcm on node\d", text)
    assert re.search(r"S +Exit_status=3 resources_used.cput=", text)
    assert "S    dequeuing from batch, state COMPLETE" in text
    assert re.search(r"A +user=\S+ group=\S+ jobname=three .* Exit_status=3", text)
    assert "  A  " not in cluster.run("tracejob", "-a", job).stdout
    assert "  S  " not in cluster.run("tracejob", "-s", job).stdout
    missing = cluster.run("tracejob", "99999")
    assert (missing.returncode, missing.stdout) == (1, "")
    assert "No matching job records located" in missing.stderr
    assert "default prefix path = /" in cluster.run("tracejob").stdout


def test_tracejob_keeps_accounts_to_their_owner(cluster: LiveCluster, users: tuple[str, str]) -> None:
    ann, bob = users
    job = cluster.qsub("#!/bin/sh\n", user=ann)
    cluster.wait(job)
    assert "  A  " in cluster.run("tracejob", job, user=ann).stdout
    assert "  A  " not in cluster.run("tracejob", job, user=bob).stdout


def test_showq_and_checkjob(cluster: LiveCluster) -> None:
    runs = cluster.qsub(SLEEP, "-l", "nodes=2:ppn=1,walltime=1:00:00", "-N", "active")
    held = cluster.qsub(SLEEP, "-h")
    cluster.wait_state(runs, "R")
    text = cluster.run("showq", check=True).stdout
    owner = cluster.job(runs)["Job_Owner"].partition("@")[0]
    rows = {
        line.split()[0]: line.split()
        for line in text.splitlines()
        if line[:1].isdigit() and owner[:8] in line
    }
    assert rows[runs.partition(".")[0]][1:4] == [owner[:8], "Running", "2"]
    assert rows[held.partition(".")[0]][2] == "UserHold"
    assert "Total Jobs: 2   Active Jobs: 1   Idle Jobs: 0   Blocked Jobs: 1\n" in text
    assert "Total Jobs: 0 " in cluster.run("showq", "-w", "user=nobody").stdout

    root = ElementTree.fromstring(cluster.run("showq", "--xml", "-w", f"user={owner}").stdout)
    states = {one.get("JobID"): one.get("State") for one in root.findall("queue/job")}
    assert states == {runs.partition(".")[0]: "Running", held.partition(".")[0]: "UserHold"}

    told = cluster.run("checkjob", runs, check=True).stdout
    assert "\nState: Running\n" in told
    assert f"Creds:  user:{owner}  group:" in told
    assert re.search(r"Allocated Nodes:\n\[node\d:1\]\[node\d:1\]\n", told)
    assert "WallTime: 00:00:0" in told
    one = ElementTree.fromstring(cluster.run("mdiag", "-j", runs, "--xml").stdout).find("job")
    assert one is not None
    assert (one.get("State"), len((one.get("AllocNodeList") or "").split(","))) == ("Running", 2)
    assert "job has ended" not in cluster.run("showstart", held, check=True).stdout
    assert cluster.run("checkjob", "99999").returncode == 153

    done = cluster.run("canceljob", runs)
    assert (done.returncode, done.stdout) == (0, f"\njob '{runs}' cancelled\n")
    done = cluster.run("mjobctl", "-c", f"{held},99999")
    assert (done.returncode, done.stdout) == (153, f"\njob '{held}' cancelled\n")
    assert done.stderr == "mjobctl: Unknown Job Id Error 99999.hpcm\n"
    assert "Completion Code: 271" in cluster.run("checkjob", str(cluster.wait(runs) and runs)).stdout


def test_msub(cluster: LiveCluster) -> None:
    path = cluster.work() / "m.sh"
    path.write_text("#!/bin/sh\nexit 2\n")
    plain = cluster.run("msub", str(path), check=True).stdout.strip()
    assert cluster.wait(plain)["Exit_status"] == 2
    found = ElementTree.fromstring(cluster.run("msub", "--xml", str(path)).stdout).find("job")
    assert found is not None
    assert cluster.wait(str(found.get("JobID")))["Exit_status"] == 2
