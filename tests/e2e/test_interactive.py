"""qsub -I under a real terminal."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.cluster_kit import LiveCluster, wait_until
from tests.e2e.conftest import running
from tests.e2e.remote_kit import Remote
from tests.e2e.terminal_kit import Terminal
from tests.integration import shepherd_kit as kit

_ESCAPES = re.compile(r"\x1b\[\?2004[hl]\r?")
"""What readline says around each prompt."""


def numbers(shown: str) -> list[int]:
    return [int(line) for line in re.findall(r"^(\d+)\r$", _ESCAPES.sub("", shown), re.MULTILINE)]


@contextmanager
def qsub(cluster: LiveCluster, *words: str, rows: int = 24, columns: int = 80) -> Iterator[Terminal]:
    terminal = Terminal(
        ["qsub", "-I", *words], cluster.environ, cluster.work(), cluster.user, rows=rows, columns=columns
    )
    try:
        yield terminal
    finally:
        terminal.close()


def started(terminal: Terminal) -> str:
    """The job's id, once its shell runs and echoes nothing that is typed."""
    terminal.expect("qsub: waiting for job ")
    job = terminal.expect(" to start")
    terminal.expect(f"qsub: job {job} ready")
    terminal.type("PS1=; stty -echo; echo read''y\n")
    terminal.expect("ready\r\n")
    return job


def test_a_whole_session(cluster: LiveCluster) -> None:
    with qsub(cluster, "-l", "nodes=1:ppn=2:gpus=1,walltime=300", rows=33, columns=101) as terminal:
        job = started(terminal)
        terminal.type(
            "stty size; echo $PBS_ENVIRONMENT $TERM $PBS_JOBID; tty; wc -l <$PBS_NODEFILE; id -un\n"
        )
        shown = terminal.expect("2\r\n")
        assert "33 101\r\n" in shown
        assert f"PBS_INTERACTIVE xterm {job}\r\n" in shown
        assert "/dev/pts/" in shown
        if cluster.user:
            terminal.expect(f"{cluster.user}\r\n")
        terminal.resize(50, 132)
        terminal.type("until [ \"$(stty size)\" = '50 132' ]; do sleep 0.05; done; echo resi''zed\n")
        terminal.expect("resized")
        assert cluster.job(job)["interactive"] == "True"
        terminal.type("exit 3\n")
        terminal.expect(f"qsub: job {job} completed")
        assert terminal.wait() == 3
    ended = cluster.wait(job)
    assert (ended["job_state"], ended["Exit_status"]) == ("F", 3)
    assert not list(cluster.work().glob(f"*.[oe]{job.split('.')[0]}"))


def test_ctrl_c_reaches_the_program_and_not_the_shell(cluster: LiveCluster) -> None:
    with qsub(cluster) as terminal:
        started(terminal)
        terminal.type("sleep 1000; echo code $?\n")
        terminal.type("\x03")
        terminal.type("\n")
        terminal.type(
            "(trap 'echo inter''rupted; exit 7' INT; echo wai''ting; while :; do sleep 0.1; done); echo code $?\n"
        )
        terminal.expect("waiting")
        terminal.type("\x03")
        terminal.expect("interrupted")
        terminal.type("echo still he''re; exit\n")
        terminal.expect("still here")
        terminal.expect("completed")
        terminal.wait()


def test_much_output_and_input_arrive_whole(cluster: LiveCluster) -> None:
    with qsub(cluster) as terminal:
        started(terminal)
        terminal.type("seq 1 100000; echo en''d\n")
        shown = terminal.expect("end", timeout=60)
        assert numbers(shown) == list(range(1, 100001))
        terminal.type("cat >copy <<'X'\n")
        for start in range(0, 2000, 100):
            terminal.type("".join(f"{n}\n" for n in range(start, start + 100)))
        terminal.type("X\nwc -l <copy; cksum <copy; rm copy; exit\n")
        terminal.expect("2000\r\n")
        terminal.expect("completed")
        assert terminal.wait() == 0


def test_a_lost_client_ends_the_job(cluster: LiveCluster) -> None:
    with qsub(cluster) as terminal:
        job = started(terminal)
        terminal.type(
            "trap '' HUP; (trap '' HUP TERM; exec sleep 1000) & echo star''ted; while :; do sleep 1; done\n"
        )
        terminal.expect("started")
        terminal.kill()
        ended = cluster.wait(job)
    assert ended["Exit_status"] in (265, 271)
    assert "terminal" in ended["comment"]


