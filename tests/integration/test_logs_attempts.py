"""Following the output of a job that runs several times."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hpcmesos.config import MasterSettings
from hpcmesos.master.log_store import LogStore
from hpcmesos.master.services.logs import Reader
from hpcmesos.master.services.wait import Pace
from hpcmesos.queue.leader_store import LeaderStore
from hpcmesos.queue.records import JobRecord
from hpcmesos.queue.store import Store
from tests.integration.api_kit import ME
from tests.integration.attempts_kit import begin, end, lose, submitted

pytest_plugins = ["tests.integration.database_kit"]


class Follower:
    """Reads in this process, and counts its pauses, in each of which a minute passes."""

    def __init__(self, store: Store, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        settings = MasterSettings(database_url="", state=place, socket=place / "s")
        self.site: Any = SimpleNamespace(store=store, logs=LogStore(place), tls=None, settings=settings)
        self._pauses = 0
        self._then: dict[int, Callable[[], None]] = {}
        real = time.monotonic
        monkeypatch.setattr(time, "monotonic", lambda: real() + 60.0 * self._pauses)
        monkeypatch.setattr(Pace, "pause", self._pause)

    async def _pause(self, *_: object) -> None:
        self._pauses += 1
        assert self._pauses < 20, "it never ends"
        self._then.pop(self._pauses, lambda: None)()

    def read(
        self,
        job: JobRecord,
        in_pauses: dict[int, Callable[[], None]],
        on_chunk: Callable[[], None] = lambda: None,
    ) -> list[bytes]:
        """What comes until the end. ``in_pauses``: what happens in these; ``on_chunk``: when the first piece came."""

        async def follow() -> list[bytes]:
            found: list[bytes] = []
            async for chunk in Reader(self.site, job, "stdout", 0).read(follow=True):
                found.append(chunk)
                if len(found) == 1:
                    on_chunk()
            return found

        self._then = in_pauses
        return asyncio.run(follow())


@pytest.fixture
def follower(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Follower:
    return Follower(store, tmp_path, monkeypatch)


def now(store: Store, job: JobRecord) -> JobRecord:
    found = store.job(job.seq)
    assert found is not None
    return found


def test_a_job_that_waits_to_run_again_is_not_over(
    store: Store, leader: LeaderStore, follower: Follower
) -> None:
    job = submitted(store, leader)
    begin(leader, job, 1)
    lose(leader, job, 1, stdout_tail=b"one ")

    def ends() -> None:
        end(leader, job, 2, stdout_tail=b"two")

    later = {5: lambda: begin(leader, job, 2), 7: ends}
    assert follower.read(now(store, job), later) == [b"one ", b"two"]


def run_again(leader: LeaderStore, job: JobRecord) -> None:
    """The second attempt comes and goes, and the third."""
    begin(leader, job, 2)
    lose(leader, job, 2, stdout_tail=b"two ")
    begin(leader, job, 3)
    end(leader, job, 3, stdout_tail=b"three")


def test_a_slow_reader_misses_no_attempt(store: Store, leader: LeaderStore, follower: Follower) -> None:
    job = submitted(store, leader)
    begin(leader, job, 1)
    lose(leader, job, 1, stdout_tail=b"one ")
    assert follower.read(now(store, job), {}, lambda: run_again(leader, job)) == [b"one ", b"two ", b"three"]


def test_attempts_between_two_looks_are_read_one_by_one(
    store: Store, leader: LeaderStore, follower: Follower
) -> None:
    job = submitted(store, leader)

    def runs() -> None:
        begin(leader, job, 1)
        lose(leader, job, 1, stdout_tail=b"one ")
        run_again(leader, job)

    assert follower.read(job, {2: runs}) == [b"one ", b"two ", b"three"]


@pytest.mark.parametrize("shared", [True, False])
def test_what_is_in_one_file_comes_once(
    store: Store, leader: LeaderStore, follower: Follower, tmp_path: Path, shared: bool
) -> None:
    """The nodes see one file, to which the second attempt adds; or each has its own, and the second is here."""
    file, node = tmp_path / "out", str(tmp_path if shared else tmp_path / "elsewhere")
    follower.site.settings = replace(follower.site.settings, shared_paths=(node,))
    job = submitted(store, leader, owner=ME)
    begin(leader, job, 1)
    file.write_bytes(b"one ")
    lose(leader, job, 1, stdout_path=str(file))

    def runs_again() -> None:
        begin(leader, job, 2)
        file.write_bytes(b"one two" if shared else b"another")
        end(leader, job, 2, stdout_path=str(file))

    found = follower.read(now(store, job), {2: runs_again})
    assert found == [b"one ", b"two" if shared else b"another"]
