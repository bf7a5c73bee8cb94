"""The exit table of everything that needs no MPI: in `qstat -f`, in JSON, in `qsub -W block=true`'s own exit code."""

from __future__ import annotations

import re

import pytest

from hpcmesos.client import Client
from tests.e2e.cluster_kit import LiveCluster, wait_until

IGNORES_TERM = "trap '' TERM\necho started\nwhile :; do sleep 0.1; done\n"


def shown_exit(cluster: LiveCluster, job: str) -> int:
    """exit_status as the torque text shows it."""
    text = cluster.run("qstat", "-f", job, check=True).stdout
    match = re.search(r"^    exit_status = (-?\d+)$", text, re.MULTILINE)
    assert match, text
    return int(match[1])


@pytest.mark.parametrize(
    ("script", "options", "status"),
    [
        ("#!/bin/sh\nexit 0\n", (), 0),
        ("#!/bin/sh\nexit 37\n", (), 37),
        ("exit 5\n", (), 5),  # no #! line: sh runs it
        ("#!/bin/sh\nno-such-program-here\n", (), 127),
        ("#!/bin/sh\nkill -9 $$\n", (), 256 + 9),
        ("#!/bin/sh\nkill -TERM $$\n", (), 256 + 15),
        ("#!/bin/sh\nexit 3\n", ("-S", "/bin/bash"), 3),
        ("#!/no/such/interpreter\n", (), 127),
    ],
    ids=[
        "exit0",
        "exit37",
        "no-shebang",
        "missing-program",
        "kill-9-self",
        "term-self",
        "dash-S",
        "bad-interpreter",
    ],
)
def test_status_of_a_script(cluster: LiveCluster, script: str, options: tuple[str, ...], status: int) -> None:
    done = cluster.run("qsub", "-W", "block=true", *options, stdin=script)
    job = done.stdout.strip()
    assert done.returncode == status & 255, done.stderr
    ended = cluster.job(job)
    assert (ended["job_state"], ended["Exit_status"]) == ("F", status)
    assert shown_exit(cluster, job) == status


@pytest.mark.parametrize("first", ["#!/bin/bash --login", "#!/bin/bash -l", "#!/bin/sh -l"])
def test_a_script_for_a_login_shell_finds_our_launcher(cluster: LiveCluster, first: str) -> None:
    """Login files, Debian's among them, set PATH anew."""
    path = cluster.work() / "login.sh"
    path.write_text(f'{first}\ncommand -v mpiexec\ncommand -v pbsdsh\necho "$1:$2:$#"\nexit 4\n')
    job = cluster.run("qsub", "-F", "one two", str(path), check=True).stdout.strip()
    assert cluster.wait(job)["Exit_status"] == 4
    mpiexec, pbsdsh, words = cluster.output(job, name="login.sh").splitlines()
    assert words == "one:two:2"
    places = [str(cluster.state / "agents" / name / "bin") for name in cluster.described.names]
    assert mpiexec.removesuffix("/mpiexec") == pbsdsh.removesuffix("/pbsdsh")
    assert mpiexec.removesuffix("/mpiexec") in places


def test_bash_runs_a_script_for_a_login_shell_itself(cluster: LiveCluster) -> None:
    """Not sourced: ``return`` outside of a function does not end it. What is the user's own BASH_ENV stays so."""
    mine = cluster.work() / "mine.bash"
    mine.write_text("mine=read\n")
    path = cluster.work() / "login.sh"
    path.write_text(
        "#!/bin/bash -l\n(return 0) 2>/dev/null && echo sourced\nreturn 3 2>/dev/null\n"
        'echo "$mine:$BASH_ENV:${HPCMESOS_FRONT-none}:$(basename "$0"):$(shopt -q login_shell && echo login)"\n'
    )
    job = cluster.run("qsub", "-v", f"BASH_ENV={mine}", str(path), check=True).stdout.strip()
    assert cluster.wait(job)["Exit_status"] == 0
    assert cluster.output(job, name="login.sh") == f"read:{mine}:none:script:login\n"


def test_an_interpreter_that_is_not_there_is_named(cluster: LiveCluster) -> None:
    job = cluster.qsub("#!/no/such/interpreter -x\n")
    cluster.wait(job)
    said = cluster.output(job, kind="e").splitlines()
    named = "/no/such/interpreter, which the first line of the script names, cannot be executed on this node"
    assert said[0] == f"hpcmesos: {named}"


def test_program_without_a_shell(cluster: LiveCluster) -> None:
    job = cluster.run("qsub", "--", "/bin/echo", "a b", "$HOME", check=True).stdout.strip()
    assert cluster.wait(job)["Exit_status"] == 0
    assert cluster.output(job, name="echo") == "a b $HOME\n"
    missing = cluster.run("qsub", "--", "no-such-program", check=True).stdout.strip()
    assert cluster.wait(missing)["Exit_status"] == 127


