"""Jobs that use Docker themselves, by the socket that they find in DOCKER_HOST; by a real Engine and docker command."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcmesos.launch import docker_pins
from tests.e2e import docker_kit
from tests.e2e.cluster_kit import USERS, LiveCluster, wait_until
from tests.e2e.conftest import check_clean, running
from tests.e2e.docker_kit import IMAGE, Engine

pytestmark = pytest.mark.full


engine = docker_kit.engine


@pytest.fixture(scope="module")
def served(engine: Engine, users_of_tests: None) -> Iterator[LiveCluster]:
    """One agent whose site lets jobs use Docker."""
    if shutil.which("docker", path="/usr/local/bin:/usr/bin:/bin") is None:
        pytest.skip("no Docker Engine: the docker command is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", engine.url)
        with running(LiveCluster(agents=1, gpus=2)) as cluster:
            settings = cluster.state / "agents" / "node1" / "agent.toml"
            cluster.down()
            settings.write_text(settings.read_text() + "docker_in_jobs = true\n")
            cluster.up()
            yield cluster


@pytest.fixture
def cluster(served: LiveCluster, engine: Engine) -> Iterator[LiveCluster]:
    """Nothing is left of what a test did: no process, container, group or mount."""
    yield served
    served.run("qdel", "-W", "0", "all", user="")
    check_clean(served)
    wait_until(lambda: not engine.containers(), "no container is left", 60)
    wait_until(lambda: not groups(served), f"no group of an attempt: {groups(served)}", 20)
    assert docker_pins.PLACE not in Path("/proc/mounts").read_text()


def groups(cluster: LiveCluster) -> list[str]:
    """Of attempts, in every hierarchy."""
    node = f"hpcmesos/{cluster.described.identity}/node1"
    return [str(path) for path in Path("/sys/fs/cgroup").glob(f"*/{node}/*/") if "#" in path.name]


def run(cluster: LiveCluster, script: str, *options: str) -> tuple[dict[str, object], str]:
    """The end of a job, and what it said."""
    place = ("-d", str(cluster.work()), "-j", "oe")
    job = cluster.qsub("#!/bin/sh\n" + script.replace("IMAGE", IMAGE), *place, *options)
    ended = cluster.wait(job, 120)
    return ended, cluster.output(job)


def test_docker_run(cluster: LiveCluster) -> None:
    """In the foreground: output, input, exit codes; as the job's owner, without rights, on the node's network."""
    _, text = run(
        cluster,
        "docker run --rm IMAGE cat /etc/image\n"
        "docker run --rm IMAGE sh -c 'id -u; id -g; hostname'\n"
        "docker run --rm IMAGE sh -c 'exit 37'; echo code $?\n"
        "docker run --rm IMAGE no-such-program >/dev/null 2>&1; echo code $?\n"
        "echo told | docker run --rm -i IMAGE cat\n"
        "docker run --rm IMAGE sh -c 'echo wrong >&2' 2>/dev/null\n"
        "docker run --rm IMAGE grep -E 'Cap(Bnd|Eff)|NoNewPrivs|Seccomp:' /proc/self/status\n",
    )
    owner = cluster.work().stat()
    none = "0" * 16
    assert text.split() == [
        *(["this", "is", "the", "image"]), str(owner.st_uid), str(owner.st_gid), os.uname().nodename,
        *(["code", "37", "code", "127", "told"]),
        *("CapEff:", none, "CapBnd:", none, "NoNewPrivs:", "1", "Seccomp:", "2"),
    ], text  # fmt: skip


def test_mounts_are_the_owners(cluster: LiveCluster) -> None:
    _, text = run(
        cluster,
        "echo data >input\n"
        "docker run --rm -v $PWD:/work -w /work IMAGE sh -c 'cat input; echo made >output'\n"
        "docker run --rm --mount type=bind,source=$PWD/input,target=/in,readonly IMAGE sh -c 'cat /in; echo x >/in'\n"
        "docker run --rm -v $TMPDIR:/t IMAGE touch /t/here; ls $TMPDIR\n"
        "docker run --rm -v /etc:/x IMAGE true\n",
    )
    assert (cluster.work() / "output").read_text() == "made\n"
    assert (cluster.work() / "output").stat().st_uid == cluster.work().stat().st_uid
    lines = text.splitlines()
    assert lines[0] == "data"
    refused, seen = sorted(
        lines[1:3], key=len, reverse=True
    )  # output and errors are two streams of the Engine
    assert seen == "data" and "Read-only file system" in refused
    assert lines[3] == "here"
    assert "/etc is not among the directories that containers of jobs may mount: " in text


def test_containers_in_the_background(cluster: LiveCluster) -> None:
    """Their whole life by the docker command."""
    _, text = run(
        cluster,
        "docker run -d --name box IMAGE sh -c 'echo up; trap \"exit 5\" TERM; while :; do sleep 0.1; done' >/dev/null\n"
        "docker ps --filter status=running --filter name=box --format '{{.Names}} {{.State}}'\n"
        "docker exec box cat /etc/image\n"
        "docker exec -i box sh -c 'cat; exit 3' </dev/null; echo code $?\n"
        "until docker logs box | grep up; do sleep 0.1; done\n"
        "docker inspect -f '{{.State.Running}}' box\n"
        "docker stop box; docker wait box; docker rm box\n"
        "docker run -d --name other IMAGE sleep 1000 >/dev/null; docker kill other; docker wait other\n"
        "docker rm -f other; docker ps -aq\n"
        "docker version --format '{{.Server.Os}}'; docker images -q IMAGE | grep -c .\n",
    )
    said = "box running/this is the image/code 3/up/true/box/5/box/other/137/other/linux/1"
    assert text.splitlines() == said.split("/"), text


def test_nothing_remains_of_containers_in_the_background(cluster: LiveCluster, engine: Engine) -> None:
    """What the fixture looks for, and their processes."""
    ended, text = run(
        cluster,
        "docker run -d IMAGE sh -c 'setsid nohup sleep 1000 & sleep 1000' >/dev/null\n"
        "docker run -d --rm IMAGE sleep 1000 >/dev/null\ndocker create -v $PWD:/x IMAGE true >/dev/null\n"
        "for i in $(docker ps -q); do docker inspect -f '{{.State.Pid}}' $i; done\nexit 4\n",
    )
    assert ended["Exit_status"] == 4, text
    pids = [int(word) for word in text.split()]
    assert len(pids) == 2
    wait_until(lambda: not [pid for pid in pids if Path(f"/proc/{pid}").exists()], "they are gone", 10)


def test_jobs_do_not_see_each_others(cluster: LiveCluster, engine: Engine) -> None:
    place = ("-d", str(cluster.work()))
    mine = cluster.qsub(f"#!/bin/sh\ndocker run --name mine {IMAGE} sleep 1000\n", *place)
    (container,) = wait_until(engine.containers, "a container", 60)
    _, text = run(
        cluster, f"docker ps -aq\ndocker rm -f {container}\ndocker stop mine\ndocker exec mine true\n"
    )
    assert len(text.splitlines()) == 3, text
    assert all("No such container of this job" in line for line in text.splitlines()), text
    assert engine.containers() == [container]
    cluster.run("qdel", mine, check=True)
    cluster.wait(mine)


def test_another_user_does_not_reach_the_socket(cluster: LiveCluster) -> None:
    place = cluster.work()
    job = cluster.qsub(f"#!/bin/sh\necho $DOCKER_HOST >{place}/host; docker info >{place}/info; sleep 1000\n")
    wait_until(
        lambda: (place / "info").exists() and (place / "info").read_text(), "the job sees the Engine", 60
    )
    host = (place / "host").read_text().strip()
    done = cluster.run("docker", "-H", host, "ps", user=USERS[1])
    assert done.returncode != 0
    assert "permission denied" in done.stderr.lower()
    cluster.run("qdel", job, check=True)
    cluster.wait(job)


def test_what_is_refused_says_why(cluster: LiveCluster) -> None:
    _, text = run(
        cluster, "docker run --privileged IMAGE true\ndocker volume ls\ndocker run --pid=host IMAGE true\n"
    )
    assert "HostConfig.Privileged is refused in a job: containers of jobs run without privileges" in text
    assert "HostConfig.PidMode is refused in a job" in text
    assert "is refused in a job, where of docker there is run, ps" in text


HOG = "python3 -c 'held = [b\"x\" * 2**20 for _ in range(400)]'"


def test_memory_of_containers_is_the_jobs(cluster: LiveCluster) -> None:
    ended, text = run(cluster, f"docker run --rm IMAGE {HOG}; echo code $?\n", "-l", "nodes=1,mem=100mb")
    assert "code 137" in text
    assert ended["Exit_status"] == -10, "it was killed for memory"
    ended, text = run(cluster, f"docker run --rm IMAGE {HOG}; echo code $?\n")
    assert (ended["Exit_status"], text) == (0, "code 0\n")
    ended, text = run(
        cluster, f"docker run --rm -m 50m IMAGE {HOG}; echo code $?\n", "-l", "nodes=1,mem=400mb"
    )
    assert (ended["Exit_status"], text) == (0, "code 137\n"), "a limit that the job has set itself"


def test_survives_agent_and_engine(cluster: LiveCluster, engine: Engine) -> None:
    """As jobs with an image: the agent is killed, the Engine restarted, and the container's end is true."""
    go = cluster.work() / "go"
    go.unlink(missing_ok=True)
    waits = "until [ -e /w/go ]; do sleep 0.1; done; exit 6"
    script = f"docker run -d --name box -v $PWD:/w {IMAGE} sh -c '{waits}'; touch up\n"
    script += "until [ -e go ]; do sleep 0.1; done\nexit $(docker wait box)\n"
    job = cluster.qsub("#!/bin/sh\n" + script, "-d", str(cluster.work()))
    wait_until((cluster.work() / "up").exists, "its container runs", 60)
    os.kill(cluster.pid("node1/agent"), signal.SIGKILL)
    engine.stop()
    engine.start()
    cluster.up()
    go.touch()
    assert cluster.wait(job)["Exit_status"] == 6


