"""What the scheduler promises, on a living cluster: limits, reservations, shares."""

from __future__ import annotations

import grp
import json
import os
import pwd
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.cluster_kit import LiveCluster, wait_until
from tests.e2e.conftest import running
from tests.e2e.test_masters import leading

SLEEP = "#!/bin/sh\nexec sleep 600\n"
TRUE = "#!/bin/sh\ntrue\n"


@pytest.fixture(scope="module")
def own() -> Iterator[LiveCluster]:
    """Two nodes of two GPUs, whose queues these tests may change."""
    with running(LiveCluster(agents=2, gpus=4)) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def as_found(own: LiveCluster) -> Iterator[None]:
    yield
    own.run("qdel", "-W", "0", "all", user="")
    wait_until(lambda: own.run("qselect", "-s", "QRHWE", user="").stdout == "", "no jobs")


def qmgr(cluster: LiveCluster, *directives: str) -> None:
    done = cluster.run("qmgr", stdin="\n".join(directives), user="")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def why(cluster: LiveCluster, job: str) -> str:
    return cluster.run("qstat", "--why", job).stdout


def test_limits_hold_until_they_are_changed(own: LiveCluster, users: tuple[str, str]) -> None:
    ann, bob = users
    qmgr(own, "set queue batch max_run_res.ngpus = [u:PBS_GENERIC=2]")
    try:
        first = own.qsub(SLEEP, "-l", "nodes=1:gpus=2", user=ann)
        own.wait_state(first, "R")
        second = own.qsub(SLEEP, "-l", "nodes=1:gpus=1", user=ann)
        others = own.qsub(SLEEP, "-l", "nodes=1:gpus=1", user=bob)
        own.wait_state(others, "R")
        text = f"limit of user {ann} in queue batch: 2 of 2 GPUs in use, this job needs 1"
        wait_until(lambda: text in why(own, second), text)
        refused = own.run("qsub", "-l", "nodes=2:gpus=2", stdin=TRUE, user=ann)
        assert (refused.returncode, refused.stdout) == (190, "")
        assert f"limit of user {ann} in queue batch: 0 of 2 GPUs in use, this job needs 4" in refused.stderr
        qmgr(own, "set queue batch max_run_res.ngpus = [u:PBS_GENERIC=3]")
        own.wait_state(second, "R")
    finally:
        qmgr(own, "unset queue batch max_run_res")


def test_gpu_hours_and_groups_are_limits_too(own: LiveCluster, users: tuple[str, str]) -> None:
    ann, bob = users
    group = grp.getgrgid(pwd.getpwnam(ann).pw_gid).gr_name
    qmgr(own, "set queue batch max_run_res.gpuhours = [u:PBS_GENERIC=4]")
    try:
        own.wait_state(own.qsub(SLEEP, "-l", "nodes=1:gpus=1,walltime=3:00:00", user=ann), "R")
        second = own.qsub(SLEEP, "-l", "nodes=1:gpus=2,walltime=1:00:00", user=ann)
        text = "of 4 GPU-hours in use, this job needs 2 more"
        wait_until(lambda: text in why(own, second), text)
        refused = own.run("qsub", "-l", "nodes=1:gpus=2,walltime=2:30:00", stdin=TRUE, user=ann)
        assert (refused.returncode, refused.stdout) == (190, "")
        whose = f"limit of user {ann} in queue batch: 0 of 4 GPU-hours in use"
        assert f"{whose}, this job needs 5 more" in refused.stderr
        refused = own.run("qalter", "-l", "nodes=1:gpus=2,walltime=3:00:00", second, user=ann)
        assert (refused.returncode != 0, f"{whose}, this job needs 6 more" in refused.stderr) == (True, True)

        qmgr(own, "set server max_group_run = 1", "unset queue batch max_run_res")
        text = f"limit of group {group}: 1 of 1 jobs in use, this job needs 1 more"
        wait_until(lambda: text in why(own, second), text)
        assert f"egroup = {group}\n" in own.run("qstat", "-f", second).stdout
        own.wait_state(own.qsub(SLEEP, "-l", "nodes=1:gpus=1", user=bob), "R")
        qmgr(own, "set server max_group_run = 2")
        own.wait_state(second, "R")
    finally:
        qmgr(own, "unset queue batch max_run_res", "unset server max_group_run")


