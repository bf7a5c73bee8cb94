"""Jobs in containers, by a real Docker Engine."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import docker_kit, registry_kit
from tests.e2e.cluster_kit import USERS, LiveCluster, wait_until
from tests.e2e.conftest import left_as_found, running
from tests.e2e.docker_kit import IMAGE, Engine
from tests.integration import shepherd_kit

pytestmark = pytest.mark.full


engine = docker_kit.engine


@pytest.fixture(scope="module")
def contained(engine: Engine, users_of_tests: None) -> Iterator[LiveCluster]:
    """2 agents with 4 simulated GPUs each."""
    before = os.environ.get("DOCKER_HOST")
    os.environ["DOCKER_HOST"] = engine.url
    try:
        with running(LiveCluster(agents=2, gpus=8)) as cluster:
            yield cluster
    finally:
        os.environ.pop("DOCKER_HOST")
        if before is not None:
            os.environ["DOCKER_HOST"] = before


@pytest.fixture
def cluster(contained: LiveCluster, engine: Engine) -> Iterator[LiveCluster]:
    with left_as_found(contained):
        yield contained
    wait_until(lambda: not engine.containers(), "no container is left", 60)


def contained_job(cluster: LiveCluster, script: str, *options: str) -> str:
    return cluster.qsub(script, "--image", IMAGE, "-d", str(cluster.work()), *options)


def cause_of(cluster: LiveCluster, job: str) -> str | None:
    with cluster.client() as client:
        return client.job(job).cause


def test_script_sees_the_image_and_its_own(cluster: LiveCluster) -> None:
    job = contained_job(
        cluster,
        "cat /etc/image\nid -un\necho $OF_THE_IMAGE $PBS_JOBID\npwd\ntouch made\nhostname >&2\n"
        "grep -e CapBnd -e CapEff -e NoNewPrivs /proc/self/status\n",
    )
    ended = cluster.wait(job)
    lines = cluster.output(job).splitlines()
    assert ended["Exit_status"] == 0, cluster.output(job, kind="e")
    assert lines[:4] == ["this is the image", cluster.user, f"yes {job}", str(cluster.work())]
    none = "0" * 16
    assert [line.split()[1] for line in lines[4:]] == [none, none, "1"]
    assert cluster.output(job, kind="e").strip() == os.uname().nodename
    assert (cluster.work() / "made").stat().st_uid == cluster.work().stat().st_uid
    assert ended["image"] == IMAGE


@pytest.mark.parametrize(
    ("script", "code", "cause"),
    [
        ("exit 37", 37, "APP"),
        ("exec no-such-program", 127, "APP"),
        ("kill -9 $$", 256 + 9, "SIGNAL"),
        ("kill -TERM $$", 256 + 15, "SIGNAL"),
    ],
)
def test_ends_are_as_true_as_those_of_processes(
    cluster: LiveCluster, script: str, code: int, cause: str
) -> None:
    job = contained_job(cluster, f"#!/bin/sh\n{script}\n")
    assert cluster.wait(job)["Exit_status"] == code
    assert cause_of(cluster, job) == cause


def test_program_without_a_script(cluster: LiveCluster) -> None:
    options = ("--image", IMAGE, "-W", "image_pull=never", "-d", str(cluster.work()), "-N", "bare")
    job = cluster.run("qsub", *options, "--", "cat", "/etc/image", check=True).stdout.strip()
    assert cluster.wait(job)["Exit_status"] == 0
    assert cluster.output(job, "bare") == "this is the image\n"
    job = cluster.run("qsub", *options, "--", "/opt/nothing").stdout.strip()
    assert cluster.wait(job)["Exit_status"] == 127


RANK = r"""
import os, sys
from mpi4py import MPI
world = MPI.COMM_WORLD
with open("/etc/image") as file:
    where = file.read().strip()
