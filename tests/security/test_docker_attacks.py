"""Attacks on a job's Docker socket: more rights, other users' files, other jobs' containers and GPUs"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from docker import DockerClient

from hpcmesos.agent import containers
from hpcmesos.launch.container_marks import OWN, STATE
from tests.e2e import docker_kit
from tests.e2e.docker_kit import Engine
from tests.security.cases import Case, Told, Try, both, check
from tests.security.docker_stage import (
    CHANGED,
    FOREIGN_GPU,
    GPU,
    OTHERS,
    SECOND_GROUP,
    STRANGER,
    Client,
    DockerStage,
    creates,
    kept,
    open_to_all,
    wait_for_end,
    without,
)

pytestmark = [pytest.mark.root, pytest.mark.full]


engine = docker_kit.engine


@pytest.fixture
def stage(engine: Engine) -> Iterator[DockerStage]:
    place = Path(tempfile.mkdtemp(prefix="hpcm-docker-", dir="/var/tmp"))
    place.chmod(0o711)
    found = DockerStage(engine, place)
    yield found
    found.clear()
    shutil.rmtree(place)


def host(field: str, value: Any) -> Any:
    return lambda found: found["HostConfig"][field] == value


PLAIN = creates(lambda found: found["Config"]["User"] != "" and not found["HostConfig"]["Privileged"])
MOUNTED = creates(lambda found: len(found["Mounts"]) == 1, {"Binds": ["ROOT/home/mine:/x"]})


def gpus(wanted: str) -> Try[DockerStage]:
    request = {"DeviceIDs": [wanted], "Capabilities": [["gpu"]]}

    def seen(found: dict[str, Any]) -> bool:
        return [r["DeviceIDs"] for r in found["HostConfig"]["DeviceRequests"]] == [[wanted]]

    return creates(seen, {"DeviceRequests": [request]})


def swapped(link: bool) -> Try[DockerStage]:
    """What a container says of a directory, in whose place its owner may have put a link before it started."""

    def run(stage: DockerStage) -> Told:
        with stage.socket() as client:
            mount = {"Binds": [f"{stage.home}/mine:/x"]}
            made, why = client.create(mount, Cmd=["cat", "/x/secret"])
            if link:
                (stage.home / "mine").rename(stage.home / "was")
                (stage.home / "mine").symlink_to(stage.root / "private" / "open")
            client.ask("POST", f"/containers/{made}/start")
            wait_for_end(stage, made)
            _, said = client.ask("GET", f"/containers/{made}/logs?stdout=1&stderr=1")
            return Told(("secret" if link else "own") in str(said), why)

    return run


def about(own: bool, method: str, target: str, body: Any = None) -> Try[DockerStage]:
    """A call about a container that runs, another job's or the own one; done if the Engine does it."""

    def run(stage: DockerStage) -> Told:
        with stage.socket() as client:
            container = _running(client) if own else stage.foreign
            status, answer = client.ask(method, target.replace("ID", container), body)
            return Told(status < 300, f"{status} {answer['message']}" if status >= 300 else "")

    return run


def _running(client: Client) -> str:
    made, why = client.create()
    assert made, why
    status, answer = client.ask("POST", f"/containers/{made}/start")
    assert status == 204, answer
    return made


def labelled(own: bool) -> Try[DockerStage]:
    """The end of a container that root runs of a user's image; its twin is one that the job has made."""

    def run(stage: DockerStage) -> Told:
        with stage.socket() as client:
            container = _running(client) if own else stage.make({STATE: "/state", OWN: "12.hpcm#1"})
            status, answer = client.ask("DELETE", f"/containers/{container}?force=1")
            return Told(status < 300, f"{status} {answer['message']}" if status >= 300 else "")

    return run


def group_of_image(add: bool) -> Try[DockerStage]:
    """An image calls group 0 by the number of one of the owner's. Done if the container has the group it looks for."""

    def run(stage: DockerStage) -> Told:
        with stage.socket() as client:
            host: dict[str, Any] = {"GroupAdd": [str(SECOND_GROUP)]} if add else {}
            user = {} if add else {"User": f":{SECOND_GROUP}"}
            made, why = client.create(host, Image=CHANGED, Cmd=["cat", "/proc/self/status"], **user)
            if not made:
                return Told(False, why)
            client.ask("POST", f"/containers/{made}/start")
            wait_for_end(stage, made)
            _, said = client.ask("GET", f"/containers/{made}/logs?stdout=1")
            words = next(
                line for line in str(said).splitlines() if ("Groups:" if add else "Gid:") in line
            ).split()
            return Told(("0" if add else str(SECOND_GROUP)) in words[1:])

    return run


def listed(own: bool) -> Try[DockerStage]:
    def run(stage: DockerStage) -> Told:
        with stage.socket() as client:
            wanted = _running(client) if own else stage.foreign
            _, found = client.ask("GET", '/containers/json?all=1&filters={"label":["hpcmesos.docker"]}')
            return Told(wanted in [container["Id"] for container in found])

    return run


