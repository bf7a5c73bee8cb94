"""What a job's calls of the Docker Engine become, and which are refused."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qsl, quote

import pytest

from hpcmesos.agent import docker_rules
from hpcmesos.agent.docker_create import Bind, Creation, Grant, Refused, creation, execution
from hpcmesos.agent.docker_rules import Kind
from hpcmesos.launch.container_marks import OWN, STATE

GRANT = Grant(
    name="ann",
    uid=1001,
    gid=100,
    groups=(100, 27),
    cgroup="/hpcmesos/c/n/12.hpcm#1",
    labels={STATE: "/var/lib/hpcmesos", OWN: "12.hpcm#1", "hpcmesos.attempt": "12.hpcm#1"},
    gpus=("GPU-a", "GPU-b"),
    paths=(("/home", True), ("/home/shared", False), ("/data", False)),
    nofile=4096,
)
USUAL: dict[str, Any] = {
    "Hostname": "", "User": "", "AttachStdout": True, "AttachStderr": True, "ExposedPorts": {"80/tcp": {}},
    "Tty": False,
    "Env": ["A=1"], "Cmd": ["ls"], "Image": "debian", "Volumes": {}, "WorkingDir": "", "Entrypoint": None,
    "OnBuild": None, "Labels": {},
    "NetworkingConfig": {"EndpointsConfig": {"default": {"IPAMConfig": None, "Links": None}}},
    "HostConfig": {
        "Binds": None, "ContainerIDFile": "", "LogConfig": {"Type": "", "Config": {}}, "NetworkMode": "default",
        "PortBindings": {}, "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0}, "AutoRemove": True,
        "VolumesFrom": None, "ConsoleSize": [24, 80], "CapAdd": None, "CapDrop": None, "CgroupnsMode": "",
        "Dns": [], "IpcMode": "", "OomScoreAdj": 0, "PidMode": "", "Privileged": False, "SecurityOpt": None,
        "BlkioDeviceReadBps": [], "MemorySwappiness": -1, "OomKillDisable": False, "PidsLimit": 0, "Ulimits": None,
        "MaskedPaths": None, "ReadonlyPaths": None, "Memory": 1 << 20, "Runtime": "", "Isolation": "",
    },
}  # fmt: skip
"""As the docker command sends it."""


def asked(host: dict[str, Any] | None = None, **config: Any) -> dict[str, Any]:
    return {**USUAL, **config, "HostConfig": {**USUAL["HostConfig"], **(host or {})}}


def why(host: dict[str, Any] | None = None, **config: Any) -> str:
    with pytest.raises(Refused) as refused:
        creation(GRANT, asked(host, **config))
    return str(refused.value)


def test_a_container_is_made_of_what_is_known_and_what_is_promised() -> None:
    made = creation(GRANT, asked())
    assert made == Creation(
        {
            "Hostname": "", "AttachStdout": True, "AttachStderr": True, "Tty": False, "Cmd": ["ls"],
            "Image": "debian", "WorkingDir": "",
            "User": "1001:100",
            "Labels": dict(GRANT.labels),
            "Env": ["A=1", "NVIDIA_VISIBLE_DEVICES=void"],
            "HostConfig": {
                "NetworkMode": "host",
                "LogConfig": {"Type": "json-file", "Config": {"max-size": str(1 << 29), "max-file": "2"}},
                "AutoRemove": True, "ConsoleSize": [24, 80], "MemorySwappiness": -1, "PidsLimit": 0, "Memory": 1 << 20,
                "CgroupParent": "/hpcmesos/c/n/12.hpcm#1",
                "CapDrop": ["ALL"],
                "SecurityOpt": ["no-new-privileges"],
                "RestartPolicy": {"Name": "no"},
                "Ulimits": [{"Name": "nofile", "Soft": 4096, "Hard": 4096}],
            },
        },
        (),
    )  # fmt: skip
    bare = creation(GRANT, {"Image": "debian"}).body["HostConfig"]
    assert (bare["NetworkMode"], bare["LogConfig"]["Type"]) == ("host", "json-file"), (
        "the Engine's own are others"
    )


HOME = {"Type": "bind", "Source": "/home", "Target": "/x"}
REFUSED: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("HostConfig.Privileged", {"Privileged": True}, {}),
    ("HostConfig.CapAdd", {"CapAdd": ["SYS_ADMIN"]}, {}),
    ("HostConfig.PidMode", {"PidMode": "host"}, {}),
    ("HostConfig.PidMode", {"PidMode": "container:other"}, {}),
    ("HostConfig.IpcMode", {"IpcMode": "host"}, {}),
    ("HostConfig.UTSMode", {"UTSMode": "host"}, {}),
    ("HostConfig.UsernsMode", {"UsernsMode": "host"}, {}),
    ("HostConfig.CgroupnsMode", {"CgroupnsMode": "host"}, {}),
    ("HostConfig.CgroupParent", {"CgroupParent": "/"}, {}),
    ("network bridge", {"NetworkMode": "bridge"}, {}),
    ("network container:x", {"NetworkMode": "container:x"}, {}),
    ("HostConfig.PortBindings", {"PortBindings": {"80/tcp": [{"HostPort": "80"}]}}, {}),
    ("HostConfig.Devices", {"Devices": [{"PathOnHost": "/dev/kmem"}]}, {}),
    ("HostConfig.DeviceCgroupRules", {"DeviceCgroupRules": ["a *:* rwm"]}, {}),
    ("seccomp=unconfined", {"SecurityOpt": ["seccomp=unconfined"]}, {}),
    ("apparmor=unconfined", {"SecurityOpt": ["apparmor=unconfined"]}, {}),
    ("HostConfig.RestartPolicy", {"RestartPolicy": {"Name": "always"}}, {}),
    ("HostConfig.VolumesFrom", {"VolumesFrom": ["other"]}, {}),
    ("HostConfig.Runtime", {"Runtime": "other"}, {}),
    ("HostConfig.Sysctls", {"Sysctls": {"net.ipv4.ip_forward": "1"}}, {}),
    ("HostConfig.OomKillDisable", {"OomKillDisable": True}, {}),
    ("HostConfig.OomScoreAdj", {"OomScoreAdj": -1000}, {}),
    ("HostConfig.SomethingNew", {"SomethingNew": "x"}, {}),
    ("HostConfig.privileged", {"privileged": True}, {}),
    ("log driver syslog", {"LogConfig": {"Type": "syslog"}}, {}),
    ("log driver json-file", {"LogConfig": {"Type": "json-file", "Config": {"max-size": "1t"}}}, {}),
    ("--ulimit rtprio", {"Ulimits": [{"Name": "rtprio", "Soft": 99, "Hard": 99}]}, {}),
    ("--ulimit nofile", {"Ulimits": [{"Name": "nofile", "Soft": 100, "Hard": -1}]}, {}),
    ("--ulimit nofile", {"Ulimits": [{"Name": "nofile", "Soft": 100, "Hard": 1 << 20}]}, {}),
    ("--group-add 0", {"GroupAdd": ["0"]}, {}),
    ("--group-add 27", {"GroupAdd": ["27"]}, {}),
    ("--tmpfs option uid=0", {"Tmpfs": {"/x": "uid=0"}}, {}),
    ("volume data:/x", {"Binds": ["data:/x"]}, {}),
    ("option shared", {"Binds": ["/home/ann:/x:shared"]}, {}),
    ("option Z", {"Binds": ["/home/ann:/x:Z"]}, {}),
    ("mount at /var/run/nvidia-container", {"Binds": ["/home/ann:/var/run//nvidia-container-devices/all"]}, {}),
    ("mount at /", {"Binds": ["/home/ann://"]}, {}),
    ("mount of type volume", {"Mounts": [{"Type": "volume", "Source": "data", "Target": "/x"}]}, {}),
    ("bind-propagation", {"Mounts": [{**HOME, "BindOptions": {"Propagation": "rshared"}}]}, {}),
    ("VolumeOptions of a mount", {"Mounts": [{**HOME, "VolumeOptions": {"DriverConfig": {"Name": "local"}}}]}, {}),
    ("GPU GPU-z", {"DeviceRequests": [{"DeviceIDs": ["GPU-z"], "Capabilities": [["gpu"]]}]}, {}),
    ("GPU 0", {"DeviceRequests": [{"DeviceIDs": ["0"], "Capabilities": [["gpu"]]}]}, {}),
    ("--gpus 3", {"DeviceRequests": [{"Count": 3, "Capabilities": [["gpu"]]}]}, {}),
    ("device driver cdi", {"DeviceRequests": [{"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=all"]}]}, {}),
    ("capabilities tpu", {"DeviceRequests": [{"Count": 1, "Capabilities": [["tpu"]]}]}, {}),
    ("User", {}, {"User": "0"}),
    ("User", {}, {"User": "root"}),
    ("User", {}, {"User": "1001:0"}),
    ("Volumes", {}, {"Volumes": {"/x": {}}}),
    ("label hpcmesos.docker", {}, {"Labels": {"hpcmesos.docker": "13.hpcm#1"}}),
    ("NetworkingConfig", {}, {"NetworkingConfig": {"EndpointsConfig": {"other": {"NetworkID": "x"}}}}),
    ("Healthcheck", {}, {"Healthcheck": {"Test": ["CMD", "true"]}}),
    ("hostconfig", {}, {"hostconfig": {"Privileged": True}}),
]  # fmt: skip


@pytest.mark.parametrize(("said", "host", "config"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_is_refused_is_named(said: str, host: dict[str, Any], config: dict[str, Any]) -> None:
    line = why(host, **config)
    assert said in line and "\n" not in line
    assert ": " in line, "it says what to do instead"


@pytest.mark.parametrize(
    "wrong", [7, "x", [], {"HostConfig": 7}, {"Env": "A=1"}, {"HostConfig": {"Binds": {}}}]
)
def test_what_is_no_request_is_refused(wrong: Any) -> None:
    with pytest.raises(Refused):
        docker_rules.read(GRANT, "POST", "/containers/create", json.dumps(wrong).encode())


def test_gpus_are_those_of_the_job() -> None:
    def gpus(**request: Any) -> tuple[list[Any], str]:
        made = creation(GRANT, asked({"DeviceRequests": [{"Capabilities": [["gpu"]], **request}]})).body
        return [r["DeviceIDs"] for r in made["HostConfig"]["DeviceRequests"]], made["Env"][-1]

    both, visible = ["GPU-a", "GPU-b"], "NVIDIA_VISIBLE_DEVICES="
    assert gpus(Count=-1) == ([both], f"{visible}GPU-a,GPU-b")
    assert gpus(Count=1) == ([["GPU-a"]], f"{visible}GPU-a")
    assert gpus(DeviceIDs=["GPU-b"]) == ([["GPU-b"]], f"{visible}GPU-b")
    none = Grant(name="ann", uid=1001, gid=100, groups=(), cgroup="/", labels=GRANT.labels)
    with pytest.raises(Refused, match="has none here"):
        creation(none, asked({"DeviceRequests": [{"Count": -1, "Capabilities": [["gpu"]]}]}))
    assert creation(GRANT, asked(Env=["NVIDIA_VISIBLE_DEVICES=all"])).body["Env"] == [
        "NVIDIA_VISIBLE_DEVICES=void"
    ]


def test_mounts_are_told_apart_from_the_body_and_put_in_by_their_places() -> None:
    host = {
        "Binds": ["/home/ann:/work", "/data:/d:ro"],
        "Mounts": [
            {"Type": "bind", "Source": "/home/ann/x", "Target": "/x/../y", "ReadOnly": True},
            {"Type": "tmpfs", "Target": "/scratch", "TmpfsOptions": {"SizeBytes": 1024}},
        ],
    }
    made = creation(GRANT, asked(host))
    assert made.binds == (
        Bind("/home/ann", "/work", False),
        Bind("/data", "/d", True),
        Bind("/home/ann/x", "/y", True),
    )
    assert "Binds" not in made.body["HostConfig"]
    mounts = made.with_binds(["/held/1", "/held/2", "/held/3"])["HostConfig"]["Mounts"]
    assert [(m["Type"], m.get("Source"), m["Target"], m["ReadOnly"]) for m in mounts] == [
        ("tmpfs", None, "/scratch", False),
        ("bind", "/held/1", "/work", False),
        ("bind", "/held/2", "/d", True),
        ("bind", "/held/3", "/y", True),
    ]


def test_the_nearest_of_the_sites_directories_decides() -> None:
    assert GRANT.writable("/home/ann") and GRANT.writable("/home")
    assert not GRANT.writable("/home/shared/x") and not GRANT.writable("/data")
    for outside in ("/", "/etc", "/homes", "/database"):
        with pytest.raises(Refused, match="/home, /home/shared, /data"):
            GRANT.writable(outside)


def test_root_is_root_where_the_site_lets_root_submit() -> None:
    root = Grant(name="root", uid=0, gid=0, groups=(0,), cgroup="/x", labels=GRANT.labels)
    made = creation(root, asked(User="root")).body
    assert (made["User"], made["HostConfig"]["CapDrop"]) == ("0:0", ["MKNOD"])


def test_commands_in_containers() -> None:
    made = execution(
        GRANT, {"Cmd": ["ls"], "Tty": True, "Privileged": False, "User": "", "ConsoleSize": [1, 2]}
    )
    assert made == {"Cmd": ["ls"], "Tty": True, "ConsoleSize": [1, 2], "User": "1001:100"}
    assert execution(GRANT, {"Cmd": ["ls"], "User": "ann:27"})["User"] == "1001:27"
    for wrong in ({"Privileged": True}, {"User": "0"}, {"User": "ann:0"}):
        with pytest.raises(Refused):
            execution(GRANT, {"Cmd": ["ls"], **wrong})
    with pytest.raises(Refused, match="65536 bytes"):
        docker_rules.read(GRANT, "POST", "/containers/a/exec", json.dumps({"Cmd": ["x" * 65536]}).encode())


def test_a_container_has_one_group_of_the_owners_by_its_number() -> None:
    for asked_for, made in (
        ("", "1001:100"),
        ("ann", "1001:100"),
        (":27", "1001:27"),
        ("1001:27", "1001:27"),
    ):
        body = creation(GRANT, asked(User=asked_for)).body
        assert body["User"] == made
        assert "GroupAdd" not in body["HostConfig"], "the Engine looks those up in the image, by name"


def test_limits_are_spelled_as_they_were_read() -> None:
    twice = {"Name": "stack", "name": "rtprio", "Soft": 99, "Hard": 99, "hard": 100}
    made = creation(GRANT, asked({"Ulimits": [twice]})).body["HostConfig"]["Ulimits"]
    assert made == [
        {"Name": "stack", "Soft": 99, "Hard": 99},
        {"Name": "nofile", "Soft": 4096, "Hard": 4096},
    ]
    fewer = {"Name": "nofile", "Soft": 256, "Hard": 512}
    assert creation(GRANT, asked({"Ulimits": [fewer]})).body["HostConfig"]["Ulimits"] == [fewer]


# --- calls


def target(call: docker_rules.Call) -> tuple[str, dict[str, str]]:
    path, _, query = call.target.partition("?")
    return path, dict(parse_qsl(query))


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("HEAD", "/_ping"),
        ("GET", "/v1.41/version"),
        ("GET", "/info"),
        ("GET", "/v1.41/images/json"),
        ("GET", "/v1.41/images/registry.example:5000/team/train:3/json"),
        ("GET", "/containers/abc/logs?stdout=1&follow=1"),
        ("POST", "/v1.51/containers/abc/wait?condition=removed"),
        ("DELETE", "/containers/my_box.1?force=1&v=1&link="),
        ("POST", f"/exec/{'a' * 64}/start"),
    ],
)
def test_calls_that_are_passed_on(method: str, path: str) -> None:
    whole, _, query = path.partition("?")
    call = docker_rules.read(GRANT, method, path, b"")
    assert target(call) == (whole, dict(parse_qsl(query)))


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/build"),
        ("POST", "/v1.41/images/load"),
        ("POST", "/v1.41/session"),
        ("GET", "/events"),
        ("GET", "/volumes"),
        ("POST", "/volumes/create"),
        ("POST", "/networks/create"),
        ("POST", "/swarm/init"),
        ("POST", "/auth"),
        ("POST", "/containers/abc/update"),
        ("POST", "/containers/abc/rename?name=x"),
        ("POST", "/containers/abc/pause"),
        ("GET", "/containers/abc/top"),
        ("PUT", "/containers/abc/archive?path=/"),
        ("POST", "/containers/prune"),
        ("DELETE", "/images/debian"),
        ("GET", "/containers/abc/../../info"),
        ("GET", "/images/a/../../containers/abc/json"),
        ("GET", f"/images/a{'_' * 64}/x"),  # nor for ever looked at
        ("GET", "/containers/%2e%2e/json"),
        ("GET", "//containers/abc/json"),
        ("GET", "/images/../containers/abc/json"),
        ("GET", "/containers/abc/json\u00e4"),
        ("GET", "http://docker/info"),
        ("POST", "/containers/abc/start?checkpoint=x"),
        ("POST", "/images/create?fromSrc=-"),
        ("GET", "/containers/abc/logs?stdout=1&stdout=0"),
        ("GET", "/containers/json?filters=x"),
        ("GET", "/containers/json?filters=[]"),
    ],
)
def test_calls_that_are_refused(method: str, path: str) -> None:
    with pytest.raises(Refused) as refused:
        docker_rules.read(GRANT, method, path, b"")
    assert "\n" not in str(refused.value)


def test_of_containers_the_own_ones_are_listed() -> None:
    marks = [f"{STATE}=/var/lib/hpcmesos", f"{OWN}=12.hpcm#1"]
    for given, kept in (
        ("", {}),
        ("?filters=" + quote('{"label":{"a=b":true,"c":false},"status":{"running":true}}'),
         {"label": ["a=b"], "status": ["running"]}),
        ("?filters=" + quote('{"label":["hpcmesos.docker=13.hpcm#1"]}'), {"label": ["hpcmesos.docker=13.hpcm#1"]}),
    ):  # fmt: skip
        call = docker_rules.read(GRANT, "GET", f"/containers/json{given}", b"")
        filters = json.loads(target(call)[1]["filters"])
        assert filters.pop("label") == [*kept.pop("label", []), *marks]
        assert filters == kept


def test_whose_a_container_is() -> None:
    def is_own(labels: dict[str, str] | None, parent: str = GRANT.cgroup) -> bool:
        found = {"Config": {"Labels": labels}, "HostConfig": {"CgroupParent": parent}}
        return docker_rules.is_own(GRANT, found)

    assert is_own(dict(GRANT.labels))
    for labels in (None, {}, {**GRANT.labels, OWN: "13.hpcm#1"}, {**GRANT.labels, STATE: "/elsewhere"}):
        assert not is_own(labels)
    assert not is_own(dict(GRANT.labels), ""), "labels may be those of its image"
    holder = {name: value for name, value in GRANT.labels.items() if name != OWN}
    assert not is_own(holder), "what was made for the job is not its own"


def test_a_name_is_replaced_by_the_whole_id() -> None:
    call = docker_rules.read(GRANT, "GET", "/v1.41/containers/box/logs?stdout=1", b"")
    assert call.route.kind is Kind.CONTAINER
    assert target(call.about("f" * 64)) == (f"/v1.41/containers/{'f' * 64}/logs", {"stdout": "1"})


def test_images_are_pulled_where_the_job_may() -> None:
    call = docker_rules.read(GRANT, "POST", "/images/create?fromImage=debian&tag=12", b"")
    assert target(call) == ("/images/create", {"fromImage": "debian", "tag": "12"})
    never = Grant(name="ann", uid=1, gid=1, groups=(), cgroup="/", labels=GRANT.labels, pull=False)
    with pytest.raises(Refused, match="image_pull=never"):
        docker_rules.read(never, "POST", "/images/create?fromImage=debian&tag=12", b"")
