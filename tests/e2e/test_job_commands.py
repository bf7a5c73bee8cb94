"""qalter, qmove, qorder, qrerun, qsig, qmsg, qselect as users run them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.cluster_kit import LiveCluster, wait_until
from tests.e2e.conftest import running

SLEEP = "#!/bin/sh\nsleep 600\n"
TRUE = "#!/bin/sh\ntrue\n"


@pytest.fixture(scope="module")
def own() -> Iterator[LiveCluster]:
    """A cluster with a second queue, that takes no jobs."""
    with running(LiveCluster(agents=2, gpus=4)) as cluster:
        done = cluster.run(
            "qmgr", stdin="create queue other started=True,enabled=True\ncreate queue shut\n", user=""
        )
        assert done.returncode == 0, done.stderr
        yield cluster


def silent(cluster: LiveCluster, *command: str, user: str | None = None) -> None:
    done = cluster.run(*command, user=user)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), done


def test_qalter_of_a_held_job(own: LiveCluster) -> None:
    job = own.qsub(SLEEP, "-h")
    silent(own, "qalter", job, "-N", "newname", "-l", "walltime=1:00:00", "-l", "nodes=2:ppn=1", "-p", "100")
    silent(
        own, "qalter", "-j", "oe", "-o", "/tmp/x.out", "-m", "abe", "-M", "a@b.c", "-r", "n", "-A", "acc", job
    )
    silent(own, "qalter", "-a", "209912312359", "-v", "FOO=1", "-W", "umask=022", job)
    shown = own.job(job)
    assert shown["Job_Name"] == "newname"
    assert shown["Resource_List"] == {"ncpus": 2, "nodect": 2, "nodes": "2:ppn=1", "walltime": "01:00:00"}
    assert (shown["Priority"], shown["Join_Path"], shown["Mail_Points"]) == (100, "oe", "abe")
    assert (shown["Mail_Users"], shown["Rerunable"], shown["Account_Name"]) == ("a@b.c", "False", "acc")
    assert shown["Output_Path"].endswith(":/tmp/x.out")
    assert shown["Execution_Time"].endswith("23:59:00 2099")
    assert shown["Variable_List"]["FOO"] == "1"
    silent(own, "qdel", job)


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["-l", "walltime=xx"], 168, "xx"),
        (["-l", "nodes=99"], 190, "99"),
        (["-W", "depend=afterok:99999"], 208, "99999"),
        (["-Z"], 2, "invalid option"),
    ],
)
def test_qalter_refuses(own: LiveCluster, words: list[str], code: int, text: str) -> None:
    job = own.qsub(SLEEP, "-h")
    done = own.run("qalter", *words, job)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (code, "", 1), done
    assert done.stderr.startswith("qalter: ")
    assert text in done.stderr
    silent(own, "qdel", job)


def test_a_running_job_takes_a_shorter_walltime(own: LiveCluster) -> None:
    job = own.qsub(SLEEP, "-l", "walltime=600")
    own.wait_state(job, "R")
    refused = own.run("qalter", "-l", "ncpus=2", job)
    assert refused.returncode == 169
    assert refused.stderr == f"qalter: Cannot modify attribute while job running  Resource_List.ncpus {job}\n"
    longer = own.run("qalter", "-l", "walltime=900", job)
    assert longer.returncode == (0 if own.user is None else 159)
    silent(own, "qalter", "-l", "walltime=1", job)
    ended = own.wait(job)
    assert (ended["Exit_status"], ended["end_cause"]) == (-11, "WALLTIME")


def test_qmove(own: LiveCluster) -> None:
    job = own.qsub(SLEEP, "-h")
    silent(own, "qmove", "other", job)
    assert own.job(job)["queue"] == "other"
    for queue, code, text in (
        ("nosuch", 172, f"qmove: Unknown queue MSG=requested queue not found {job}"),
        ("shut", 175, f"qmove: Queue is not enabled MSG=Queue 'shut' is not enabled {job}"),
    ):
        done = own.run("qmove", queue, job)
        assert (done.returncode, done.stderr) == (code, f"{text}\n")
    silent(own, "qmove", "shut", job, user="")  # an operator may
    assert own.job(job)["queue"] == "shut"
    silent(own, "qdel", job)
    assert own.run("qmove", "batch", "99999").returncode == 153
    assert own.run("qmove", "batch").returncode == 2


def test_qorder_decides_who_comes_first(own: LiveCluster) -> None:
    own.run("qstop", "other", user="", check=True)
    first, second = (own.qsub(TRUE, "-q", "other", "-l", "nodes=2:gpus=2") for _ in range(2))
    silent(own, "qorder", first, second)
    own.run("qstart", "other", user="", check=True)
    own.wait(first), own.wait(second)
    assert own.job(second)["stime"] <= own.job(first)["stime"]
    done = own.run("qorder", first, "99999")
    assert (done.returncode, done.stderr) == (153, f"qorder: Unknown Job Id Error {first} or 99999.hpcm\n")


def test_qrerun_runs_it_again(own: LiveCluster) -> None:
    job = own.qsub("#!/bin/sh\necho run >>runs\n[ -e second ] && exit 5\nsleep 600\n")
    runs = own.work() / "runs"
    script = "#!/bin/sh\ncd $PBS_O_WORKDIR\necho run >>runs\n[ $(wc -l <runs) -gt 1 ] && exit 5\nsleep 600\n"
    silent(own, "qdel", job)
    job = own.qsub(script)
    wait_until(lambda: runs.exists() and runs.read_text(), "first run")
    own.wait_state(job, "R")
    if own.user is not None:
        denied = own.run("qrerun", job)
        assert (denied.returncode, denied.stderr) == (159, f"qrerun: Unauthorized Request  {job}\n")
    silent(own, "qrerun", "-f", job, user="")
    assert own.wait(job)["Exit_status"] == 5
    assert runs.read_text() == "run\nrun\n"
    fixed = own.qsub(SLEEP, "-r", "n")
    own.wait_state(fixed, "R")
    refused = own.run("qrerun", fixed, user="")
    assert refused.returncode == 192
    silent(own, "qdel", "-W", "0", fixed)
    assert own.run("qrerun", "99999", user="").returncode == 153


def test_qsig_and_qmsg_reach_the_job(own: LiveCluster) -> None:
    job = own.qsub(
        "#!/bin/sh\ntrap 'echo got it; exit 4' USR1\ntouch ready\nwhile :; do sleep 0.1; done\n", "-d", "."
    )
    wait_until(lambda: (own.work() / "ready").exists(), "the script is ready")
    own.wait_state(job, "R")
    silent(own, "qsig", "-s", "0", job)
    bad = own.run("qsig", "-s", "NOSUCH", job)
    assert bad.returncode == 167
    silent(own, "qmsg", "hello there", job)
    silent(own, "qmsg", "-O", "to stdout", job)
    wait_until(lambda: own.output(job) == "to stdout\n", "the message")
    silent(own, "qsig", "-s", "SIGUSR1", job)
    assert own.wait(job)["Exit_status"] == 4
    assert own.output(job) == "to stdout\ngot it\n"
    assert "hello there\n" in own.output(job, kind="e")
    over = own.run("qsig", job)
    assert over.returncode == 170
    waiting = own.qsub(SLEEP, "-h")
    assert own.run("qsig", waiting).returncode == 170
    silent(own, "qdel", waiting)


def test_qselect(own: LiveCluster) -> None:
    held = own.qsub(SLEEP, "-h", "-N", "chosen", "-l", "nodes=1:ppn=2", "-A", "007")
    runs = own.qsub(SLEEP)
    own.wait_state(runs, "R")
    for words, found in (
        ([], [held, runs]),
        (["-s", "H"], [held]),
        (["-s", "RQ"], [runs]),
        (["-N", "chosen"], [held]),
        (["-l", "ncpus.gt.1"], [held]),
        (["-A", "007", "-h", "u"], [held]),
        (["-u", "nosuch"], []),
    ):
        done = own.run("qselect", *words)
        assert (done.returncode, done.stdout.split(), done.stderr) == (0, found, ""), words
    array = own.qsub(SLEEP, "-h", "-t", "1-3")
    elements = [array.replace("[]", f"[{index}]") for index in (1, 2, 3)]
    assert own.run("qselect", "-s", "H").stdout.split() == [held, *elements]
    pbspro = {"PATH": own.environ["PATH"].replace("/torque:", "/pbspro:")}
    assert own.run("qselect", "-s", "H", environ=pbspro).stdout.split() == [held, array]
    assert own.run("qselect", "-J", environ=pbspro).stdout.split() == [array]
    silent(own, "qalter", "-t", "%2", array)
    assert own.job(array)["max_run_subjobs"] == 2
    assert own.run("qselect", "-q", "nosuch").returncode == 172
    assert own.run("qselect", "-s", "Z").returncode == 2
    silent(own, "qdel", "-W", "0", *own.run("qselect").stdout.split())


def test_jobs_that_come_before_another(own: LiveCluster) -> None:
    last = own.qsub(TRUE, "-W", "depend=on:2")
    assert own.job(last)["depend"] == "on:2"
    for word, status in (("beforeok", 0), ("beforeany", 3)):
        job = own.qsub(f"#!/bin/sh\nexit {status}\n", "-h", "-W", f"depend={word}:{last}")
        assert own.job(job)["depend"] == f"{word}:{last}"
        silent(own, "qrls", job)
        own.wait(job)
    assert own.wait(last)["Exit_status"] == 0
    for depend, text in (
        (f"beforeok:{last}", "was not submitted with depend=on:COUNT"),
        ("beforeok:99999", "Unknown Job Id"),
        ("synccount:2", "one job on many nodes"),
    ):
        refused = own.run("qsub", "-W", f"depend={depend}", stdin=TRUE)
        assert (refused.returncode, refused.stdout) == (208, ""), refused
        assert text in refused.stderr


def test_what_a_queue_is_shows_in_qstat(own: LiveCluster) -> None:
    setting = "resources_max.walltime=2:00:00,Priority=7,keep_completed=0,max_running=3"
    done = own.run("qmgr", "-c", f"set queue other {setting}", user="")
    assert done.returncode == 0, done.stderr
    full = own.run("qstat", "-Q", "-f", "other", check=True).stdout
    assert full.startswith("Queue: other\n    queue_type = Execution\n    Priority = 7\n    total_jobs = ")
    assert "    resources_max.walltime = 02:00:00\n" in full
    row = own.run("qstat", "-q", "other", check=True).stdout.splitlines()[5].split()
    assert (row[0], row[3], row[7], row[8:]) == ("other", "02:00:00", "3", ["E", "R"])
    server = own.run("qstat", "-B", "-f", check=True).stdout
    assert server.startswith("Server: hpcm\n    server_state = Active\n")
    assert "    default_queue = batch\n" in server
    job = own.qsub(TRUE, "-q", "other")
    own.wait(job)
    assert job not in own.run("qstat", check=True).stdout
    assert own.job(job)["Exit_status"] == 0