def test_a_hang_up_of_a_plain_shell_ends_the_job_at_once(cluster: LiveCluster) -> None:
    with qsub(cluster) as terminal:
        job = started(terminal)
        terminal.type("\n~.")
        assert terminal.wait() == 129
        assert cluster.wait(job)["Exit_status"] == 256 + 1


def test_ctrl_c_while_it_waits_asks_and_deletes(cluster: LiveCluster) -> None:
    with qsub(cluster, "-h") as terminal:
        terminal.expect("qsub: waiting for job ")
        job = terminal.expect(" to start")
        terminal.type("\x03")
        terminal.expect("Do you wish to terminate the job and exit (y|[n])?")
        terminal.type("n\n")
        assert cluster.job(job)["job_state"] == "H"
        terminal.type("\x03")
        terminal.expect("Do you wish to terminate the job and exit (y|[n])?")
        terminal.type("y\n")
        terminal.expect("completed")
        assert terminal.wait() == 3
        assert "Exit_status" not in cluster.wait(job)


def test_a_client_that_goes_while_its_job_waits_takes_it_along(cluster: LiveCluster) -> None:
    with qsub(cluster, "-h") as terminal:
        terminal.expect("qsub: waiting for job ")
        job = terminal.expect(" to start")
        wait_until(lambda: cluster.job(job)["job_state"] == "H", "held")
        terminal.kill()
    assert "Exit_status" not in cluster.wait(job)


def test_qdel_ends_a_session(cluster: LiveCluster) -> None:
    with qsub(cluster) as terminal:
        job = started(terminal)
        assert cluster.run("qdel", job).returncode == 0
        assert "waiting" not in terminal.expect("completed")
        assert terminal.wait() == 271 & 255
    assert cluster.wait(job)["Exit_status"] == 271


def test_over_walltime_says_so_at_the_terminal(cluster: LiveCluster) -> None:
    with qsub(cluster, "-l", "walltime=6") as terminal:
        started(terminal)
        terminal.expect("job killed: walltime")
        terminal.expect("completed")
        assert terminal.wait() == -11 & 255


def test_a_program_instead_of_a_shell(cluster: LiveCluster) -> None:
    with qsub(cluster, "-x", "sh -c 'stty size; exit 5'") as terminal:
        terminal.expect("24 80")
        terminal.expect("completed")
        assert terminal.wait() == 5


def test_of_a_script_only_the_directives_count(cluster: LiveCluster) -> None:
    script = cluster.work() / "inter.pbs"
    script.write_text("#!/bin/sh\n#PBS -N fromscript\n#PBS -l nodes=2:ppn=1\necho not this; exit 9\n")
    with qsub(cluster, str(script)) as terminal:
        job = started(terminal)
        shown = cluster.job(job)
        assert (shown["Job_Name"], shown["Resource_List"]["nodect"]) == ("fromscript", 2)
        terminal.type("pbsdsh hostname | wc -l; exit\n")
        terminal.expect("2\r\n")
        terminal.wait()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["-I"], "standard input and output must be a terminal for interactive job submission"),
        (["-W", "interactive=true"], "standard input and output must be a terminal"),
    ],
)
def test_without_a_terminal_it_is_refused(cluster: LiveCluster, words: list[str], text: str) -> None:
    done = cluster.run("qsub", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert text in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["-X"], "DISPLAY not set"),
        (["-t", "1-3"], "an interactive job cannot be an array"),
        (["-W", "block=true"], "cannot block"),
        (["-x"], "-x needs the command"),
    ],
)
def test_what_a_session_cannot_be(cluster: LiveCluster, words: list[str], text: str) -> None:
    with qsub(cluster, *words) as terminal:
        terminal.expect(text)
        assert terminal.wait() != 0


@pytest.fixture(scope="module")
def own(users_of_tests: None) -> Iterator[LiveCluster]:
    with running(LiveCluster(agents=1, gpus=0)) as cluster:
        yield cluster


