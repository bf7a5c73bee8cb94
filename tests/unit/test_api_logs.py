"""Which files the API opens for a reader."""

from __future__ import annotations

import errno
import os
import pwd
from pathlib import Path

import pytest

from hpcmesos.master.services.logs import _open_owned

ME = pwd.getpwuid(os.geteuid()).pw_name


def test_a_regular_file_of_the_owner_is_opened(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("text")
    fd = _open_owned(str(tmp_path / "out"), ME)
    assert fd is not None
    assert os.pread(fd, 10, 0) == b"text"
    os.close(fd)
    assert _open_owned(str(tmp_path / "out"), "no-such-user") is None
    assert _open_owned(str(tmp_path / "none"), ME) is None


def test_nothing_else_is_even_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To open a device may rewind a tape or arm a watchdog; a pipe lets a writer in once somebody opened it."""
    pipe, fstat, seen = tmp_path / "pipe", os.fstat, list[int]()
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to(pipe)

    def look(fd: int) -> os.stat_result:
        with pytest.raises(OSError) as refused:
            os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        assert refused.value.errno == errno.ENXIO
        seen.append(fd)
        return fstat(fd)

    monkeypatch.setattr(os, "fstat", look)
    for name in ("pipe", "link"):
        assert _open_owned(str(tmp_path / name), ME) is None
    assert seen