node, gpu = os.environ["HPCMESOS_NODE"], os.environ["CUDA_VISIBLE_DEVICES"]
total = world.allreduce(world.rank)
sys.stdout.write(f"{world.rank} of {world.size} on {node} gpu {gpu} sum {total} {where}\n")
sys.exit(int(sys.argv[1]) if world.rank == 5 else 0)
"""


@pytest.mark.parametrize("launcher", ["mpiexec", "hpcmesos run"])
def test_mpi_over_containers_of_two_nodes(cluster: LiveCluster, launcher: str) -> None:
    (cluster.work() / "rank.py").write_text(RANK)
    script = f"{launcher} python3 rank.py 0\n"
    job = contained_job(cluster, script, "-l", "nodes=2:ppn=4:gpus=4", "-N", "ranks")
    ended = cluster.wait(job, 120)
    assert ended["Exit_status"] == 0, cluster.output(job, "ranks", "e")
    words = [line.split() for line in cluster.output(job, "ranks").splitlines()]
    assert sorted(int(w[0]) for w in words) == list(range(8))
    assert {w[4] for w in words} == {"node1", "node2"}
    assert len({w[6] for w in words}) == 8
    assert {w[8] for w in words} == {"28"}
    assert all(" ".join(w[9:]) == "this is the image" for w in words)


def test_failing_rank_is_named(cluster: LiveCluster) -> None:
    (cluster.work() / "rank.py").write_text(RANK)
    job = contained_job(cluster, "mpiexec python3 rank.py 3\n", "-l", "nodes=2:ppn=4", "-N", "bad")
    assert cluster.wait(job, 120)["Exit_status"] == 3
    assert "rank 5 (node2) exited with code 3" in cluster.output(job, "bad", "e")


def test_nothing_survives_the_end(cluster: LiveCluster) -> None:
    """Whatever it forked; `check_clean` and the fixture look for processes and containers."""
    job = contained_job(cluster, "setsid nohup sleep 1000 >&2 &\n(setsid sleep 1000 &)\nexit 4\n")
    assert cluster.wait(job)["Exit_status"] == 4
    assert not cluster.job_processes()


def test_qdel(cluster: LiveCluster) -> None:
    job = contained_job(cluster, "#!/bin/sh\ntrap 'exit 9' TERM\necho up\nwhile :; do sleep 0.1; done\n")
    wait_until(lambda: (cluster.work() / f"STDIN.o{job.split('.')[0]}").exists(), "it runs")
    cluster.run("qdel", job, check=True)
    assert cluster.wait(job)["Exit_status"] == 271


def test_image_that_is_not_there(cluster: LiveCluster) -> None:
    job = cluster.qsub("true\n", "--image", "nowhere:1", "-W", "image_pull=never")
    why = wait_until(
        lambda: text if "never" in (text := cluster.run("qstat", "-f", job).stdout) else None,
        "the reason",
        60,
    )
    assert "nowhere:1" in why


def test_registry_that_asks_who_one_is(cluster: LiveCluster, engine: Engine) -> None:
    """The login is a secret of the job's owner."""
    hpcmesos = [sys.executable, "-m", "hpcmesos.cli"]
    for name, value in (
        ("right", f"{registry_kit.USER}:{registry_kit.PASSWORD}"), ("wrong", "puller:no"), ("none", "x")
    ):  # fmt: skip
        cluster.run(*hpcmesos, "secret", "set", name, stdin=value, check=True)
    with registry_kit.registry(engine, IMAGE) as image:
        refused = cluster.run("qsub", "--image", image, "-W", "image_secret=unknown", "--", "true")
        assert "you have no secret 'unknown'" in refused.stderr
        for options, said in (
            (("-W", "image_secret=wrong"), "no basic auth credentials|unauthorized|denied"),
            (("-W", "image_secret=none"), "secret none is not of the form USER:PASSWORD"),
            ((), "no basic auth credentials|unauthorized|denied"),
        ):
            job = cluster.qsub("true\n", "--image", image, *options)
            wait_until(
                lambda job=job, said=said: re.search(said, cluster.run("qstat", "-f", job).stdout),  # type: ignore[misc]  # no type of a default
                f"{options}: {said}",
                60,
            )
            cluster.run("qdel", job)
        job = cluster.qsub("cat /etc/image\n", "--image", image, "-W", "image_secret=right")
        assert cluster.wait(job, 120)["Exit_status"] == 0
        assert cluster.output(job) == "this is the image\n"


