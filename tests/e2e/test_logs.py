"""`hpcmesos logs -f` is live, and the logs outlive the job."""

from __future__ import annotations

import os
import re
import selectors
import subprocess
import time

import pytest

from tests.e2e.cluster_kit import HPCMESOS, LiveCluster, wait_until

SCRIPT = """#!/bin/sh
while read line; do
    [ "$line" = end ] && break
    echo "$(date +%s.%N) $line"
done < {fifo}
"""


@pytest.mark.alone
def test_a_line_is_shown_within_a_second(cluster: LiveCluster) -> None:
    fifo = cluster.work() / "lines"
    os.mkfifo(fifo)
    job = cluster.qsub(SCRIPT.format(fifo=fifo))
    follower = subprocess.Popen(
        [*HPCMESOS, "logs", "-f", "--stream", "stdout", job],
        stdout=subprocess.PIPE,
        env=cluster.environ,
        cwd=cluster.work(),
    )
    assert follower.stdout is not None
    try:
        with fifo.open("w", buffering=1) as lines, selectors.DefaultSelector() as selector:
            selector.register(follower.stdout, selectors.EVENT_READ)
            took = []
            for number in range(5):
                lines.write(f"{number}\n")
                assert selector.select(timeout=20), f"line {number} is not shown"
                written, text = follower.stdout.readline().decode().split()
                assert text == str(number)
                took.append(time.time() - float(written))
            lines.write("end\n")
        assert sorted(took)[2] < 1.0, took  # the machine may have kept one or two waiting
        assert follower.wait(timeout=10) == 0
    finally:
        follower.kill()
        follower.wait()
        follower.stdout.close()
    assert cluster.wait(job)["Exit_status"] == 0
    assert cluster.hpcmesos("logs", job).stdout == cluster.output(job)


def test_a_reader_that_has_seen_enough_waits_for_no_end(cluster: LiveCluster) -> None:
    job = cluster.qsub("#!/bin/sh\nwhile echo line; do sleep 0.1; done\n")
    with subprocess.Popen(
        [*HPCMESOS, "logs", "-f", job],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=cluster.environ,
        cwd=cluster.work(),
    ) as follower:
        assert follower.stdout is not None and follower.stderr is not None
        assert follower.stdout.readline() == b"line\n"
        follower.stdout.close()
        assert follower.stderr.read() == b""
    assert follower.returncode == 1  # as click ends a command whose reader is gone
    cluster.run("qdel", job, check=True)


def test_what_python_prints_is_there_before_it_ends(cluster: LiveCluster) -> None:
    """Python buffers what goes into a file unless somebody tells it not to; the user's own word wins."""
    stop, path = cluster.work() / "python.stop", cluster.work() / "prints.py"
    path.write_text(
        f"import os, time\nprint('first line')\nwhile not os.path.exists({str(stop)!r}): time.sleep(0.05)\n"
    )
    script = f"#!/bin/sh\nexec python3 {path}\n"
    usual, buffered = cluster.qsub(script), cluster.qsub(script, "-v", "PYTHONUNBUFFERED=")
    for job in (usual, buffered):
        cluster.wait_state(job, "R")
    wait_until(lambda: cluster.hpcmesos("logs", usual).stdout == "first line\n", "the line of a running job")
    assert cluster.hpcmesos("logs", buffered).stdout == ""
    stop.touch()
    for job in (usual, buffered):
        assert cluster.wait(job)["Exit_status"] == 0
        assert cluster.output(job) == "first line\n"


def test_follow_prints_all_of_a_large_output(cluster: LiveCluster) -> None:
    job = cluster.qsub("#!/bin/sh\nseq 1 200000\necho oops >&2\n")
    shown = cluster.hpcmesos("logs", "-f", job)
    assert shown.stdout.splitlines() == [str(number) for number in range(1, 200001)]
    assert shown.stderr == "oops\n"


def test_logs_of_a_job_with_discarded_output(cluster: LiveCluster) -> None:
    job = cluster.qsub("#!/bin/sh\necho kept\n", "-o", "/no/such/directory/out")
    ended = cluster.wait(job)
    assert ended["Exit_status"] == 0
    assert "/no/such/directory" in ended.get("comment", "")
    assert cluster.hpcmesos("logs", job).stdout == "kept\n"


def test_a_queue_lets_less_of_the_output_stay(cluster: LiveCluster) -> None:
    """Of what lies on the node: head and tail, and a line between them says what is missing."""
    script = "#!/bin/sh\necho first\nhead -c 1500000 /dev/zero | tr '\\0' x\necho last\n"
    cluster.run("qmgr", "-c", "create queue brief enabled=true,started=true", user="", check=True)
    refused = cluster.run("qmgr", "-c", "set queue brief log_limit = 1kb", user="")
    assert (refused.returncode != 0, "at least 64kb" in refused.stderr) == (True, True)
    cluster.run("qmgr", "-c", "set queue brief log_limit = 256kb", user="", check=True)
    assert "log_limit = 256kb" in cluster.run("qmgr", "-c", "print queue brief").stdout
    brief, whole = (
        cluster.qsub(script, "-q", queue, "-o", "/no/such/directory/out") for queue in ("brief", "batch")
    )
    assert cluster.wait(brief)["Exit_status"] == 0
    shown = cluster.hpcmesos("logs", brief).stdout
    left_out = re.search(r"\n=>> hpcmesos: (\d+) bytes left out: the job has written more than \d+\n", shown)
    assert left_out
    assert len(shown) <= 256 * 1024
    assert shown.replace(left_out[0], "") == f"first\n{'x' * (1500000 - int(left_out[1]))}last\n"
    cluster.wait(whole)
    assert cluster.hpcmesos("logs", whole).stdout == f"first\n{'x' * 1500000}last\n"
    cluster.run("qmgr", "-c", "delete queue brief", user="", check=True)