def test_a_session_outlives_a_restart_of_the_master(own: LiveCluster) -> None:
    with qsub(own) as terminal:
        job = started(terminal)
        go, master = own.work() / "go", own.pid("master")
        family = [master, *map(int, Path(f"/proc/{master}/task/{master}/children").read_text().split())]
        later = f"until [ -e {go} ]; do sleep 0.05; done; seq 1 3000; echo mea''nwhile"
        terminal.type(f"x=kept; ({later}) & echo go''es\n")
        terminal.expect("goes")
        os.kill(master, 9)
        wait_until(lambda: not any(map(kit.is_alive, family)), "nothing of the master is left")
        go.touch()
        own.up()
        terminal.type("\n")
        shown = terminal.expect("meanwhile", timeout=60)
        assert numbers(shown)[-3000:] == list(range(1, 3001))
        wait_until(lambda: own.run("qstat", job).returncode == 0, "the master is back")
        terminal.type("echo $x; exit 4\n")
        terminal.expect("kept")
        terminal.expect(f"qsub: job {job} completed", timeout=60)
        assert terminal.wait() == 4


def test_over_tls_with_a_token(cluster: LiveCluster) -> None:
    command = [sys.executable, "-m", "hpcmesos.cli", "qsub", "-I"]
    terminal = Terminal(command, Remote(cluster).environ, cluster.work(), cluster.user)
    try:
        started(terminal)
        terminal.resize(30, 90)
        terminal.type("until [ \"$(stty size)\" = '30 90' ]; do sleep 0.05; done; exit 3\n")
        terminal.expect("completed")
        assert terminal.wait() == 3
    finally:
        terminal.close()


def test_in_the_family_of_openpbs(cluster: LiveCluster) -> None:
    environ = {**cluster.environ, "PATH": cluster.environ["PATH"].replace("/torque:", "/pbspro:")}
    terminal = Terminal(["qsub", "-I", "-l", "select=1:ncpus=1"], environ, cluster.work(), cluster.user)
    try:
        job = started(terminal)
        assert cluster.job(job)["Resource_List"]["select"] == "1:ncpus=1"
        terminal.type("exit 4\n")
        terminal.expect(f"qsub: job {job} completed")
        assert terminal.wait() == 4
    finally:
        terminal.close()


def test_nobody_else_gets_the_terminal(cluster: LiveCluster, users: tuple[str, str]) -> None:
    with qsub(cluster) as terminal:
        job = started(terminal)
        for user in ("", users[1]):  # the cluster's manager neither
            done = cluster.run(sys.executable, "-c", _ATTACH, job, user=user)
            assert json.loads(done.stdout)["code"] == "unauthorized", done
        terminal.type("exit\n")
        terminal.expect("completed")


_ATTACH = """
import sys
from hpcmesos.cli.connect import connect
with connect() as client, client.terminal(sys.argv[1]) as socket:
    print(socket.recv())
"""


def test_a_prologue_that_fails_is_told_at_the_terminal(own: LiveCluster) -> None:
    scripts = own.state / "scripts"
    scripts.mkdir()
    prologue = scripts / "prologue"
    prologue.write_text(
        '#!/bin/sh\necho hello from the site\n[ "$4" = good ] || { echo bad name >&2; exit 2; }\n'
    )
    prologue.chmod(0o755)
    with qsub(own, "-N", "bad") as terminal:
        terminal.expect("prologue: exit code 2: bad name")
        assert terminal.wait() == 255
    with qsub(own, "-N", "good") as terminal:
        terminal.expect("hello from the site")
        terminal.type("exit 5\n")
        terminal.expect("completed")
        assert terminal.wait() == 5


def test_a_session_goes_on_by_another_master(make_cluster: Callable[..., LiveCluster]) -> None:
    own = make_cluster(agents=1, gpus=0, extra=("--masters", "2"))
    with qsub(own) as terminal:
        job = started(terminal)
        os.kill(own.pid("master"), 9)
        terminal.type("\n")
        terminal.type("(sleep 1; seq 1 3000; echo mea''nwhile) &\n")
        shown = terminal.expect("meanwhile", timeout=60)
        assert numbers(shown)[-3000:] == list(range(1, 3001))
        terminal.type("exit 4\n")
        terminal.expect(f"qsub: job {job} completed", timeout=60)
        assert terminal.wait() == 4