def test_nodes_are_kept_for_a_reservation(own: LiveCluster, users: tuple[str, str]) -> None:
    ann, bob = users
    own.hpcmesos("reserve", "add", "course", "--nodes", "node1", "--end", "+1:00:00", "--users", ann)
    try:
        assert "course" in own.hpcmesos("reserve", "list").stdout
        twice = own.hpcmesos("reserve", "add", "more", "--nodes", "node1", "--end", "+1:00:00", check=False)
        assert (twice.returncode != 0, "course has node1" in twice.stderr) == (True, True)
        denied = own.run("hpcmesos", "reserve", "rm", "course", user=bob)
        assert (denied.returncode != 0, "only operators" in denied.stderr) == (True, True)
        kept_out = own.qsub(SLEEP, "-l", "nodes=2:gpus=1", user=bob)
        inside = own.qsub(SLEEP, "-l", "nodes=1:gpus=2,walltime=0:10:00", user=bob)
        assert own.wait_state(inside, "R")["exec_host"].startswith("node2/")
        own.run("qdel", inside, user=bob)
        let_in = own.qsub(SLEEP, "-l", "nodes=2:gpus=1", user=ann)
        own.wait_state(let_in, "R")
        wait_until(lambda: "kept for a reservation" in why(own, kept_out), "why it waits")
    finally:
        own.hpcmesos("reserve", "rm", "course")
    own.run("qdel", let_in, user=ann)
    own.wait_state(kept_out, "R")


def test_nobody_runs_into_maintenance(own: LiveCluster) -> None:
    own.hpcmesos("reserve", "add", "power", "--start", "+1:00:00", "--end", "+2:00:00")
    try:
        long = own.qsub(TRUE, "-l", "nodes=1:gpus=1,walltime=2:00:00")
        short = own.qsub(TRUE, "-l", "nodes=1:gpus=1,walltime=0:10:00")
        assert own.wait(short)["Exit_status"] == 0
        assert own.job(long)["job_state"] == "Q"
        wait_until(lambda: "power" in why(own, long), "why it waits")
    finally:
        own.hpcmesos("reserve", "rm", "power")
    assert own.wait(long)["Exit_status"] == 0


def test_use_counts_and_survives_a_new_leader(own: LiveCluster, users: tuple[str, str]) -> None:
    ann, _ = users
    own.hpcmesos("share", "--project", "chem", "--user", ann, "--set", "3")
    assert own.run("hpcmesos", "share", "--project", "chem", "--set", "9", user=ann).returncode != 0
    job = own.qsub(SLEEP, "-P", "chem", "-l", "nodes=1:gpus=2", user=ann)
    own.wait_state(job, "R")

    def used() -> float:
        done = own.run(
            "curl", "-sf", "--unix-socket", str(own.described.api_sockets[0]), "http://h/v1/shares", user=""
        )
        rows = {(row["project"], row["user"]): row for row in json.loads(done.stdout)}
        assert rows["chem", ann]["shares"] == 3.0
        return float(rows["chem", ann]["gpu_hours"])

    before = wait_until(used, "use is written down", 60)
    own.run("qdel", job, user=ann)
    wait_until(lambda: own.run("qselect", "-s", "RE", user="").stdout == "", "it has ended")
    first = leading(own)
    os.kill(first.pid, signal.SIGKILL)
    leading(own, above=first.term)
    after = wait_until(lambda: now if (now := used()) > before else None, "what ran since then counts", 60)
    assert after < before + 1.0