def test_the_holding_process_has_next_to_nothing(cluster: LiveCluster, engine: Engine) -> None:
    job = contained_job(cluster, "sleep 600\n")
    cluster.wait_state(job, "R")
    (container,) = wait_until(engine.containers, "its container", 60)
    wait_until(lambda: cluster.job(job)["job_state"] == "R" and cluster.job_processes(), "it runs")
    found = json.loads(engine.ask("GET", f"/containers/{container}/json"))
    host = found["HostConfig"]
    assert (host["Memory"], host["PidsLimit"], host["CpuShares"]) == (32 << 20, 4, 2)
    status = Path(f"/proc/{found['State']['Pid']}/status").read_text()
    assert re.findall(r"Cap(?:Prm|Eff|Amb):\t(\w+)", status) == ["0" * 16] * 3
    cluster.run("qdel", job, check=True)


KEYRING = "import ctypes; libc = ctypes.CDLL(None, use_errno=True)\n"
KEYRING += "print(libc.syscall(250, 0, -3, 1) >= 0, ctypes.get_errno())"  # KEYCTL_GET_KEYRING_ID, own session


def test_system_calls_are_those_that_docker_allows(cluster: LiveCluster, engine: Engine) -> None:
    """keyctl(2) stands for what Docker's default profile forbids and the kernel lets any user do."""
    words = f"python3 -c '{KEYRING}'\ngrep Seccomp /proc/self/status\n"
    job = contained_job(cluster, words + "sleep 600\n")
    cluster.wait_state(job, "R")
    place = cluster.work() / f"STDIN.o{job.partition('.')[0]}"
    wait_until(lambda: place.exists() and "_filters" in place.read_text(), "what it wrote", 60)
    text = place.read_text()
    (container,) = engine.containers()
    holder = json.loads(engine.ask("GET", f"/containers/{container}/json"))["State"]["Pid"]
    of_docker = re.findall("Seccomp.*", Path(f"/proc/{holder}/status").read_text())
    assert text.splitlines() == ["False 1", *of_docker], "EPERM"
    assert "Seccomp:\t2" in text
    cluster.run("qdel", job, check=True)
    outside = cluster.qsub("#!/bin/sh\n" + words, "-d", str(cluster.work()))
    assert cluster.wait(outside)["Exit_status"] == 0
    assert cluster.output(outside).splitlines()[:2] == ["True 0", "Seccomp:\t0"]


def test_ranks_have_the_filters_too(cluster: LiveCluster) -> None:
    job = contained_job(cluster, "hpcmesos run -n 2 grep Seccomp: /proc/self/status\n", "-l", "nodes=2:ppn=1")
    assert cluster.wait(job, 120)["Exit_status"] == 0
    assert cluster.output(job) == "Seccomp:\t2\n" * 2


def test_private_tmp_holds_in_an_image(engine: Engine, users_of_tests: None) -> None:
    """Two jobs at once, whose image sees the node's /tmp: each has its own, and the node's is as it was."""
    place = Path(tempfile.mkdtemp(prefix="hpcm-image-", dir="/var/lib"))
    place.chmod(0o777)
    served = {
        "command": [sys.executable, "-m", "hpcmesos.agent.containers"],
        "docker": engine.url,
        "paths": ["/tmp", "/var/tmp"],
        "pull": "never",
    }
    mark = f"hpcm-{os.getpid()}"
    words = f"#!/bin/sh\ncat /etc/image\nls /tmp /var/tmp\ntouch /tmp/{mark}\nls $TMPDIR\n"
    try:
        with (
            shepherd_kit.cluster(place, ["n1"], cgroups=True, private_tmp=True, containers=served) as (node,),
            shepherd_kit.runs([node], place) as start,
        ):
            runs = [
                start(words, owner=USERS[0], workdir="/", image=IMAGE, prepare_timeout=60) for _ in range(2)
            ]
            for run in runs:
                ended = run.ended(timeout=60)
                assert ended["code"] == 0, (ended, node.log())
                seen = run.tail("stdout").splitlines()
                assert seen == ["this is the image", "/tmp:", "", "/var/tmp:", mark], seen
            assert not Path("/tmp", mark).exists()
            wait_until(lambda: not engine.containers(), "no container is left", 60)
    finally:
        shutil.rmtree(place)


