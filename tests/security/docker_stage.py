"""A job's Docker socket as it is attacked: the process behind it, a real Engine, and what others have there."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hpcmesos.launch import docker_pins, docker_sockets
from hpcmesos.launch.container_marks import OWN, STATE
from hpcmesos.launch.limits import remove_group
from hpcmesos.launch.owners import Owner
from tests.e2e.cluster_kit import wait_until
from tests.e2e.docker_kit import IMAGE, Engine
from tests.security.cases import Switch, Told, Try

OWNER, STRANGER = "nobody", "daemon"
OTHERS = "hpcmesos-others:1"
CHANGED = "hpcmesos-changed:1"
"""An image in which group 0 is called SECOND_GROUP."""
SECOND_GROUP = 4711
"""Of the owner, besides his own."""
GPU, FOREIGN_GPU = "GPU-mine", "GPU-another"
CGROUP = f"hpcmesos-attacks-{os.getpid()}"
_UNGUARDED = str(Path(__file__).with_name("unguarded_docker.py"))
_settings: dict[str, Any] = {"code": "", "mode": None}


def without(code: str) -> Switch:
    """``code`` runs in the process behind the socket before it begins; ``c`` and ``r`` are the modules of the rules."""
    names = "from hpcmesos.agent import docker_create as c, docker_rules as r, docker_proxy as p\n"
    return lambda patch: patch.setitem(_settings, "code", names + code)


def open_to_all(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(_settings, "mode", 0o666)


def kept(field_name: str) -> Switch:
    """What is asked of a field of HostConfig stays as it is, and nothing is put over it."""
    return without(
        f"c.HOST = c.HOST | {{'{field_name}'}}\nc._HOST_CHECKS.pop('{field_name}', None)\nforced = c.forced_host\n"
        f"c.forced_host = lambda grant, gpus: {{k: v for k, v in forced(grant, gpus).items() if k != '{field_name}'}}\n"
    )


@dataclass
class DockerStage:
    """``root``: what users may pass; below it the owner's ``home``, and what is root's."""

    engine: Engine
    root: Path
    home: Path = field(init=False)
    foreign: str = field(init=False)  # another job's container, which runs

    def clear(self) -> None:
        """No container, and none of the groups in which they were made."""
        for container in self.engine.containers():
            self.engine.ask("DELETE", f"/containers/{container}?force=1")
        for group in Path("/sys/fs/cgroup").glob(f"*/{CGROUP}"):
            remove_group(str(group))

    def renew(self) -> None:
        self.clear()
        for left in self.root.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        self.home = self.root / "home"
        hidden = self.root / "private" / "open"
        (self.home / "mine").mkdir(parents=True)
        hidden.mkdir(parents=True)
        (self.root / "private").chmod(0o700)
        (hidden / "secret").write_text("secret")
        (self.home / "mine" / "secret").write_text("own")
        (self.home / "link").symlink_to("/etc")
        user = pwd.getpwnam(OWNER)
        for path in (self.home, self.home / "mine"):
            os.chown(path, user.pw_uid, user.pw_gid)
        name, _, tag = OTHERS.partition(":")
        self.engine.ask("POST", f"/images/{IMAGE}/tag?repo={name}&tag={tag}")
        if CHANGED not in str(self.engine.ask("GET", "/images/json")):
            self._change_image({"etc/group": f"{SECOND_GROUP}:x:0:\nroot:x:0:\n"})
        self.foreign = self.make({STATE: "/state", OWN: "13.hpcm#1"})
        self.engine.ask("POST", f"/containers/{self.foreign}/start")

    def make(self, labels: dict[str, str]) -> str:
        """As the Engine's administrator."""
        body = json.dumps(
            {"Image": IMAGE, "Cmd": ["sleep", "1000"], "Labels": labels, "NetworkDisabled": True}
        )
        return str(json.loads(self.engine.ask("POST", "/containers/create", body))["Id"])

    def _change_image(self, files: dict[str, str]) -> None:
        """Makes CHANGED: as IMAGE, with these files besides."""
        made = json.loads(
            self.engine.ask("POST", "/containers/create", json.dumps({"Image": IMAGE, "Cmd": ["true"]}))
        )
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            for name, text in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(text)
                tar.addfile(entry, io.BytesIO(text.encode()))
        self.engine.ask("PUT", f"/containers/{made['Id']}/archive?path=/", archive.getvalue())
        self.engine.ask("POST", f"/commit?container={made['Id']}&repo={CHANGED.partition(':')[0]}&tag=1")
        self.engine.ask("DELETE", f"/containers/{made['Id']}")

    def counts(self) -> Any:
        listed = json.loads(self.engine.ask("GET", "/containers/json?all=1"))
        images = json.loads(self.engine.ask("GET", "/images/json"))
        return sorted((c["Id"], c["State"]) for c in listed), sorted(
            tag for i in images for tag in i["RepoTags"] or ()
        )

    def state(self, container: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.engine.ask("GET", f"/containers/{container}/json"))
        return found

    @contextlib.contextmanager
    def socket(self) -> Iterator[Client]:
        """Of attempt 12.hpcm#1, whose owner is OWNER; what it may mount are the directories below ``root``."""
        user = pwd.getpwnam(OWNER)
        owner = Owner(
            OWNER,
            user.pw_uid,
            user.pw_gid,
            (user.pw_gid, SECOND_GROUP),
            str(self.home),
            "/bin/sh",
            switch=True,
        )
        path, pins = self.root / "docker.sock", docker_pins.directory_of(str(self.root), "12.hpcm#1")
        grant = {
            "name": OWNER, "uid": owner.uid, "gid": owner.gid, "groups": owner.groups,
            "cgroup": f"/{CGROUP}", "labels": {STATE: "/state", OWN: "12.hpcm#1"},
            "gpus": [GPU], "paths": [(str(self.root), True)],
        }  # fmt: skip
        settings = {"grant": grant, "engine": self.engine.url.removeprefix("unix://"), "pins": pins}
        settings |= {"private_tmp": "", "shepherd": os.getpid()}
        listener = docker_sockets._listen(str(path), owner)
        if _settings["mode"] is not None:
            path.chmod(_settings["mode"])
        words = [sys.executable, _UNGUARDED, _settings["code"], json.dumps(settings)]
        with listener, subprocess.Popen(words, stdin=listener) as process:
            try:
                yield Client(path)
            finally:
                process.terminate()
                process.wait(20)
                docker_pins.release_all(str(self.root))