def test_walltime(cluster: LiveCluster) -> None:
    job = cluster.qsub("#!/bin/sh\necho on\nsleep 600\n", "-l", "walltime=1")
    ended = cluster.wait(job)
    assert ended["Exit_status"] == -11
    assert shown_exit(cluster, job) == -11
    assert "walltime" in cluster.output(job, kind="e")


def test_qdel_running(cluster: LiveCluster) -> None:
    job = cluster.qsub("#!/bin/sh\nsleep 600\n")
    cluster.wait_state(job, "R")
    deleted = cluster.run("qdel", job)
    assert (deleted.returncode, deleted.stdout, deleted.stderr) == (0, "", "")
    assert cluster.wait(job)["Exit_status"] == 271


def test_the_log_says_who_deleted_the_job(cluster: LiveCluster) -> None:
    job = cluster.qsub("#!/bin/sh\ntouch up-log\nexec sleep 600\n", "-d", ".")
    wait_until((cluster.work() / "up-log").exists, "it runs")
    cluster.run("qdel", "-m", "too slow", job, check=True)
    cluster.wait(job)
    line = f"=>> hpcmesos: job killed: DELETED: deleted by {cluster.user or 'root'}: too slow\n"
    assert line in cluster.output(job, kind="e")
    assert line in cluster.hpcmesos("logs", "--stream", "stderr", job).stderr


def test_a_script_is_warned_before_its_walltime_ends(cluster: LiveCluster) -> None:
    script = "#!/bin/sh\ntrap 'echo saved; exit 9' USR2\nwhile :; do sleep 0.1; done\n"
    job = cluster.qsub(script, "-l", "walltime=1:05,signal=USR2@60")
    ended = cluster.wait(job)
    assert (ended["Exit_status"], ended["end_cause"]) == (9, "APP")
    assert cluster.output(job) == "saved\n"


def test_qdel_of_a_job_that_ignores_term(cluster: LiveCluster) -> None:
    job = cluster.qsub(IGNORES_TERM)
    wait_until(lambda: "started" in cluster.hpcmesos("logs", job).stdout, "the trap is set")
    cluster.run("qdel", "-W", "1", job, check=True)
    assert cluster.wait(job)["Exit_status"] == 265


def test_qdel_queued_has_no_status(cluster: LiveCluster) -> None:
    job = cluster.qsub("#!/bin/sh\ntrue\n", "-h")
    cluster.run("qdel", job, check=True)
    ended = cluster.wait(job)
    assert ended["job_state"] == "F"
    assert "Exit_status" not in ended


def test_daemons_of_a_job_end_with_it(cluster: LiveCluster) -> None:
    script = "#!/bin/sh\n(setsid sh -c 'sleep 600 & sleep 600' >/dev/null 2>&1 &)\nexit 4\n"
    job = cluster.qsub(script)
    assert cluster.wait(job)["Exit_status"] == 4
    wait_until(lambda: not cluster.job_processes(), "every process of the attempt is gone", 10)


def test_qstat_and_the_api_name_the_rank_that_failed_first(cluster: LiveCluster) -> None:
    script = (
        "#!/bin/sh\n#PBS -l nodes=2:ppn=1:gpus=1\nmpiexec true\n"
        "mpiexec sh -c 'echo rank $HPCMESOS_RANK breaks >&2; [ $HPCMESOS_RANK = 1 ] && exit 7; exec sleep 60'\n"
    )
    job = cluster.qsub(script)
    ended = cluster.wait(job)
    assert ended["Exit_status"] == 7
    failed = ended["first_failed_rank"]
    assert (failed["rank"], failed["code"]) == (1, 7)
    assert failed["gpu"].startswith("SIM-")
    assert "rank 1 breaks" in ended["last_lines"]
    assert ended["step_0"]["code"] == 0
    assert ended["step_1"]["command"].startswith("mpiexec sh -c ")
    assert ended["step_1"]["first_failed"] == 1
    text = cluster.run("qstat", "-f1", job, check=True).stdout
    assert f"    first_failed_rank.node = {failed['node']}\n" in text
    with Client(socket=cluster.described.api_socket) as client:
        (attempt,) = client.job(job).attempts
    assert attempt.nodes == [host.partition("/")[0] for host in ended["exec_host"].split("+")]
    assert [step.first_failed for step in attempt.steps] == [None, 1]
    assert [(rank.rank, rank.code) for rank in attempt.steps[0].ranks] == [(0, 0), (1, 0)]
    # The other rank may have been ended before it could say that it runs.
    (rank,) = [rank for rank in attempt.steps[1].ranks if rank.rank == 1]
    assert rank.node == failed["node"]
