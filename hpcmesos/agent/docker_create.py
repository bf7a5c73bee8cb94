"""What `docker create` and `docker exec` of a job become; pure.

Bodies are built anew from fields that are known here: what says nothing is left out, what is not known and says
something is refused, and what the site promises about containers of jobs is put over the rest. So a field that a later
Engine knows is refused until somebody has thought about it. (Docker Engine API 1.24 to 1.51, ContainerCreate.)
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_RESERVED = "hpcmesos."
_GPUS_BY_MOUNT = "/var/run/nvidia-container-devices"
"""Mounts there are wishes for GPUs, where the NVIDIA Container Toolkit is told so."""
_VISIBLE = "NVIDIA_VISIBLE_DEVICES"
_GPU_CAPABILITIES = frozenset(
    {"gpu", "nvidia", "compute", "compat32", "graphics", "utility", "video", "display"}
)
_BIND_OPTIONS = frozenset({"", "rw", "ro", "private", "rprivate", "cached", "delegated", "consistent"})
_ULIMITS = frozenset({"core", "memlock", "nofile", "stack"})
_TMPFS = re.compile(r"(|rw|ro|(no)?exec|nosuid|nodev|noatime|size=\d+[kKmMgG%]?|mode=[0-7]{1,4})", re.ASCII)


class Refused(Exception):
    """The line for the user: what is refused, and what to do instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What an attempt's containers may have on this node.

    ``cgroup``: of the attempt, as Docker names it. ``labels``: theirs. ``gpus``: UUIDs. ``paths``: what may be
    mounted, without symbolic links, and whether it may be written. ``log_bytes``: of what each of them says.
    ``nofile``: files that each process may have open; 0: the Engine's own limit holds.
    """

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    cgroup: str
    labels: Mapping[str, str]
    gpus: tuple[str, ...] = ()
    paths: tuple[tuple[str, bool], ...] = ()
    pull: bool = True
    log_bytes: int = 1 << 30
    nofile: int = 0

    @property
    def user(self) -> str:
        return f"{self.uid}:{self.gid}"

    def writable(self, path: str) -> bool:
        """Whether a directory or file of the node may be written in a container.

        Raises:
            Refused: it may not be mounted at all.
        """
        found = [(root, write) for root, write in self.paths if path == root or _below(path, root)]
        if not found:
            places = ", ".join(root for root, _ in self.paths) or "none"
            raise Refused(f"{path} is not among the directories that containers of jobs may mount: {places}")
        return max(found, key=lambda pair: len(pair[0]))[1]


@dataclass(frozen=True, slots=True)
class Bind:
    """A wish to see ``source`` of the node at ``target``."""

    source: str
    target: str
    read_only: bool


@dataclass(frozen=True, slots=True)
class Creation:
    """The body for the Engine, and what is to be mounted: `with_binds` puts it in once it is held."""

    body: dict[str, Any]
    binds: tuple[Bind, ...]

    def with_binds(self, places: list[str]) -> dict[str, Any]:
        """``places``: the path under which each of ``binds`` is held."""
        mounts = [
            {
                "Type": "bind",
                "Source": place,
                "Target": bind.target,
                "ReadOnly": bind.read_only,
                "BindOptions": {"Propagation": "rprivate"},
            }
            for place, bind in zip(places, self.binds, strict=True)
        ]
        host = self.body["HostConfig"]
        return {**self.body, "HostConfig": {**host, "Mounts": [*host.get("Mounts", []), *mounts]}}


def creation(grant: Grant, asked: Mapping[str, Any]) -> Creation:
    """The container that is made instead of the one that is asked for.

    Raises:
        Refused: it asks for what containers of jobs do not get.
    """
    # What is said of these where nothing is, is ours.
    silent = {"NetworkMode": None, "LogConfig": None, "Ulimits": None}
    host = silent | dict(_mapping(asked.get("HostConfig"), "HostConfig"))
    binds = [_bind(text) for text in _list(host.pop("Binds", None), "HostConfig.Binds")]
    mounts = [
        _mapping(mount, "HostConfig.Mounts") for mount in _list(host.pop("Mounts", None), "HostConfig.Mounts")
    ]
    binds += [_bind_of(mount) for mount in mounts if mount.get("Type") == "bind"]
    kept = [_tmpfs_of(mount) for mount in mounts if mount.get("Type") != "bind"]
    gpus = _gpus(grant, host.pop("DeviceRequests", None))
    config = _fields(grant, {k: v for k, v in asked.items() if k != "HostConfig"}, CONFIG, _CONFIG_CHECKS, "")
    made = _fields(grant, host, HOST, _HOST_CHECKS, "HostConfig.")
    body = {
        **config,
        **forced_config(grant, config, gpus),
        "HostConfig": {**made, **forced_host(grant, gpus)},
    }
    if kept:
        body["HostConfig"]["Mounts"] = kept
    return Creation(body, tuple(binds))


def execution(grant: Grant, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The command that is run in a container instead of the one that is asked for. Raises Refused."""
    made = _fields(grant, asked, EXEC, {"User": _user}, "")
    return {**made, "User": made.get("User", grant.user)}


