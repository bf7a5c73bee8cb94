"""``python -m hpcmesos.agent.containers``: asks the Docker Engine for one thing; JSON on standard input and output.

A process of its own, started by the shepherd, who ends it when the Engine does not answer. Requests:
``{"op": "make", "docker", "image", "pull", "login", "labels", "owner", "mounts", "gpus"}`` ->
``{"pid", "environ", "filters": [BASE64...]}``; ``{"op": "remove", "docker", "state", "token", "attempts"}`` ->
``{"removed"}``: the containers of these attempts, and those that a shepherd with another token left of this state
directory. Else ``{"error"}``.
"""

from __future__ import annotations

import base64
import io
import json
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import docker
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.types import DeviceRequest, LogConfig, Mount
from requests.exceptions import RequestException

from hpcmesos.agent import seccomp
from hpcmesos.launch.container_marks import ATTEMPT, SHEPHERD, STATE

_TIMEOUT = 20
"""Seconds that the Engine may take for anything but to get an image."""
_PULL_TIMEOUT = 600
_HOLD = ["/bin/sh", "-c", "kill -STOP $$"]
"""Keeps the container's file systems mounted, at no cost: a process that never runs again."""
_HOLD_MEMORY = "32m"
_HOLD_PROCESSES = 4
_SYSTEM_CALLS_OF = ("SYS_PTRACE", "SYS_NICE")
"""Capabilities without which Docker's default profile forbids what MPI does between processes of one user, on Docker 20
at least: process_vm_readv(2), by which ranks copy, and mbind(2), by which hwloc places memory."""
_UNREADABLE = (
    "Docker's seccomp profile cannot be read from its container ({}), so it would not hold for the job; a site that"
    " does without it starts dockerd with --seccomp-profile=unconfined"
)


def main() -> int:
    """One request, one answer."""
    request = json.load(sys.stdin)
    answer: dict[str, Any]
    try:
        client = docker.DockerClient(base_url=request["docker"], timeout=_TIMEOUT)
        answer = make(client, request) if request["op"] == "make" else remove(client, request)
    except APIError as error:
        answer = {"error": f"Docker: {error.explanation or error}".strip()}
    except (DockerException, RequestException, OSError) as error:
        answer = {"error": f"the Docker Engine at {request['docker']} does not answer: {_short(error)}"}
    json.dump(answer, sys.stdout)
    return 0


def make(client: Any, request: dict[str, Any]) -> dict[str, Any]:
    """A container that holds the image, the mounts and the GPUs together, for others to enter."""
    client.ping()
    request = {**request, "mounts": [mount for mount in request["mounts"] if Path(mount[0]).is_dir()]}
    name = request["image"]
    try:
        image = _image(client, request["docker"], name, request["pull"], _login(request["login"]))
    except ImageNotFound as error:
        return {"error": f"image {name}: {error.explanation or 'not found'}"}
    except ValueError as error:
        return {"error": f"image {name}: {error}"}
    if image is None:
        return {"error": f"image {name} is not on this node, and is not to be pulled (pull=never)"}
    container = client.containers.create(name, **_options(request))
    try:
        _introduce(container, request["owner"])
        container.start()
        container.reload()
        pid = container.attrs["State"]["Pid"]
        if not pid:
            raise NotFound("it ended at once")
    except APIError as error:
        container.remove(force=True)
        why = str(error.explanation or error)
        if _HOLD[0] in why:
            why = f"it has no {_HOLD[0]}, which a job needs"
        return {"error": f"image {name}: {why}"}
    try:
        filters = [base64.b64encode(program).decode() for program in seccomp.filters(pid)]
    except OSError as error:
        container.remove(force=True)
        return {"error": _UNREADABLE.format(error.strerror)}
    environ = _variables(image.attrs["Config"].get("Env") or ())
    return {"pid": pid, "environ": environ, "filters": filters}


def remove(client: Any, request: dict[str, Any]) -> dict[str, Any]:
    """What is over, whatever state it is in."""
    removed = 0
    for container in client.containers.list(all=True, filters={"label": f"{STATE}={request['state']}"}):
        lives = container.labels.get(SHEPHERD) == request["token"] and (
            container.labels.get(ATTEMPT) not in request["attempts"]
        )
        if lives or not _was_made_here(container.attrs):
            continue
        try:
            container.remove(force=True, v=True)
        except NotFound:
            continue
        removed += 1
    return {"removed": removed}


