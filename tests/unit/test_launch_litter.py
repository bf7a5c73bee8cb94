"""Which files of killed MPI programs are removed at the end of an attempt."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from hpcmesos.launch import proxies


@pytest.mark.parametrize(("maker", "kept"), [("", {"old", "other"}), ("mpiexec", {"old", "new", "other"})])
def test_only_what_nobody_living_may_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, maker: str, kept: set[str]
) -> None:
    """``maker``: what this process is taken for."""
    monkeypatch.setattr(proxies, "_FILES", (str(tmp_path), ""))
    monkeypatch.setattr(proxies, "_MEMORY", (str(tmp_path), "none"))
    monkeypatch.setattr(proxies, "_living", lambda uid: [os.getpid()])
    monkeypatch.setattr(proxies, "_name", lambda pid: maker)
    now = time.time()
    for name in ("old", "new"):
        (tmp_path / name).touch()
    os.utime(tmp_path / "old", (now - 60, now - 60))
    (tmp_path / "other").mkdir()
    proxies.clean(os.getuid(), now - 30)
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_memory_that_is_mapped_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxies, "_FILES", (str(tmp_path), "none"))
    monkeypatch.setattr(proxies, "_MEMORY", (str(tmp_path), "mem"))
    monkeypatch.setattr(proxies, "_mapped", lambda pid: {str(tmp_path / "mem1")})
    for name in ("mem1", "mem2"):
        (tmp_path / name).touch()
    proxies.clean(os.getuid(), 0.0)
    assert {path.name for path in tmp_path.iterdir()} == {"mem1"}
    proxies.clean(os.getuid() + 1, 0.0)
    assert {path.name for path in tmp_path.iterdir()} == {"mem1"}
