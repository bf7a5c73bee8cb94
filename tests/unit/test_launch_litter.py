"""Which files of killed MPI programs are removed at the end of an attempt."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from hpcmesos.launch import proxies

SECONDS = {"old": 40, "new": 10, "late": -10}
"""Before now, of files that a proxy may have made; an attempt had MPI for the last 30 s."""


@pytest.mark.parametrize(
    ("started", "kept"),
    [
        (None, {"old", "late"}),
        (
            11,
            {"old", "new", "late"},
        ),  # seconds ago that a proxy of the same owner began: "new" may be its own
        (8, {"old", "late"}),  # after "new" was made
        (300, {"old", "late"}),  # its own was made long ago
    ],
)
def test_only_what_nobody_living_may_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: float | None, kept: set[str]
) -> None:
    now = time.time()
    monkeypatch.setattr(proxies, "_FILES", (str(tmp_path), ""))
    monkeypatch.setattr(proxies, "_MEMORY", (str(tmp_path), "none"))
    monkeypatch.setattr(proxies, "_living", lambda uid: [os.getpid()])
    monkeypatch.setattr(proxies, "_name", lambda pid: "" if started is None else "hydra_pmi_proxy")
    monkeypatch.setattr(proxies, "_start_time", lambda pid: now - (started or 0))
    for name, ago in SECONDS.items():
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (now - ago, now - ago))
    (tmp_path / "other").mkdir()
    assert proxies.clean(os.getuid(), now - 30, now) == ("new" not in kept)
    assert {path.name for path in tmp_path.iterdir()} == kept | {"other"}


def test_what_had_to_stay_is_looked_at_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    living = [True, True, False]
    monkeypatch.setattr(proxies, "_FILES", (str(tmp_path), ""))
    monkeypatch.setattr(proxies, "_MEMORY", (str(tmp_path), "none"))
    monkeypatch.setattr(proxies, "_AGAIN", (0.0, 0.0, 0.0))
    monkeypatch.setattr(proxies, "_living", lambda uid: [os.getpid()] if living.pop(0) else [])
    monkeypatch.setattr(proxies, "_name", lambda pid: "hydra_pmi_proxy")
    monkeypatch.setattr(proxies, "_start_time", lambda pid: time.time())
    (tmp_path / "file").touch()
    about = (os.getuid(), time.time() - 30, time.time() + 1)
    assert not proxies.clean(*about)
    asyncio.run(proxies.clean_again(*about))
    assert not list(tmp_path.iterdir())


def test_memory_that_is_mapped_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxies, "_FILES", (str(tmp_path), "none"))
    monkeypatch.setattr(proxies, "_MEMORY", (str(tmp_path), "mem"))
    monkeypatch.setattr(proxies, "_mapped", lambda pid: {str(tmp_path / "mem1")})
    for name in ("mem1", "mem2"):
        (tmp_path / name).touch()
    assert not proxies.clean(os.getuid(), 0.0, time.time() + 1)
    assert {path.name for path in tmp_path.iterdir()} == {"mem1"}
    assert proxies.clean(os.getuid() + 1, 0.0, time.time() + 1)
    assert {path.name for path in tmp_path.iterdir()} == {"mem1"}
