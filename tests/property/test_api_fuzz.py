"""Whatever is sent to the commands: a job, or a refusal of one line; never an error of ours."""

from __future__ import annotations

import base64
import http.client
import json
import socket
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from tests.integration.api_kit import Api

pytest_plugins = ["tests.integration.database_kit", "tests.integration.api_kit"]

OPTIONS = tuple("lqNoevVtJapSdwFIhzkmMPArjCux")
VALUES = (
    "nodes=2:ppn=2:gpus=1",
    "nodes=1+2:gpus=0.5",
    "select=1:ncpus=2:mem=1gb+2:ngpus=1",
    "walltime=1:00",
    "depend=afterok:1",
    "depend=afterany:99999999999999999999999",
    "umask=0777,block=true",
    "batch",
    "0-9%2",
    'A=1,B,"C=x,y"',
    "host:/tmp/$PBS_JOBID",
    "/dev/null",
    "1.hpcm",
    "99999999999999999999",
    "1[3]",
    "all",
    "-",
    "--",
)
words = st.sampled_from([*(f"-{letter}" for letter in OPTIONS), *VALUES]) | st.text(max_size=12)
scripts = st.binary(max_size=60) | st.lists(words, max_size=4).map(
    lambda options: ("#!/bin/sh\n#PBS " + " ".join(options) + "\ntrue\n").encode("utf-8", "surrogatepass")
)
requests = st.fixed_dictionaries(
    {"argv": st.lists(words, max_size=6)},
    optional={
        "script": scripts.map(lambda data: base64.b64encode(data).decode()) | st.text(max_size=8),
        "cwd": st.text(max_size=8) | st.just("/tmp"),
        "host": st.text(max_size=8),
        "umask": st.integers(),
        "environ": st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
        "key": st.none() | st.text(max_size=5),
        "personality": st.sampled_from(["torque", "pbspro", "x"]),
    },
)
commands = st.sampled_from(["qsub", "qsub", "qsub", "qstat", "qhold", "pbsnodes", "nosuch"])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(command=commands, request=requests)
def test_no_command_line_breaks_the_server(api: Api, command: str, request: dict[str, Any]) -> None:
    status, body = post(api, f"/v1/commands/{command}", json.dumps(request).encode())
    assert status < 500, body
    text = body["message"] if status >= 400 else body.get("stderr", "")
    assert "Traceback" not in text
    if status >= 400:
        assert text
        assert len(text.splitlines()) == 1, text


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.binary(max_size=40)
    | st.recursive(st.none() | st.text(), st.lists).map(json.dumps).map(str.encode)
)
def test_no_body_breaks_the_server(api: Api, body: bytes) -> None:
    for path in ("/v1/commands/qsub", "/v1/tokens", "/v1/nodes/join"):
        status, answer = post(api, path, body)
        assert 400 <= status < 500, answer
        assert len(answer["message"].splitlines()) == 1


def post(api: Api, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(api.socket))
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()