def removes(target: str, method: str = "DELETE") -> Try[DockerStage]:
    """An image that others use; its twin, which is there: looks at it."""

    def run(stage: DockerStage) -> Told:
        with stage.socket() as client:
            status, answer = client.ask(method, target)
            return Told(status == 200, f"{status} {answer['message']}" if status >= 300 else "")

    return run


def called_by(user: str) -> Try[DockerStage]:
    """A process of a user at the socket."""
    program = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.settimeout(10); s.connect(sys.argv[1]);"
        "s.sendall(b'GET /_ping HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n'); print(s.recv(100))"
    )

    def run(stage: DockerStage) -> Told:
        with stage.socket() as client:
            done = subprocess.run(
                [sys.executable, "-IS", "-c", program, str(client.path)],
                capture_output=True, text=True, check=False, cwd="/", user=user, extra_groups=[],
            )  # fmt: skip
            return Told("200" in done.stdout, done.stderr.strip().splitlines()[-1] if done.stderr else "")

    return run


def old_start(body: dict[str, Any]) -> Try[DockerStage]:
    """Engines of old took a container's rights from the body of its start; they still do, for old clients."""

    def run(stage: DockerStage) -> Told:
        with stage.socket() as client:
            made, why = client.create()
            client.ask("POST", f"/v1.20/containers/{made}/start", body)
            found = stage.state(made)
            wanted = body.get("Privileged", False)
            return Told(bool(found["State"]["Running"]) and found["HostConfig"]["Privileged"] == wanted, why)

    return run


