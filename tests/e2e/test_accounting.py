"""Accounting records in daily files, as Torque writes them, and reports out of the database."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from datetime import datetime
from xml.etree import ElementTree

from tests.e2e.cluster_kit import LiveCluster, wait_until

RECORD = re.compile(r"(\d\d/\d\d/\d{4} \d\d:\d\d:\d\d);([QSEDAR]);(\d+\.hpcm);((?:[\w.]+=\S* ?)*)")


def records(cluster: LiveCluster, job: str) -> list[tuple[str, dict[str, str]]]:
    """Kinds and fields of a job's records, in the order of the file."""
    found = []
    for file in sorted((cluster.state / "master" / "accounting").iterdir()):
        assert re.fullmatch(r"\d{8}", file.name)
        for line in file.read_text().splitlines():
            match = RECORD.fullmatch(line)
            assert match, line
            assert datetime.strptime(match[1], "%m/%d/%Y %H:%M:%S").strftime("%Y%m%d") == file.name  # noqa: DTZ007 - local, as PBS writes it
            if match[3] == job:
                found.append((match[2], dict(word.split("=", 1) for word in match[4].split())))
    return found


def await_kinds(cluster: LiveCluster, job: str, expected: str) -> None:
    """Until the letters of a job's records are these."""
    wait_until(
        lambda: "".join(kind for kind, _ in records(cluster, job)) == expected, f"{expected} of {job}", 15
    )


def test_all_kinds_of_records(cluster: LiveCluster) -> None:
    user = cluster.user or "root"
    done = cluster.qsub(
        "#!/bin/sh\nexit 4\n", "-N", "counted", "-A", "acc", "-l", "nodes=2:ppn=2:gpus=1,walltime=60"
    )
    cluster.wait(done)
    await_kinds(cluster, done, "QSE")
    (_, queued), (_, started), (_, ended) = records(cluster, done)
    assert queued == {"queue": "batch"}
    assert list(started)[:9] == [
        "user",
        "group",
        "account",
        "jobname",
        "queue",
        "ctime",
        "qtime",
        "etime",
        "start",
    ]
    assert (started["user"], started["account"], started["jobname"]) == (user, "acc", "counted")
    assert started["owner"].startswith(f"{user}@")
    assert started["Resource_List.nodes"] == "2:ppn=2:gpus=1"
    assert started["Resource_List.walltime"] == "00:01:00"
    assert len(started["exec_host"].split("+")) == 4
    assert (ended["Exit_status"], ended["total_execution_slots"], ended["unique_node_count"]) == (
        "4",
        "4",
        "2",
    )
    assert int(ended["end"]) >= int(ended["start"]) >= int(ended["qtime"])
    assert {"resources_used.cput", "resources_used.mem", "resources_used.walltime", "session"} <= ended.keys()

    again = cluster.qsub("#!/bin/sh\nsleep 300\n")
    cluster.wait_state(again, "R")
    cluster.run("qrerun", again, user="", check=True)
    await_kinds(cluster, again, "QSRS")
    waits = cluster.qsub("#!/bin/sh\ntrue\n", "-W", f"depend=afterok:{again}")
    cluster.run("qdel", again, check=True)
    await_kinds(cluster, again, "QSRSDE")
    assert records(cluster, again)[4][1]["requestor"].startswith(f"{user}@")
    await_kinds(cluster, waits, "QA")


def test_reports(make_cluster: Callable[..., LiveCluster]) -> None:
    cluster = make_cluster(agents=2, gpus=4)
    user = cluster.user or "root"
    for project in ("alpha", "beta"):
        job = cluster.qsub("#!/bin/sh\nsleep 2\n", "-l", "nodes=1:ppn=1:gpus=2", "-P", project)
        cluster.wait(job)
    told = json.loads(cluster.run("hpcmesos", "report", "--by", "project,queue", "--json", check=True).stdout)
    assert [row["key"] for row in told] == [["alpha", "batch"], ["beta", "batch"]]
    for row in told:
        assert row["runs"] == 1
        assert 2 * 2 / 3600 <= row["gpu_hours"] < 2 * 20 / 3600
        assert row["lost_gpu_hours"] == 0
    text = cluster.run("hpcmesos", "report", "--by", "user,month", "--csv", check=True).stdout
    [row] = csv.DictReader(io.StringIO(text))
    assert (row["user"], row["runs"]) == (user, "2")
    assert abs(float(row["gpu_hours"]) - sum(one["gpu_hours"] for one in told)) < 0.001
    table = cluster.run("hpcmesos", "report", check=True).stdout
    assert "GPU-hours" in table.splitlines()[0]
    assert table.splitlines()[1].split()[0] == user
    picture = cluster.work() / "use.svg"
    cluster.run("hpcmesos", "report", "--by", "project", "--svg", str(picture), check=True)
    drawn = ElementTree.fromstring(picture.read_text())
    titles = [title.text or "" for title in drawn.iter("{http://www.w3.org/2000/svg}title")]
    assert sum("alpha" in title for title in titles) == sum("beta" in title for title in titles) == 1
    refused = cluster.run("hpcmesos", "report", "--by", "colour")
    assert (refused.returncode, refused.stderr.count("\n")) == (168, 1)
    assert "one of user, project, queue, month, day" in refused.stderr