def test_why_and_when(own: LiveCluster, users: tuple[str, str]) -> None:
    ann, bob = users
    runs = own.qsub(SLEEP, "-l", "nodes=2:gpus=2,walltime=0:20:00", user=ann)
    own.wait_state(runs, "R")
    first = own.qsub(TRUE, "-l", "nodes=1:gpus=2,walltime=0:30:00", user=bob)
    second = own.qsub(TRUE, "-l", "nodes=2:gpus=2,walltime=0:30:00", user=bob)

    def told(job: str) -> dict[str, Any]:
        (found,) = json.loads(own.run("qstat", "--why", "-F", "json", job).stdout)
        return dict(found)

    wait_until(lambda: told(second).get("starts_at"), "estimates")
    ends = told(first)["holders"][0]["until"]
    assert told(first)["code"] == "insufficient"
    assert (told(first)["facts"]["gpus_needed"], told(first)["facts"]["gpus_free"]) == (2, 0)
    assert [told(job)["place"] for job in (first, second)] == [1, 2]
    assert told(first)["starts_at"] == pytest.approx(ends, abs=5)
    assert told(second)["starts_at"] == pytest.approx(ends + 1800, abs=10)
    (holder,) = told(first)["holders"]
    assert (holder["job"], holder["user"], holder["gpus"], holder["nodes"]) == (
        runs,
        ann,
        4,
        ["node1", "node2"],
    )
    full = own.run("qstat", "--why", "-f", second).stdout
    for words in (
        "place: 2 of 2",
        "estimated start: ",
        "fair share",
        "queue priority",
        f"{runs} of {ann}: 4 GPUs",
    ):
        assert words in full
    assert "Earliest start in" in own.run("showstart", second).stdout
    would = own.run("qsub", "--dry-run", "-l", "nodes=1:gpus=1,walltime=1:00", stdin=TRUE, user=bob)
    assert "start = would wait: needs " in would.stdout
    assert "would start about" in would.stdout
    own.run("qdel", runs, user=ann)
    assert own.wait(first)["Exit_status"] == own.wait(second)["Exit_status"] == 0

    def start() -> str:
        would = own.run("qsub", "--dry-run", "-l", "nodes=2:gpus=2", stdin=TRUE, user=bob)
        return would.stdout.rpartition("start = ")[2]

    wait_until(lambda: start() == "would start now on node1, node2\n", "both nodes are free")
    assert own.run("qselect", "-s", "QR", user="").stdout == ""


def test_a_gpu_that_is_out_of_use_is_named(own: LiveCluster, users: tuple[str, str]) -> None:
    own.run("pbsnodes", "-o", "--gpu", "1", "-N", "fan is loud", "node1", user="", check=True)
    try:
        job = own.qsub(TRUE, "-l", "nodes=2:gpus=2")
        text = "1 such node is free now (node2: 2 of 2 GPUs free); out of use: GPU 1 of node1 (fan is loud"
        wait_until(lambda: text in why(own, job), text)
    finally:
        own.run("pbsnodes", "-c", "--gpu", "1", "node1", user="", check=True)
    assert own.wait(job)["Exit_status"] == 0
    assert "out of use" not in why(own, own.qsub(TRUE, "-l", "nodes=2:gpus=2", "-h"))


