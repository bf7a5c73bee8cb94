"""Bytes that are almost, or not at all, a request: an answer that is no error of ours, or none; others go on."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import time
from pathlib import Path

from hypothesis import strategies as st

from tests.at_length import damaged, fuzz
from tests.security.api_stage import STRANGER, ApiStage
from tests.security.test_openapi import OPERATIONS

EXAMPLES = 300
PATIENCE = 20.0  # s; much, for the machine may be busy

_status = re.compile(rb"^HTTP/1\.1 (\d{3})", re.MULTILINE)
_graphic = st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="?# ")
_names = ["1", "1.hpcm", "1[].hpcm", "batch", "node1", "..", "%00", "%2e%2e%2f", "x" * 300]
_segment = st.sampled_from(_names) | st.text(_graphic, min_size=1, max_size=8)
_query = st.sampled_from(
    ["", "?", "?limit=-1", "?since=nan", "?user=%ff", "?a=1&a=2", "?follow=true&offset=1e9"]
)


@st.composite
def _targets(draw: st.DrawFn) -> tuple[str, str]:
    """Method and target of what is served, with things in the places of the names, or of nothing."""
    method, path = draw(st.sampled_from(sorted(OPERATIONS))).split(" ", 1)
    path = re.sub(r"\{[^}]*\}", lambda _: draw(_segment), path)
    method = draw(st.sampled_from([method, method, method, "GET", "PATCH", "BREW", "x"]))
    return method, path + draw(_query)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
)
_body = st.one_of(
    _json.map(lambda value: json.dumps(value).encode()),
    st.fixed_dictionaries({"argv": st.lists(st.text(max_size=5), max_size=3)}).map(
        lambda v: json.dumps(v).encode()
    ),
    st.binary(max_size=60),
)
_odd_headers = st.sampled_from(
    [
        "Transfer-Encoding: chunked",
        "Transfer-Encoding: gzip, chunked",
        "Content-Length: 5",
        "Content-Length: -1",
        "Content-Length: 99999999999999999999",
        "Content-Type: application/x-www-form-urlencoded",
        "Content-Encoding: gzip",
        "Expect: 100-continue",
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13",
        "Host: a\r\nHost: b",
        "Authorization: Bearer x",
        "Authorization: MUNGE MUNGE:x:",
        "Authorization: Bearer eyJhbGciOiJub25lIn0.e30.",
        "X: " + "y" * 70_000,
        " folded",
        "nothing",
    ]
)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    (method, target), body = draw(_targets()), draw(_body)
    lines = [f"{method} {target} HTTP/{draw(st.sampled_from(['1.1', '1.1', '1.0', '2.0', '9']))}", "Host: x"]
    lines.append(f"Content-Length: {len(body)}")
    lines += draw(st.lists(_odd_headers, max_size=2))
    return "\r\n".join([*lines, "", ""]).encode() + body


streams = st.lists(damaged(requests()) | st.binary(max_size=40), min_size=1, max_size=3).map(b"".join)


def said(path: Path, data: bytes) -> bytes:
    """All that is answered until the door closes; the other side says no more either."""
    answer = b""
    with socket.socket(socket.AF_UNIX) as connection, contextlib.suppress(ConnectionError):
        connection.settimeout(PATIENCE)
        connection.connect(str(path))
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        while piece := connection.recv(65536):
            answer += piece
    return answer


def test_http(stage: ApiStage) -> None:
    def http(data: bytes) -> None:
        began = time.monotonic()
        answer = said(stage.api.socket, data)
        assert time.monotonic() - began < PATIENCE
        statuses = [int(found) for found in _status.findall(answer)]
        assert all(status < 500 for status in statuses), answer
        assert b"Traceback" not in answer

    fuzz(http, streams, EXAMPLES)
    assert stage.client(STRANGER).health()


def test_a_body_nested_without_end(stage: ApiStage) -> None:
    deep = 100_000
    body = b'{"argv": [], "x": ' + b"[" * deep + b"]" * deep + b"}"
    given = {"Content-Type": "application/json"}
    status, text = stage.request("POST", "/v1/commands/qsub", body, given, stage.token(STRANGER))
    assert status == 400, text
