"""A gateway writes each delivery once, whatever is killed between two of its steps."""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from hpcmesos.agent import deliveries
from hpcmesos.agent.deliveries import Deliverer, Lines
from hpcmesos.api_schema import Delivery
from hpcmesos.errors import MasterUnreachable, StateError, UnknownJob


class Killed(BaseException):
    """As if the process had ended here."""


class Masters:
    """What the deliverer asks; ``dies_in``: the step at which it is killed."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.finished: list[str] = []
        self.fetched = 0
        self.dies_in = ""

    def fetch(self, one: Delivery, target: Path) -> None:
        self.fetched += 1
        target.write_bytes(self.content)
        if self.dies_in == "fetch":
            raise Killed
        if self.dies_in == "lost":
            raise UnknownJob("no log store has it")

    def finish(self, one: Delivery, trouble: str) -> None:
        if self.dies_in == "finish":
            raise Killed
        if self.dies_in == "unreachable":
            raise MasterUnreachable("no answer")
        self.finished.append(trouble)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory of the user who gets the output."""
    path = tmp_path / "home"
    path.mkdir()
    return path


def delivery(path: Path, append: bool = False) -> Delivery:
    me = pwd.getpwuid(os.getuid()).pw_name
    return Delivery(
        attempt="7.hpcm#1",
        stream="stdout",
        owner=me,
        path=str(path),
        name="job.o7",
        umask=0o027,
        append=append,
        size=4,
    )