def test_the_process_behind_the_socket_is_begun_anew(cluster: LiveCluster) -> None:
    go = cluster.work() / "go"
    go.unlink(missing_ok=True)
    script = f"docker create --name box -v $PWD:/w {IMAGE} cat /w/data; echo kept >data\n"
    script += "until [ -e go ]; do sleep 0.1; done\ndocker start -a box\n"
    job = cluster.qsub("#!/bin/sh\n" + script, "-d", str(cluster.work()))
    (pid,) = wait_until(lambda: proxies(cluster), "the process", 60)
    wait_until(lambda: (cluster.work() / "data").exists(), "the container is made", 60)
    os.kill(pid, signal.SIGKILL)
    go.touch()
    assert cluster.wait(job)["Exit_status"] == 0
    assert cluster.output(job).splitlines()[-1] == "kept"


def proxies(cluster: LiveCluster) -> list[int]:
    """Those of this cluster."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"hpcmesos.agent.docker_proxy" in words and str(cluster.state).encode() in words[-2]:
            found.append(int(path.parent.name))
    return found


def test_dead_shepherd_leaves_nothing(cluster: LiveCluster, engine: Engine) -> None:
    job = cluster.qsub(
        f"#!/bin/sh\ndocker run -v $PWD:/w {IMAGE} sleep 1000\n", "-r", "n", "-d", str(cluster.work())
    )
    wait_until(engine.containers, "a container", 60)
    os.kill(cluster.pid("node1/shepherd"), signal.SIGKILL)
    assert "NODE_LOST" in wait_until(lambda: cause(cluster, job), "its end", 60)
    wait_until(lambda: not proxies(cluster), "nobody serves its socket", 10)


def cause(cluster: LiveCluster, job: str) -> str:
    with cluster.client() as client:
        return str(client.job(job).cause or "")


def test_nodes_say_so(cluster: LiveCluster) -> None:
    with cluster.client() as client:
        assert {"docker", "docker_in_jobs"} <= {
            feature for node in client.nodes() for feature in node.features
        }