def test_wrong_words_are_refused(cluster: LiveCluster) -> None:
    for options in (("--image", "-x"), ("--image", "a b"), ("--image", IMAGE, "-W", "ring=check")):
        done = cluster.run("qsub", *options, "--", "true")
        assert done.returncode != 0
        assert len(done.stderr.splitlines()) == 1, done.stderr


def test_survives_agent_and_engine(cluster: LiveCluster, engine: Engine) -> None:
    """The agent is killed, and the Engine restarted: the code is still the script's."""
    (cluster.work() / "go").unlink(missing_ok=True)
    job = contained_job(
        cluster,
        "#!/bin/sh\necho up\nwhile [ ! -e go ]; do sleep 0.1; done\ncat /etc/image\nexit 21\n",
        "-N", "lasting",
    )  # fmt: skip
    node = wait_until(lambda: cluster.job(job).get("exec_host", "").split("/")[0], "it has a node")
    cluster.wait_state(job, "R")
    os.kill(cluster.pid(f"{node}/agent"), signal.SIGKILL)
    engine.stop()
    engine.start()
    cluster.up()
    (cluster.work() / "go").touch()
    assert cluster.wait(job)["Exit_status"] == 21
    assert cluster.output(job, "lasting") == "up\nthis is the image\n"


def test_engine_that_hangs_holds_nothing_up(cluster: LiveCluster, engine: Engine) -> None:
    """Neither the end of a container job nor other jobs; and its container goes once the Engine is back."""
    (cluster.work() / "go").unlink(missing_ok=True)
    job = contained_job(cluster, "#!/bin/sh\nwhile [ ! -e go ]; do sleep 0.1; done\nexit 22\n")
    cluster.wait_state(job, "R")
    wait_until(lambda: cluster.job_processes(), "it runs")
    engine.send(signal.SIGSTOP)
    try:
        (cluster.work() / "go").touch()
        assert cluster.wait(job, 20)["Exit_status"] == 22
        plain = [cluster.qsub("#!/bin/sh\nexit 5\n", "-l", "nodes=2") for _ in range(3)]
        assert [cluster.wait(one, 20)["Exit_status"] for one in plain] == [5, 5, 5]
    finally:
        engine.send(signal.SIGCONT)


def test_dead_shepherd_leaves_no_container(cluster: LiveCluster, engine: Engine) -> None:
    job = contained_job(cluster, "sleep 1000\n", "-r", "n")
    wait_until(lambda: cluster.job_processes() and engine.containers(), "it runs")
    node = cluster.job(job)["exec_host"].split("/")[0]
    os.kill(cluster.pid(f"{node}/shepherd"), signal.SIGKILL)
    cluster.wait(job)
    assert cause_of(cluster, job) == "NODE_LOST"
    wait_until(lambda: not engine.containers(), "its container is gone", 60)


def test_memory_is_limited_as_outside(cluster: LiveCluster) -> None:
    script = "exec python3 -c 'held = [b\"x\" * 2**20 for _ in range(400)]'\n"
    job = contained_job(cluster, "#!/bin/sh\n" + script, "-l", "nodes=1,mem=100mb")
    assert cluster.wait(job)["Exit_status"] == -10
    assert cause_of(cluster, job) == "OOM"
    assert cluster.wait(contained_job(cluster, "#!/bin/sh\n" + script))["Exit_status"] == 0
