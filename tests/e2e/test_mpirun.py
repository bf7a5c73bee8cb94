"""`hpcmesos mpirun`: as if the program ran here."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest

from tests.e2e.cluster_kit import HPCMESOS, LiveCluster, wait_until


def test_output_directory_and_environment_are_those_of_the_caller(cluster: LiveCluster) -> None:
    before = sorted(path.name for path in cluster.work().iterdir())
    done = cluster.run(
        *HPCMESOS,
        "mpirun",
        "-n",
        "3",
        "sh",
        "-c",
        'echo "$HPCMESOS_RANK $COLOUR $PWD"; echo oops >&2',
        environ={"COLOUR": "light blue"},
    )
    assert done.returncode == 0, done.stderr
    expected = [f"{rank} light blue {cluster.work()}" for rank in range(3)]
    assert sorted(done.stdout.splitlines()) == expected
    assert done.stderr == "oops\n" * 3
    assert sorted(path.name for path in cluster.work().iterdir()) == before


@pytest.mark.parametrize(
    ("script", "code"),
    [("exit 0", 0), ("exit 3", 3), ("kill -SEGV $$", 139)],
    ids=["zero", "three", "signal"],
)
def test_exit_codes(cluster: LiveCluster, script: str, code: int) -> None:
    done = cluster.run(
        *HPCMESOS, "mpirun", "-l", "nodes=2:ppn=1", "sh", "-c", f"[ $HPCMESOS_RANK = 0 ] || {script}"
    )
    assert done.returncode == code, done.stderr


def test_standard_input_goes_to_rank_0(cluster: LiveCluster) -> None:
    """Bytes as they are; the words of the program too, and its environment."""
    data = b"a 'b' $c\n\0\xff" + bytes(range(256)) * 2000 + b"no end of line"
    program = 'if [ $HPCMESOS_RANK = 0 ]; then cat; else echo "$1 $COLOUR" >&2; fi'
    words = ("mpirun", "-l", "nodes=2:ppn=1", "sh", "-c", program, "sh", "it's $1")
    command = [*HPCMESOS, *words]
    done = subprocess.run(
        command,
        input=data,
        capture_output=True,
        env={**cluster.environ, "COLOUR": "light blue"},
        cwd=cluster.work(),
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"it's $1 light blue\n")
    assert done.stdout == data
    much = subprocess.run(
        command, input=bytes(800 * 1024), capture_output=True, env=cluster.environ, timeout=60, check=False
    )
    assert much.returncode == 2
    assert much.stderr.count(b"\n") == 1 and b"standard input is longer than 700 KiB" in much.stderr


def test_a_large_output_of_a_short_job_comes_whole(cluster: LiveCluster) -> None:
    done = cluster.run(*HPCMESOS, "mpirun", "seq", "1", "100000")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(number) for number in range(1, 100001)]


def test_refusals_are_one_line(cluster: LiveCluster) -> None:
    for words, code in (
        (("-l", "nodes=99", "true"), 190),
        (("-n", "0", "true"), 2),
        (("-o", "here", "true"), 2),
        ((), 2),
    ):
        done = cluster.run(*HPCMESOS, "mpirun", *words)
        assert done.returncode == code, done
        assert len(done.stderr.splitlines()) == 1


def test_ctrl_c_asks_and_a_second_one_deletes(cluster: LiveCluster) -> None:
    process = subprocess.Popen(
        [*HPCMESOS, "mpirun", "-n", "2", "sh", "-c", "echo ready; sleep 600"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=cluster.environ,
        cwd=cluster.work(),
    )
    assert process.stdout is not None
    try:
        assert [process.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
        sent, line = ctrl_c(process)
        assert "runs on node" in line
        again = line
        while "Ctrl-C again within 2 s deletes it" in again:
            before = sent
            sent, again = ctrl_c(process)
            assert f"deleting {line.split()[1]}" in again or time.monotonic() - before > 2.0, again
        assert again == f"hpcmesos: deleting {line.split()[1]}\n"
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, errors
    job = line.split()[1]
    assert cluster.job(job)["job_state"] == "F"
    wait_until(lambda: not cluster.job_processes(), "no process of it is left")


def ctrl_c(process: subprocess.Popen[str]) -> tuple[float, str]:
    """When it was pressed, and what is said to it."""
    sent = time.monotonic()
    os.kill(process.pid, signal.SIGINT)
    assert process.stderr is not None
    return sent, process.stderr.readline()