class Client:
    """Who speaks to the socket."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def ask(self, method: str, target: str, body: Any = None) -> tuple[int, Any]:
        """Status, and the answer's JSON, or text where it is none."""
        connection = http.client.HTTPConnection("docker", timeout=30)
        connection.sock = socket.socket(socket.AF_UNIX)
        with contextlib.closing(connection):
            connection.sock.settimeout(30)
            connection.sock.connect(str(self.path))
            headers = {"Content-Type": "application/json"} if body is not None else {}
            connection.request(method, target, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            content = answer.read().decode(errors="replace")
        try:
            return answer.status, json.loads(content)
        except ValueError:
            return answer.status, content

    def create(self, host: dict[str, Any] | None = None, **config: Any) -> tuple[str, str]:
        """The container's id, or why there is none."""
        asked = {"Image": IMAGE, "Cmd": ["sleep", "1000"], **config, "HostConfig": host or {}}
        status, answer = self.ask("POST", "/v1.41/containers/create", asked)
        return (answer["Id"], "") if status == 201 else ("", f"{status} {answer['message']}")


def creates(seen: Any, host: dict[str, Any] | None = None, **config: Any) -> Try[DockerStage]:
    """A container is created; done if ``seen`` finds in the Engine's record of it what was wanted."""

    def run(stage: DockerStage) -> Told:
        with stage.socket() as client:
            asked = json.loads(json.dumps(host or {}).replace("ROOT", str(stage.root)))
            made, why = client.create(asked, **config)
            return Told(bool(made) and bool(seen(stage.state(made))), why)

    return run


def wait_for_end(stage: DockerStage, container: str) -> None:
    wait_until(lambda: stage.state(container)["State"]["Status"] == "exited", "it has ended", 20)
