"""`hpcmesos logs -f` is live, and the logs outlive the job."""

from __future__ import annotations

import os
import selectors
import subprocess
import time

from tests.e2e.cluster_kit import HPCMESOS, LiveCluster

SCRIPT = """#!/bin/sh
while read line; do
    [ "$line" = end ] && break
    echo "$(date +%s.%N) $line"
done < {fifo}
"""


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
            for number in range(5):
                lines.write(f"{number}\n")
                assert selector.select(timeout=20), f"line {number} is not shown"
                written, text = follower.stdout.readline().decode().split()
                assert text == str(number)
                assert time.time() - float(written) < 1.0
            lines.write("end\n")
        assert follower.wait(timeout=10) == 0
    finally:
        follower.kill()
        follower.wait()
        follower.stdout.close()
    assert cluster.wait(job)["Exit_status"] == 0
    assert cluster.hpcmesos("logs", job).stdout == cluster.output(job)


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