@contextlib.contextmanager
def dying_before_the_move(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The deliverer is killed when the file is whole, beside its place."""
    real = Deliverer._run

    def run(self: Deliverer, one: Delivery, words: list[str], source: Path | None = None) -> str:
        if words[0] == "move":
            raise Killed
        return real(self, one, words, source)

    with monkeypatch.context() as patch:
        patch.setattr(Deliverer, "_run", run)
        yield


def test_a_delivery_is_written_with_its_umask_and_told(tmp_path: Path, place: Path) -> None:
    masters = Masters(b"text")
    Deliverer(tmp_path, masters).deliver(delivery(place / "out"))
    assert (place / "out").read_bytes() == b"text"
    assert stat.S_IMODE((place / "out").stat().st_mode) == 0o640
    assert masters.finished == [""]
    assert [path.name for path in place.iterdir()] == ["out"]
    assert not list((tmp_path / "incoming").iterdir()) + list((tmp_path / "moving").iterdir())


@pytest.mark.parametrize("step", ["fetch", "finish", "unreachable"])
def test_what_was_killed_is_done_once(tmp_path: Path, place: Path, step: str) -> None:
    masters = Masters(b"text")
    masters.dies_in = step
    with pytest.raises((Killed, MasterUnreachable)):
        Deliverer(tmp_path, masters).deliver(delivery(place / "out"))
    written = (place / "out").exists()
    assert written == (step != "fetch")
    if written:  # its owner may have done with it what he likes by then
        (place / "out").unlink()
    masters.dies_in = ""
    Deliverer(tmp_path, masters).deliver(delivery(place / "out"))
    assert masters.finished == [""]
    assert (place / "out").exists() == (step == "fetch")
    assert masters.fetched == (2 if step == "fetch" else 1)


def test_a_kill_before_the_last_step_begins_anew(
    tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    masters = Masters(b"text")
    with dying_before_the_move(monkeypatch), pytest.raises(Killed):
        Deliverer(tmp_path, masters).deliver(delivery(place / "out"))
    assert not (place / "out").exists()
    Deliverer(tmp_path, masters).deliver(delivery(place / "out"))
    assert (place / "out").read_bytes() == b"text"
    assert [path.name for path in place.iterdir()] == ["out"]


def test_a_later_attempt_is_appended_and_a_directory_gets_the_default_name(
    tmp_path: Path, place: Path
) -> None:
    masters = Masters(b"one\n")
    deliverer = Deliverer(tmp_path, masters)
    deliverer.deliver(delivery(place))
    masters.content = b"two\n"
    deliverer.deliver(delivery(place, append=True))
    assert (place / "job.o7").read_bytes() == b"one\ntwo\n"


@pytest.mark.skipif(os.getuid() != 0, reason="needs root")
def test_the_owners_rights_decide(tmp_path: Path, place: Path) -> None:
    masters = Masters(b"text")
    one = Delivery(
        attempt="7.hpcm#1", stream="stdout", owner="nobody", path=str(place / "out"),
        name="x", umask=0o022, append=False, size=4,
    )  # fmt: skip
    place.chmod(0o755)
    Deliverer(tmp_path, masters).deliver(one)
    assert masters.finished == ["Permission denied"]
    assert not list(place.iterdir())


def test_no_such_user_is_said(tmp_path: Path, place: Path) -> None:
    masters = Masters(b"text")
    one = Delivery(
        attempt="7.hpcm#1", stream="stdout", owner="hpcmnobodyatall", path=str(place / "out"),
        name="x", umask=0o022, append=False, size=4,
    )  # fmt: skip
    Deliverer(tmp_path, masters).deliver(one)
    assert masters.finished == ["no user 'hpcmnobodyatall' on this node"]


def test_a_stream_that_no_master_has_any_more_is_given_up(tmp_path: Path, place: Path) -> None:
    masters = Masters(b"text")
    masters.dies_in = "lost"
    Deliverer(tmp_path, masters).deliver(delivery(place / "out"))
    assert masters.finished == ["no log store has it"]


def test_a_file_that_cannot_be_seen_now_was_not_moved_for_that(tmp_path: Path, place: Path) -> None:
    masters = Masters(b"text")
    masters.dies_in = "finish"
    deliverer = Deliverer(tmp_path, masters)
    with pytest.raises(Killed):
        deliverer.deliver(delivery(place / "out"))
    masters.dies_in = ""
    place.rename(tmp_path / "mounted")
    with pytest.raises(StateError, match="No such file"):
        deliverer.deliver(delivery(place / "out"))
    place.mkdir()  # the directory below a file system that is not mounted
    with pytest.raises(StateError, match="Stale"):
        deliverer.deliver(delivery(place / "out"))
    place.rmdir()
    (tmp_path / "mounted").rename(place)
    deliverer.deliver(delivery(place / "out"))
    assert (masters.finished, masters.fetched) == ([""], 1)


def test_a_new_file_that_was_lost_before_its_move_is_written_anew(
    tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "out").write_text("of another job")
    masters = Masters(b"text")
    with dying_before_the_move(monkeypatch), pytest.raises(Killed):
        Deliverer(tmp_path, masters).deliver(delivery(place / "out"))
    next(place.glob(".*.delivery")).unlink()
    Deliverer(tmp_path, masters).deliver(delivery(place / "out"))
    assert (place / "out").read_bytes() == b"text"


def test_one_that_hangs_or_fails_holds_up_only_its_owner(place: Path) -> None:
    """The lines: others are delivered meanwhile; what failed is not tried again at once."""
    let_go, done, tried = threading.Event(), threading.Event(), []

    def deliver(one: Delivery) -> None:
        tried.append(one.owner)
        if one.owner == "hangs":
            let_go.wait(10)
        if one.owner == "fails":
            raise OSError(28, "No space left on device")
        if one.owner == "last":
            done.set()

    lines = Lines(deliver, threads=2)
    one = delivery(place / "out")
    waiting = [
        msgspec.structs.replace(one, attempt=f"{number}.hpcm#1", owner=owner)
        for number, owner in enumerate(["hangs", "hangs", "fails", "last"], 1)
    ]
    try:
        lines.give(waiting)
        while not done.is_set():
            lines.wait(0.1)
            lines.give(waiting)
        assert tried[:2] in (["hangs", "fails"], ["fails", "hangs"])
        assert (tried.count("hangs"), tried.count("fails")) == (1, 1)
    finally:
        let_go.set()


def test_what_does_not_end_when_it_is_killed_is_left_to_itself(
    tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as a test can make that: a process of it keeps the pipes."""
    (tmp_path / "__main__.py").write_text(
        "import subprocess, sys, time\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n"
        "time.sleep(60)\n"
    )
    monkeypatch.setattr(deliveries, "LAUNCH", tmp_path)
    monkeypatch.setattr(deliveries, "_TIMEOUT", 6.0)
    masters = Masters(b"text")
    since = time.monotonic()
    try:
        Deliverer(tmp_path, masters).deliver(delivery(place / "out"))
    finally:
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    assert masters.finished == ["the file system took longer than 6 s"]
    assert time.monotonic() < since + 30
