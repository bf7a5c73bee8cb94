"""Whatever a job asks of the Docker Engine, what is promised about its containers holds."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from hpcmesos.agent import docker_create, docker_rules
from hpcmesos.agent.docker_create import Grant, Refused, creation
from hpcmesos.launch.container_marks import OWN, STATE
from tests.unit.test_docker_rules import GRANT, REFUSED, USUAL

KEYS = ["Type", "Name", "Source", "Target", "a"]
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 3),
    st.sampled_from(["", "0", "root", "host", "/", "/home/ann:/x", "all"]),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=6,
)
HOST_FIELDS = sorted(
    {*USUAL["HostConfig"], *(name for _, host, _ in REFUSED for name in host), "Tmpfs", "ShmSize"}
)
FIELDS = sorted({*USUAL, *(name for _, _, config in REFUSED for name in config)} - {"HostConfig"})
HOST_ALLOWED = docker_create.HOST | {
    *("NetworkMode", "LogConfig", "CgroupParent", "CapDrop", "SecurityOpt", "GroupAdd", "RestartPolicy"),
    *("DeviceRequests", "Mounts", "Tmpfs", "Ulimits", "OomScoreAdj", "IpcMode", "CgroupnsMode", "Isolation"),
}


@st.composite
def bodies(draw: st.DrawFn) -> dict[str, Any]:
    """What the docker command sends, with some of it changed: to anything, or to what is known to be refused."""
    config = draw(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=2))
    host = draw(st.dictionaries(st.sampled_from(HOST_FIELDS), VALUES, max_size=3))
    for _, bad_host, bad_config in draw(st.lists(st.sampled_from(REFUSED), max_size=1)):
        host, config = host | bad_host, config | bad_config
    return {**USUAL, **config, "HostConfig": {**USUAL["HostConfig"], **host}}


@given(bodies())
def test_no_body_breaks_what_is_promised(body: dict[str, Any]) -> None:
    with suppress(Refused):
        made = creation(GRANT, body)
        host = made.body["HostConfig"]
        assert made.body["User"] == GRANT.user
        assert {name: made.body["Labels"][name] for name in GRANT.labels} == GRANT.labels
        assert host["CgroupParent"] == GRANT.cgroup
        assert host["CapDrop"] == ["ALL"] and host["SecurityOpt"] == ["no-new-privileges"]
        assert host["NetworkMode"] in ("host", "none")
        assert host["RestartPolicy"] == {"Name": "no"}
        assert set(host) <= HOST_ALLOWED
        assert all(mount["Type"] == "tmpfs" for mount in host.get("Mounts", ()))
        assert set(made.body) <= docker_create.CONFIG | {"User", "Labels", "Env", "HostConfig"}
        visible = [entry for entry in made.body["Env"] if entry.startswith("NVIDIA_VISIBLE_DEVICES=")]
        assert len(visible) == 1
        for request in host.get("DeviceRequests", ()):
            assert set(request["DeviceIDs"]) <= set(GRANT.gpus)


METHODS = st.sampled_from(["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH"])
WORDS = st.sampled_from(
    [
        "",
        "v1.41",
        "containers",
        "images",
        "exec",
        "abc",
        "json",
        "create",
        "start",
        "..",
        "%2e",
        "build",
        "a" * 64,
    ]
)
TARGETS = st.lists(WORDS, max_size=5).map(lambda words: "/" + "/".join(words)) | st.text(max_size=30)
QUERIES = st.just("") | st.text(max_size=20).map("?{}".format) | st.just('?filters={"label":["x"]}&all=1')


@given(
    METHODS, TARGETS, QUERIES, st.binary(max_size=40) | bodies().map(lambda body: json.dumps(body).encode())
)
def test_a_call_is_refused_or_one_of_the_table(method: str, path: str, query: str, body: bytes) -> None:
    with suppress(Refused):
        call = docker_rules.read(GRANT, method, path + query, body)
        assert call.route in docker_rules.ROUTES
        assert method in call.route.methods.split()
        sent, _, _ = call.target.partition("?")
        assert sent == path.partition("?")[0]
        assert ".." not in sent.split("/") and "%" not in sent
        assert {name for name, _ in call.query} <= {*call.route.parameters.split()}


@given(st.text(max_size=60), st.text(max_size=60))
def test_only_what_lies_below_is_below(path: str, root: str) -> None:
    paths = ((f"/{root}", True),)
    grant = Grant(name="a", uid=1, gid=1, groups=(), cgroup="/", labels={STATE: "", OWN: ""}, paths=paths)
    with suppress(Refused):
        grant.writable(path)
        assert path == f"/{root}" or path.startswith(f"/{root}".rstrip("/") + "/")
