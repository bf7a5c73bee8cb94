"""Reads of several statements, between two of which the queue changes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hpcmesos.api_schema import CommandRequest
from hpcmesos.config import MasterSettings
from hpcmesos.master.auth import Caller
from hpcmesos.master.notices import Notices
from hpcmesos.master.services import control, export, status
from hpcmesos.master.services.site import Site
from hpcmesos.model import Role
from hpcmesos.queue.arrays import ArraySpec
from hpcmesos.queue.leader_store import LeaderStore
from hpcmesos.queue.notices import MAIL
from hpcmesos.queue.records import AttemptKey, JobRecord, ShareRecord, StartRecord
from hpcmesos.queue.store import Store
from tests.integration import attempts_kit
from tests.integration.attempts_kit import NODE, submitted
from tests.integration.race_kit import meanwhile, reads

pytest_plugins = ["tests.integration.database_kit"]

OPERATOR = Caller("root", Role.MANAGER, local=True)


@pytest.fixture
def site(store: Store, tmp_path: Path) -> Iterator[Site]:
    found = Site.open(MasterSettings(database_url="", state=tmp_path, socket=tmp_path / "s"), store)
    yield found
    found.close()


def an_array(store: Store, leader: LeaderStore) -> JobRecord:
    return submitted(store, leader, array_spec=ArraySpec(((1, 3, 1),), None))


def begin_element(leader: LeaderStore, array: JobRecord, index: int) -> None:
    key = AttemptKey(array.seq, index, 1)
    share = ShareRecord(attempt=key, node=NODE, position=0, cpus=1, mem=0, slots=1)
    with leader.transaction() as transaction:
        assert transaction.apply_starts([StartRecord(attempt=key, shares=(share,), new=True)])


def shown(site: Site, *words: str) -> str:
    reply = status.qstat(site, OPERATOR, CommandRequest(argv=list(words)))
    assert not reply.stderr
    return reply.stdout


def test_a_job_that_begins_during_an_export_is_told_as_one(
    site: Site, store: Store, leader: LeaderStore
) -> None:
    job = submitted(store, leader)
    with meanwhile(store, reads("jobs"), lambda: attempts_kit.begin(leader, job, 1)):
        found = msgspec.json.decode(export.exported(site, OPERATOR))
    assert [node["cpus_free"] for node in found["nodes"]] == [4]
    assert (len(found["pending"]), len(found["running"])) == (1, 0)
    found = msgspec.json.decode(export.exported(site, OPERATOR))
    assert [node["cpus_free"] for node in found["nodes"]] == [3]
    assert (len(found["pending"]), len(found["running"])) == (0, 1)


def test_no_attempt_is_shown_without_its_nodes(site: Site, store: Store, leader: LeaderStore) -> None:
    job = submitted(store, leader)
    attempts_kit.begin(leader, job, 1)

    def runs_again() -> None:
        attempts_kit.lose(leader, job, 1)
        attempts_kit.begin(leader, job, 2)

    with meanwhile(store, reads("shares"), runs_again, turn=2):  # those of the job's summary come first
        found = status.job_status(site, str(job.seq))
    assert found.attempts
    assert all(one.nodes for one in found.attempts)


@pytest.mark.parametrize("begins", [2, None])
def test_counts_of_elements_are_of_one_moment(
    site: Site, store: Store, leader: LeaderStore, begins: int | None
) -> None:
    array = an_array(store, leader)
    begin_element(leader, array, 1)

    def change() -> None:
        if begins:
            begin_element(leader, array, begins)
        else:
            end_element(leader, array, 1)

    with meanwhile(store, reads("jobs"), change):
        text = shown(site, "-f", f"{array.seq}[]")
    line = next(line for line in text.splitlines() if "array_state_count" in line)
    numbers = [int(part.partition(":")[2]) for part in line.partition("= ")[2].split()]
    assert sum(numbers) == 3, line


def end_element(leader: LeaderStore, array: JobRecord, index: int) -> None:
    attempts_kit.end(leader, array, 1, index=index)
    with leader.transaction() as transaction:
        transaction.tally({array.seq: (1, 0)})


def test_an_element_without_a_row_shows_once(site: Site, store: Store, leader: LeaderStore) -> None:
    array = an_array(store, leader)
    begin_element(leader, array, 1)
    for words in ([f"{array.seq}[2]", f"{array.seq}[]"], [f"{array.seq}[]", f"{array.seq}[2]"]):
        text = shown(site, "-t", "-f", *words)
        ids = [line.partition(": ")[2] for line in text.splitlines() if line.startswith("Job Id")]
        assert ids == [f"{array.seq}[].hpcm", *(f"{array.seq}[{index}].hpcm" for index in (1, 2, 3))]


def test_qdel_all_says_nothing_of_what_ends_meanwhile(site: Site, store: Store, leader: LeaderStore) -> None:
    job = submitted(store, leader)
    attempts_kit.begin(leader, job, 1)
    with meanwhile(store, reads("jobs"), lambda: attempts_kit.end(leader, job, 1)):
        reply = control.qdel(site, OPERATOR, CommandRequest(argv=["all"]))
    assert (reply.stderr, reply.code) == ("", 0)
    reply = control.qdel(site, OPERATOR, CommandRequest(argv=[str(job.seq)]))
    assert "COMPLETE" in reply.stderr


def test_each_mail_names_the_hosts_of_its_attempt(store: Store, leader: LeaderStore, tmp_path: Path) -> None:
    """Both attempts have begun when the leader looks."""
    settings: dict[str, Any] = {"mail": "smtp://127.0.0.1:1", "mail_from": "b@x.org"}
    notices = Notices(
        leader, MasterSettings(database_url="", state=tmp_path, socket=tmp_path / "s", **settings)
    )
    notices.collect()
    job = submitted(store, leader, "n1", "n2", submission={"mail_points": "b", "mail_users": ["a@b.org"]})
    attempts_kit.begin(leader, job, 1, "n1")
    attempts_kit.lose(leader, job, 1, "n1")
    attempts_kit.begin(leader, job, 2, "n2")
    notices.collect()
    with leader.transaction() as transaction:
        [first] = transaction.outbox.due(MAIL, 10)
        transaction.outbox.remove(first)
        [second] = transaction.outbox.due(MAIL, 10)
    hosts = [line for one in (first, second) for line in one.content["text"].splitlines() if "host" in line]
    assert hosts == ["Exec host:  n1", "Exec host:  n2"]