KMSG = {"PathOnHost": "/dev/kmsg", "PathInContainer": "/dev/kmsg", "CgroupPermissions": "r"}
CASES = [
    Case(
        "a privileged container",
        creates(host("Privileged", True), {"Privileged": True}),
        PLAIN,
        kept("Privileged"),
    ),
    Case(
        "a capability",
        creates(host("CapAdd", ["SYS_ADMIN"]), {"CapAdd": ["SYS_ADMIN"]}),
        PLAIN,
        kept("CapAdd"),
    ),
    Case(
        "the node's process ids",
        creates(host("PidMode", "host"), {"PidMode": "host"}),
        PLAIN,
        kept("PidMode"),
    ),
    Case("the node's IPC", creates(host("IpcMode", "host"), {"IpcMode": "host"}), PLAIN, kept("IpcMode")),
    Case(
        "system calls without a filter",
        creates(host("SecurityOpt", ["seccomp=unconfined"]), {"SecurityOpt": ["seccomp=unconfined"]}),
        PLAIN,
        kept("SecurityOpt"),
    ),
    Case(
        "a cgroup of its own choice",
        creates(host("CgroupParent", "/mine"), {"CgroupParent": "/mine"}),
        PLAIN,
        kept("CgroupParent"),
    ),
    Case(
        "a device of the node",
        creates(host("Devices", [KMSG]), {"Devices": [KMSG]}),
        PLAIN,
        kept("Devices"),
    ),
    Case(
        "another job's GPU",
        gpus(FOREIGN_GPU),
        gpus(GPU),
        without("c._gpus_of = lambda grant, request: request['DeviceIDs']"),
    ),
    Case(
        "a container that runs as root",
        creates(lambda found: found["Config"]["User"] == "0", User="0"),
        PLAIN,
        without(
            "c._CONFIG_CHECKS.pop('User')\nc.CONFIG = c.CONFIG | {'User'}\nforced = c.forced_config\n"
            "c.forced_config = lambda *a: {k: v for k, v in forced(*a).items() if k != 'User'}"
        ),
    ),
    Case(
        "a mount of what the site does not give",
        creates(lambda found: found["Mounts"], {"Binds": ["/etc:/x"]}),
        MOUNTED,
        without("c.Grant.writable = lambda self, path: True"),
    ),
    Case(
        "a mount by a link that leads there",
        creates(lambda found: found["Mounts"], {"Binds": ["ROOT/home/link:/x"]}),
        MOUNTED,
        without("c.Grant.writable = lambda self, path: True"),
    ),
    Case(
        "a mount of what its owner may not reach",
        creates(lambda found: found["Mounts"], {"Binds": ["ROOT/private/open:/x"]}),
        MOUNTED,
        without("import os\np.docker_pins.open_as = lambda uid, gid, groups, path: os.open(path, os.O_PATH)"),
    ),
    Case(
        "a link in place of a mounted directory",
        swapped(link=True),
        swapped(link=False),
        without("p.docker_pins.Pins.hold = lambda self, fd: p.docker_pins.real_path(fd)"),
        silent=True,
        harmless=True,
    ),
    Case(
        "the end of another job's container",
        about(False, "DELETE", "/containers/ID?force=1"),
        about(True, "DELETE", "/containers/ID?force=1"),
        without("r.is_own = lambda grant, found: True"),
    ),
    Case(
        "another job's container, looked at",
        about(False, "GET", "/containers/ID/json"),
        about(True, "GET", "/containers/ID/json"),
        without("r.is_own = lambda grant, found: True"),
    ),
    Case(
        "a command in another job's container",
        about(False, "POST", "/containers/ID/exec", {"Cmd": ["true"]}),
        about(True, "POST", "/containers/ID/exec", {"Cmd": ["true"]}),
        without("r.is_own = lambda grant, found: True"),
    ),
    Case(
        "a container whose image has the job's labels",
        labelled(own=False),
        labelled(own=True),
        without("r.is_own = lambda grant, found: r.STATE in found['Config']['Labels']"),
        harmless=True,
    ),
    Case(
        "another group by the list of groups in an image",
        group_of_image(add=True),
        group_of_image(add=False),
        without("c._HOST_CHECKS.pop('GroupAdd')\nc.HOST = c.HOST | {'GroupAdd'}"),
    ),
    Case(
        "a privileged command in the own container",
        about(True, "POST", "/containers/ID/exec", {"Cmd": ["true"], "Privileged": True}),
        about(True, "POST", "/containers/ID/exec", {"Cmd": ["true"]}),
        without("c.EXEC = c.EXEC | {'Privileged'}"),
        harmless=True,
    ),
    Case(
        "other jobs' containers, listed",
        listed(own=False),
        listed(own=True),
        without("r._own_alone = lambda grant, query: query"),
        silent=True,
    ),
    Case(
        "the end of an image that others use",
        removes(f"/images/{OTHERS}"),
        removes(f"/images/{OTHERS}/json", "GET"),
        without("r.ROUTES = (*r.ROUTES, r.Route('DELETE', f'/images/{r._IMAGE}', kind=r.Kind.PLAIN))"),
    ),
    Case(
        "rights in the body of a start",
        old_start({"Privileged": True}),
        old_start({}),
        without(
            "import dataclasses, json\nread = r.read\n"
            "def reads(grant, method, target, body):\n"
            "    call = read(grant, method, target, body)\n"
            "    return dataclasses.replace(call, body=json.loads(body)) if target.endswith('/start') else call\n"
            "r.read = reads"
        ),
        silent=True,
        harmless=True,
    ),
    Case(
        "another user at the socket",
        called_by(STRANGER),
        called_by("nobody"),
        both(open_to_all, without("p.Proxy._may_call = lambda self, connection: True")),
    ),
]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_docker(case: Case[DockerStage], stage: DockerStage, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, stage, monkeypatch)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_job_has_so_many_containers_and_commands(
    stage: DockerStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.renew()
    without("p._MOST_CONTAINERS = p._MOST_COMMANDS = 1")(monkeypatch)
    with stage.socket() as client:
        container = _running(client)
        assert client.create() == ("", "403 a job has at most 1 containers on a node; remove some: docker rm")
        command = ("POST", f"/containers/{container}/exec", {"Cmd": ["true"]})
        assert client.ask(*command)[0] == 201
        status, answer = client.ask(*command)
        assert status == 403 and "has had 1 commands of late" in answer["message"]
        client.ask("DELETE", f"/containers/{container}?force=1")
        assert client.create()[0], "there is room again"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_what_no_container_mounts_any_more_does_not_count(
    stage: DockerStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.renew()
    for number in range(6):
        (stage.home / str(number)).mkdir(mode=0o755)
        (stage.home / str(number) / "which").write_text(f"this is {number}")
    without("p.docker_pins.MOST = 3")(monkeypatch)

    def create(number: int) -> tuple[str, str]:
        return client.create({"Binds": [f"{stage.home}/{number}:/x"]}, Cmd=["cat", "/x/which"])

    with stage.socket() as client:
        kept, _ = create(0)
        for number in range(1, 5):
            made, why = create(number)
            assert made, why
            assert client.ask("DELETE", f"/containers/{made}")[0] == 204
        client.ask("POST", f"/containers/{kept}/start")
        wait_for_end(stage, kept)
        assert "this is 0" in str(client.ask("GET", f"/containers/{kept}/logs?stdout=1")[1])
        assert create(1)[0] and create(2)[0]
        assert "a job mounts at most 3" in create(5)[1]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_containers_that_others_made_of_an_image_with_our_labels_stay(stage: DockerStage) -> None:
    stage.renew()
    found = DockerClient(stage.engine.url)
    with contextlib.closing(found), stage.socket() as client:
        own = _running(client)
        request = {"state": "/state", "token": "of an heir", "attempts": []}
        assert containers.remove(found, request) == {"removed": 1}
        assert own not in stage.engine.containers()
        assert stage.foreign in stage.engine.containers()