def test_preempted_after_a_checkpoint(own: LiveCluster, users: tuple[str, str]) -> None:
    ann, bob = users
    qmgr(own, "create queue urgent level=1,enabled=true,started=true", "set queue batch preempt_grace = 30")
    script = f"""#!/bin/bash
cd {own.work(ann)}
if [ -e saved ]; then echo goes on from $(cat saved); exit 0; fi
trap 'echo step 7 > saved; exit 99' USR1
touch begun
while :; do sleep 0.1; done
"""
    try:
        low = own.qsub(script, "-l", "nodes=1:gpus=2", "-N", "low", user=ann)
        wide = own.qsub(SLEEP, "-l", "nodes=1:gpus=2,walltime=0:10:00", "-r", "n", user=ann)
        wait_until(lambda: (own.work(ann) / "begun").exists(), "the low job runs")
        own.wait_state(wide, "R")
        seen = own.work(bob) / "seen"
        high = own.qsub(
            f"#!/bin/sh\nwhile [ ! -e {seen} ]; do sleep 0.1; done\n",
            *("-q", "urgent", "-l", "nodes=1:gpus=2,walltime=0:01:00"),
            user=bob,
        )
        own.wait_state(high, "R")
        assert own.job(low)["job_state"] == "Q"
        seen.touch()
        assert own.wait(high)["Exit_status"] == 0
        assert own.wait(low)["Exit_status"] == 0
        assert own.output(low, "low", user=ann) == "goes on from step 7\n"
        assert own.job(wide)["job_state"] == "R", "it may not be run again, so it is not preempted"
    finally:
        own.run("qdel", "-W", "0", "all", user="")
        wait_until(lambda: own.run("qselect", "-s", "QRHWE", user="").stdout == "", "no jobs")
        qmgr(own, "unset queue batch preempt_grace", "delete queue urgent")


def test_a_gang_keeps_to_the_constraints_of_its_job(own: LiveCluster, users: tuple[str, str]) -> None:
    ann, bob = users
    rule = "constraints=hostname:UNLIKE:node1"
    job = own.qsub(SLEEP, "-l", "nodes=1:gpus=2", "-W", rule, user=ann)
    assert own.wait_state(job, "R")["exec_host"].startswith("node2/"), "by itself it would go to node1"
    assert own.job(job)["constraints"] == "hostname:UNLIKE:node1"
    waits = own.qsub(TRUE, "-l", "nodes=1:gpus=1", "-W", "constraints=hostname:LIKE:node[23]", user=bob)
    text = "not enough is free now on nodes that keep to hostname:LIKE:node[23]"
    wait_until(lambda: text in why(own, waits), text)
    would = own.run("qsub", "--dry-run", "-l", "nodes=1:gpus=1", "-W", rule, stdin=TRUE, user=bob).stdout
    assert "constraints = hostname:UNLIKE:node1\n" in would
    assert "start = would wait: " in would
    for rules, words in (
        ("hostname:GROUP_BY:3", "the nodes cannot keep to hostname:GROUP_BY:3"),
        ("hostname:NEAR:node1", "no 'NEAR'"),
        ("hostname:LIKE:(a+)+", "groups are not served"),
    ):
        refused = own.run("qsub", "-l", "nodes=2", "-W", f"constraints={rules}", stdin=TRUE, user=bob)
        assert (refused.returncode != 0, refused.stdout, refused.stderr.count("\n")) == (True, "", 1)
        assert words in refused.stderr
    own.run("qdel", job, user=ann)
    assert own.wait(waits)["Exit_status"] == 0


def test_the_live_queue_can_be_simulated(own: LiveCluster, users: tuple[str, str]) -> None:
    ann, _ = users
    runs = own.qsub(SLEEP, "-l", "nodes=2:gpus=2,walltime=0:10:00", user=ann)
    own.wait_state(runs, "R")
    own.qsub(TRUE, "-l", "nodes=2:gpus=2,walltime=0:20:00", user=ann)
    own.qsub(TRUE, "-l", "nodes=1:gpus=1,walltime=0:05:00", "-t", "0-3", user=ann)
    path = own.root / "queue.json"
    own.hpcmesos("queue", "export", str(path))
    told = json.loads(own.hpcmesos("simulate", str(path), "--add-nodes", "2", "--json", "-").stdout)
    now, more = ((round(one["makespan"] / 60), one["jobs"], one["never"]) for one in told)
    assert now == (35, 5, 0), "10 minutes for what runs, 5 for the elements, 20 for the gang, as far as known"
    assert more == (25, 5, 0), "the elements start at once on two nodes more, the gang after them"
    denied = own.run("hpcmesos", "queue", "export", user=ann)
    assert (denied.returncode != 0, "only operators" in denied.stderr) == (True, True)