def _was_made_here(found: dict[str, Any]) -> bool:
    """Whether we or a job have made it. Its labels do not tell: it has its image's too, which anybody may have made."""
    return found["Config"].get("Entrypoint") == _HOLD or bool(found["HostConfig"].get("CgroupParent"))


def _login(path: str | None) -> dict[str, str] | None:
    """For the registry, from the file of the job's secret: USER:PASSWORD. Raises ValueError: it is none."""
    if path is None:
        return None
    user, colon, password = Path(path).read_text(errors="replace").strip().partition(":")
    if not colon:
        raise ValueError(f"secret {Path(path).name} is not of the form USER:PASSWORD")
    return {"username": user, "password": password}


def _image(client: Any, url: str, name: str, pull: str, login: dict[str, str] | None) -> Any:
    """The image by the policy always, missing or never; None: not here, and not to be pulled.

    ``login``: None: as `docker login` of the user whom the agent runs as has it, or DOCKER_CONFIG.
    """
    if pull != "always":
        try:
            return client.images.get(name)
        except ImageNotFound:
            if pull == "never":
                return None
    return docker.DockerClient(base_url=url, timeout=_PULL_TIMEOUT).images.pull(name, auth_config=login)


def _options(request: dict[str, Any]) -> dict[str, Any]:
    owner, gpus = request["owner"], request["gpus"]
    return {
        "entrypoint": _HOLD,
        # The job's own processes join its cgroup, not the container's: in there is the holder alone, which is the
        # image's word and needs next to nothing.
        "mem_limit": _HOLD_MEMORY,
        "pids_limit": _HOLD_PROCESSES,
        "cpu_shares": 2,
        "user": f"{owner['uid']}:{owner['gid']}",
        "working_dir": "/",
        "labels": request["labels"],
        "mounts": [
            Mount(target, source, "bind", not rw) for source, target, rw in _outer_first(request["mounts"])
        ],
        # Ranks meet over the host's network and shared memory; the shepherd knows callers by their pid.
        "network_mode": "host",
        "pid_mode": "host",
        "ipc_mode": "host",
        "uts_mode": "host",
        "userns_mode": "host",
        "cap_drop": ["ALL"],
        # Nobody has them, for he is no root and cannot become it; but Docker's profile follows them.
        "cap_add": list(_SYSTEM_CALLS_OF) if owner["uid"] else [],
        "security_opt": ["no-new-privileges"],
        "device_requests": [DeviceRequest(device_ids=gpus, capabilities=[["gpu"]])] if gpus else [],
        # An image may name all GPUs, and the NVIDIA runtime may be the Engine's default.
        "environment": {"NVIDIA_VISIBLE_DEVICES": ",".join(gpus) or "void"},
        "healthcheck": {"test": ["NONE"]},
        "log_config": LogConfig(type="none"),
    }


def _outer_first(mounts: Iterable[list[Any]]) -> list[list[Any]]:
    return sorted(mounts, key=lambda mount: str(mount[1]))


def _introduce(container: Any, owner: dict[str, Any]) -> None:
    """Adds the owner to the image's user database, so that programs know who they are."""
    line = f"{owner['name']}:x:{owner['uid']}:{owner['gid']}::{owner['home']}:{_HOLD[0]}\n"
    for path, number, entry in (
        ("/etc/passwd", owner["uid"], line),
        ("/etc/group", owner["gid"], f"{owner['name']}:x:{owner['gid']}:\n"),
    ):
        text = _read(container, path)
        if any(known.split(":")[2:3] == [str(number)] for known in text.splitlines()):
            continue
        with_end = text if not text or text.endswith("\n") else text + "\n"
        _write(container, path, (with_end + entry).encode())


def _read(container: Any, path: str) -> str:
    try:
        stream, _ = container.get_archive(path)
    except NotFound:
        return ""
    with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as archive:
        member = archive.next()
        file = archive.extractfile(member) if member and member.isfile() else None
        return file.read().decode(errors="replace") if file else ""


def _write(container: Any, path: str, content: bytes) -> None:
    directory, _, name = path.rpartition("/")
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.size, member.mode = len(content), 0o644
        archive.addfile(member, io.BytesIO(content))
    try:
        container.put_archive(directory, data.getvalue())
    except NotFound:  # no /etc: nobody looks names up in it
        return


def _variables(entries: Iterable[str]) -> dict[str, str]:
    return {name: value for name, _, value in (entry.partition("=") for entry in entries)}


def _short(error: Exception) -> str:
    return str(error).splitlines()[0][:300] if str(error) else type(error).__name__


if __name__ == "__main__":
    raise SystemExit(main())