def forced_config(grant: Grant, config: Mapping[str, Any], gpus: list[str]) -> dict[str, Any]:
    """What a container is, whatever was asked. An image may name all GPUs, and its runtime may believe it."""
    return {
        "User": config.get("User", grant.user),
        "Labels": {**config.get("Labels", {}), **grant.labels},
        "Env": [*config.get("Env", []), f"{_VISIBLE}={','.join(gpus) or 'void'}"],
    }


def forced_host(grant: Grant, gpus: list[str]) -> dict[str, Any]:
    """What a container has of its node, whatever was asked.

    Root's jobs keep Docker's own choice of capabilities but for making devices; anybody else's have none. Docker's
    default seccomp and AppArmor profiles hold, for none is named. There is one group, that of User: the Engine looks
    further ones up in the image's /etc/group by name, even those that are numbers, so whoever makes an image with a
    group called 1001 whose id is 0 would have that. The group of User is a number for it if it is one.
    """
    request = {"DeviceIDs": gpus, "Capabilities": [["gpu"]]}
    return {
        "CgroupParent": grant.cgroup,
        "CapDrop": ["ALL"] if grant.uid else ["MKNOD"],
        "SecurityOpt": ["no-new-privileges"],
        "RestartPolicy": {"Name": "no"},
        **({"DeviceRequests": [request]} if gpus else {}),
    }


# --- fields -----------------------------------------------------------------------------------------------------------

Check = Callable[[Grant, Any], Any]
"""What the value of a field becomes; None: the field is left out. Raises Refused."""

CONFIG = frozenset(
    {
        *("Hostname", "Domainname", "AttachStdin", "AttachStdout", "AttachStderr", "Tty", "OpenStdin"),
        *("StdinOnce", "Cmd", "ArgsEscaped", "Image", "WorkingDir", "Entrypoint", "StopSignal"),
        *("StopTimeout", "Shell", "NetworkDisabled"),
    }
)
"""Fields that pass as they are."""
HOST = frozenset(
    {
        *("AutoRemove", "ConsoleSize", "CpuShares", "CpuPeriod", "CpuQuota", "NanoCpus", "CpusetCpus"),
        *("CpusetMems", "Memory", "MemorySwap", "MemoryReservation", "MemorySwappiness", "PidsLimit"),
        *("ShmSize", "ReadonlyRootfs", "Init", "ExtraHosts"),
    }
)
"""As CONFIG. Limits of a container hold inside those of its attempt."""
EXEC = frozenset(
    {
        *("AttachStdin", "AttachStdout", "AttachStderr", "Tty", "Cmd", "Env", "WorkingDir", "DetachKeys"),
        *("ConsoleSize", "Detach"),
    }
)
_INSTEAD = {
    "Privileged": "containers of jobs run without privileges; leave --privileged away",
    "CapAdd": "containers of jobs have no capabilities; leave --cap-add away",
    "CgroupParent": "containers are in the cgroup of their job, whose limits hold; leave --cgroup-parent away",
    "PidMode": "containers have process ids of their own; leave --pid away",
    "IpcMode": "containers do not share the node's IPC; leave --ipc away, --shm-size gives more shared memory",
    "UTSMode": "leave --uts away",
    "UsernsMode": "leave --userns away",
    "CgroupnsMode": "leave --cgroupns away",
    "Isolation": "leave --isolation away",
    "Devices": "the devices of a container are its job's GPUs; ask for those with --gpus",
    "DeviceCgroupRules": "the devices of a container are its job's GPUs; ask for those with --gpus",
    "PortBindings": "containers use the node's network: what they listen to is there already; leave -p away",
    "PublishAllPorts": "containers use the node's network: what they listen to is there already; leave -P away",
    "Volumes": "mount a directory of yours instead: -v /path:/path",
    "VolumesFrom": "mount a directory of yours instead: -v /path:/path",
    "Runtime": "leave --runtime away; --gpus gives GPUs",
    "NetworkingConfig": "containers use the node's network, or none; leave --network away, or --network none",
}


