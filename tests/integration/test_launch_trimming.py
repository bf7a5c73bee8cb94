"""A job that writes without end fills no node: head and tail of its output stay, and it is said what is missing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hpcmesos.launch import trimming
from tests.integration import shepherd_kit as kit

LIMIT = 256 * 1024
MIB = 1024 * 1024
ENDLESS = """#!/bin/sh
echo first line
until [ -e stop ]; do head -c 1000000 /dev/zero | tr '\\0' x; echo; sleep 0.05; done
echo last line
"""


def test_what_stays_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"head" + b"x" * (8 * MIB) + b"tail")
    fd = os.open(path, os.O_RDWR | os.O_APPEND)
    try:
        trimming.punch(fd, LIMIT)
        assert path.stat().st_size == 8 * MIB + 8, "who reads by offset is not misled"
        assert path.stat().st_blocks * 512 <= LIMIT + 64 * 1024
        os.write(fd, b" more")
        left_out = trimming.close_gap(fd, LIMIT)
    finally:
        os.close(fd)
    text = path.read_bytes()
    assert text.startswith(b"head") and text.endswith(b"tail more")
    assert f"{left_out} bytes left out".encode() in text and b"\0" not in text
    assert len(text) <= LIMIT + 4096 + 200


@pytest.mark.parametrize("size", [0, LIMIT - 1, LIMIT])
def test_what_is_within_its_limit_stays_as_it_is(tmp_path: Path, size: int) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"x" * size)
    fd = os.open(path, os.O_RDWR | os.O_APPEND)
    try:
        trimming.punch(fd, LIMIT)
        assert trimming.close_gap(fd, LIMIT) == 0
    finally:
        os.close(fd)
    assert path.read_bytes() == b"x" * size


def test_a_job_that_writes_without_end_fills_no_node(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    with (
        kit.cluster(tmp_path / "state", ["n1"], cgroups=False) as nodes,
        kit.runs(nodes, tmp_path) as start,
    ):
        run = start(ENDLESS, stdout=None, stderr=None, log_limit=LIMIT)
        spool = Path(run.started()["stdout_path"])
        assert spool.is_relative_to(tmp_path / "state")
        kit.wait_until(lambda: spool.stat().st_size > 12 * MIB, "it has written much", timeout=60)
        kit.wait_until(
            lambda: spool.stat().st_blocks * 512 < spool.stat().st_size - 4 * MIB,
            "its middle takes no room while it writes",
        )
        (tmp_path / "stop").touch()
        ended = run.ended(timeout=60)
        assert (ended["code"], ended["cause"]) == (0, "OK")
        assert "bytes in the middle of the output are left out" in ended["message"]
        assert run.tail("stdout").endswith("last line\n")
        text = spool.read_bytes()
        assert text.startswith(b"first line\n") and text.endswith(b"last line\n")
        assert b"bytes left out" in text and b"\0" not in text
        assert len(text) <= LIMIT + 8192


def test_a_place_of_the_owners_is_his_own_business(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    with (
        kit.cluster(tmp_path / "state", ["n1"], cgroups=False) as nodes,
        kit.runs(nodes, tmp_path) as start,
    ):
        run = start("head -c 2000000 /dev/zero | tr '\\0' x\n", log_limit=LIMIT)
        assert run.ended(timeout=60)["code"] == 0
    assert (tmp_path / "out").stat().st_size == 2_000_000