def _neutral(value: Any) -> bool:
    """Says nothing: what clients send for what was not asked."""
    if isinstance(value, dict):
        return all(map(_neutral, value.values()))
    if isinstance(value, list):
        return all(map(_neutral, value))
    return value in (None, "", 0, False)


def _fields(
    grant: Grant,
    asked: Mapping[str, Any],
    passed: Collection[str],
    checks: Mapping[str, Check],
    prefix: str,
) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name, value in asked.items():
        if name in checks:
            value = checks[name](grant, value)
        elif name not in passed:
            if not _neutral(value):
                raise _no(prefix + name, _INSTEAD.get(name, "leave it away"))
            continue
        if value is not None:
            made[name] = value
    return made


def _no(field: str, instead: str) -> Refused:
    return Refused(f"{field} is refused in a job: {instead}")


def _mapping(value: Any, field: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Refused(f"{field} is no object")
    return value


def _list(value: Any, field: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise Refused(f"{field} is no list")
    return value


def _texts(value: Any, field: str) -> list[str]:
    found = _list(value, field)
    if not all(isinstance(text, str) for text in found):
        raise Refused(f"{field} is no list of texts")
    return found


def _user(grant: Grant, value: Any) -> str:
    """The owner by numbers, with the group of his that is asked for."""
    user, _, group = str(value or "").partition(":")
    groups = {str(number): number for number in (grant.gid, *grant.groups)}
    if user not in ("", grant.name, str(grant.uid)) or (group and group not in groups):
        raise _no(
            "User",
            f"containers of jobs run as their owner; leave --user away, or say {grant.uid}:GROUP of {_of(groups)}",
        )
    return f"{grant.uid}:{groups.get(group, grant.gid)}"


def _of(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def _environment(_: Grant, value: Any) -> list[str]:
    """Which GPUs are seen is not a variable's word."""
    return [entry for entry in _texts(value, "Env") if entry.partition("=")[0] != _VISIBLE]


def _labels(_: Grant, value: Any) -> dict[str, str]:
    labels = _mapping(value, "Labels")
    if taken := next((name for name in labels if name.startswith(_RESERVED)), None):
        raise _no(f"label {taken}", f"names that begin with {_RESERVED} are ours; take another")
    return dict(labels)


def _network(_: Grant, value: Any) -> str:
    """As jobs with an image: the node's."""
    if value in (None, "", "default", "host"):
        return "host"
    if value != "none":
        raise _no(f"network {value}", _INSTEAD["NetworkingConfig"])
    return "none"


def _private(option: str, *allowed: str) -> Check:
    """A namespace that is the container's own."""

    def check(_: Grant, value: Any) -> str | None:
        if value not in (None, "", *allowed):
            raise _no(f"HostConfig.{option}", _INSTEAD[option])
        return value or None

    return check


def _restart(_: Grant, value: Any) -> None:
    if _mapping(value, "HostConfig.RestartPolicy").get("Name") not in (None, "", "no"):
        raise _no("HostConfig.RestartPolicy", "containers end with their job; leave --restart away")


def _security(_: Grant, value: Any) -> None:
    for option in _texts(value, "HostConfig.SecurityOpt"):
        if option.replace("=", ":") not in ("no-new-privileges", "no-new-privileges:true"):
            raise _no(f"--security-opt {option}", "Docker's own profiles hold; leave it away")


def _groups(grant: Grant, value: Any) -> None:
    if found := _list(value, "HostConfig.GroupAdd"):
        groups = _of(map(str, grant.groups))
        raise _no(
            f"--group-add {found[0]}", f"containers have one group; say --user {grant.uid}:GROUP of {groups}"
        )


def _log(grant: Grant, value: Any) -> dict[str, Any]:
    asked = _mapping(value, "HostConfig.LogConfig")
    kind = asked.get("Type") or "json-file"
    if kind == "none":
        return {"Type": "none"}
    if kind not in ("json-file", "local") or not _neutral(asked.get("Config")):
        raise _no(f"log driver {kind}", "leave --log-driver and --log-opt away, or --log-driver none")
    return {"Type": "json-file", "Config": {"max-size": str(max(1, grant.log_bytes // 2)), "max-file": "2"}}


def _ulimits(grant: Grant, value: Any) -> list[Any] | None:
    """In our spelling: the Engine reads names in any case, and of a name that comes twice the last."""
    made = []
    for limit in (_mapping(one, "HostConfig.Ulimits") for one in _list(value, "HostConfig.Ulimits")):
        if (name := str(limit.get("Name"))) not in _ULIMITS:
            raise _no(f"--ulimit {name}", f"known are {', '.join(sorted(_ULIMITS))}")
        made.append({"Name": name, "Soft": limit.get("Soft"), "Hard": limit.get("Hard")})
        if name == "nofile" and grant.nofile and not _within(grant.nofile, limit):
            raise _no("--ulimit nofile", f"on this node it is at most {grant.nofile}")
    if grant.nofile and not any(limit["Name"] == "nofile" for limit in made):
        made.append({"Name": "nofile", "Soft": grant.nofile, "Hard": grant.nofile})
    return made or None


def _within(most: int, limit: Mapping[str, Any]) -> bool:
    return all(
        isinstance(number, int) and 0 < number <= most for number in (limit.get("Soft"), limit.get("Hard"))
    )


def _oom_score(_: Grant, value: Any) -> int | None:
    if value is not None and (not isinstance(value, int) or value < 0):
        raise _no("HostConfig.OomScoreAdj", "a job may not spare its containers; leave --oom-score-adj away")
    return value or None


def _tmpfs(_: Grant, value: Any) -> dict[str, str] | None:
    found = _mapping(value, "HostConfig.Tmpfs")
    for target, options in found.items():
        _target(target)
        for option in str(options or "").split(","):
            if not _TMPFS.fullmatch(option):
                raise _no(f"--tmpfs option {option}", "known are size, mode, ro, rw, exec and noexec")
    return dict(found) or None


def _volumes(_: Grant, value: Any) -> None:
    """Its keys say all."""
    if value:
        raise _no("Volumes", _INSTEAD["Volumes"])


def _dropped(_: Grant, __: Any) -> None:
    """Says nothing that counts here."""


_CONFIG_CHECKS: dict[str, Check] = {
    "User": _user,
    "Env": _environment,
    "Labels": _labels,
    "Volumes": _volumes,
    "ExposedPorts": _dropped,  # counts for what is published, and for links
    "OnBuild": _dropped,
}
_HOST_CHECKS: dict[str, Check] = {
    "NetworkMode": _network,
    "PidMode": _private("PidMode"),
    "IpcMode": _private("IpcMode", "private", "none"),
    "UTSMode": _private("UTSMode"),
    "UsernsMode": _private("UsernsMode"),
    "CgroupnsMode": _private("CgroupnsMode", "private"),
    "RestartPolicy": _restart,
    "SecurityOpt": _security,
    "GroupAdd": _groups,
    "CapDrop": _dropped,  # all are
    "LogConfig": _log,
    "Ulimits": _ulimits,
    "OomScoreAdj": _oom_score,
    "Tmpfs": _tmpfs,
    "Isolation": _private("Isolation", "default"),
}


# --- mounts and GPUs --------------------------------------------------------------------------------------------------


def _below(path: str, root: str) -> bool:
    return path.startswith(root.rstrip("/") + "/")


def _bind(text: Any) -> Bind:
    """``SOURCE:TARGET[:OPTIONS]`` of -v."""
    words = str(text).split(":")
    options = words[2].split(",") if len(words) == 3 else []
    if len(words) not in (2, 3) or not words[0].startswith("/"):
        raise _no(f"volume {text}", _INSTEAD["Volumes"])
    if unknown := next((option for option in options if option not in _BIND_OPTIONS), None):
        raise _no(f"option {unknown} of volume {text}", "known are ro and rw")
    return Bind(words[0], _target(words[1]), "ro" in options)


def _bind_of(mount: Mapping[str, Any]) -> Bind:
    """``--mount type=bind``."""
    _known(mount, {"Type", "Source", "Target", "ReadOnly", "Consistency", "BindOptions"})
    options = _mapping(mount.get("BindOptions"), "BindOptions")
    _known(options, {"Propagation", "NonRecursive"})
    if options.get("Propagation") not in (None, "", "private", "rprivate"):
        raise _no("bind-propagation", "leave it away")
    source = str(mount.get("Source"))
    if not source.startswith("/"):
        raise _no(f"mount of {source}", "say its whole path")
    return Bind(source, _target(mount.get("Target")), bool(mount.get("ReadOnly")))


def _tmpfs_of(mount: Mapping[str, Any]) -> dict[str, Any]:
    if mount.get("Type") != "tmpfs":
        raise _no(f"mount of type {mount.get('Type')}", _INSTEAD["Volumes"])
    _known(mount, {"Type", "Target", "ReadOnly", "Consistency", "TmpfsOptions"})
    options = _mapping(mount.get("TmpfsOptions"), "TmpfsOptions")
    _known(options, {"SizeBytes", "Mode"})
    made = {"Type": "tmpfs", "Target": _target(mount.get("Target")), "ReadOnly": bool(mount.get("ReadOnly"))}
    return {
        **made,
        "TmpfsOptions": {name: options[name] for name in ("SizeBytes", "Mode") if name in options},
    }


def _known(asked: Mapping[str, Any], names: Collection[str]) -> None:
    for name, value in asked.items():
        if name not in names and not _neutral(value):
            raise _no(f"{name} of a mount", "leave it away")


def _target(path: Any) -> str:
    """Where it is to be seen, without detours."""
    if not isinstance(path, str) or not path.startswith("/"):
        raise Refused(f"a mount's target is an absolute path, not {path!r}")
    found = "/" + posixpath.normpath(path).lstrip("/")
    if found == "/" or found == _GPUS_BY_MOUNT or _below(found, _GPUS_BY_MOUNT):
        raise _no(f"mount at {found}", "take another target")
    return found


def _gpus(grant: Grant, value: Any) -> list[str]:
    """UUIDs of the GPUs that the container gets, of those that the job has."""
    chosen: list[str] = []
    for request in _list(value, "HostConfig.DeviceRequests"):
        chosen += _gpus_of(grant, _mapping(request, "HostConfig.DeviceRequests"))
    return list(dict.fromkeys(chosen))


def _gpus_of(grant: Grant, request: Mapping[str, Any]) -> list[str]:
    if request.get("Driver") not in (None, "", "nvidia") or not _neutral(request.get("Options")):
        raise _no(f"device driver {request.get('Driver')}", "--gpus gives GPUs, without a driver or options")
    for capabilities in _list(request.get("Capabilities"), "Capabilities"):
        if not _GPU_CAPABILITIES.issuperset(_texts(capabilities, "Capabilities")):
            raise _no(f"capabilities {','.join(capabilities)} of --gpus", "leave them away")
    if not grant.gpus:
        raise _no("--gpus", "this job has none here that containers could use; qsub -l nodes=1:gpus=N")
    ids, count = _texts(request.get("DeviceIDs"), "DeviceIDs"), request.get("Count") or 0
    if foreign := next((name for name in ids if name not in grant.gpus), None):
        raise _no(f"GPU {foreign}", f"say --gpus all, or of {','.join(grant.gpus)}")
    if not isinstance(count, int) or count > len(grant.gpus):
        raise _no(f"--gpus {count}", f"this job has {len(grant.gpus)} here")
    return ids or list(grant.gpus[: count if count >= 0 else None])
