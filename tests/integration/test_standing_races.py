"""Reservations and schedules that two ask for, or take away, at the same time: who is told of success has it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from hpcmesos.api_schema import ReservationRequest, ScheduleRequest, Submission
from hpcmesos.errors import InvalidValue, UnknownSchedule
from hpcmesos.master import reservations, timetable
from hpcmesos.master.auth import Caller, Role
from hpcmesos.master.services import schedules, standing
from hpcmesos.master.services.site import Site
from hpcmesos.queue import documents
from hpcmesos.queue.leader_store import LeaderStore, LeaderTransaction
from hpcmesos.queue.reads import read_documents
from hpcmesos.queue.records import InboxRow, NodeRecord, RequestKey

from .api_kit import ObedientLeader
from .race_kit import meanwhile

pytest_plugins = ["tests.integration.database_kit", "tests.integration.race_kit"]

ANN, BOB = Caller("ann", role=Role.OPERATOR), Caller("bob", role=Role.OPERATOR)
NIGHTLY = ScheduleRequest(
    name="a", rule="R3//PT10H", job=Submission(["--", "prog"]), cwd="/", environ={"HOME": "/"}
)
AFTER = msgspec.structs.replace(NIGHTLY, name="b", rule="after:a")
NODES = ["node1", "node2"]
KEPT = ReservationRequest(name="kept", ends_at=time.time() + 3600, users=["eve", "dan"])


class StandingLeader(ObedientLeader):
    """Makes of wishes about schedules and reservations what a leader makes of them."""

    @staticmethod
    def _obey(tx: LeaderTransaction, row: InboxRow) -> None:
        if row.kind == "schedule":
            timetable.on_wish(tx, row.user, row.payload)
        elif row.kind == "object":
            kept = read_documents(tx._connection).get(documents.RESERVATIONS) or {}
            known = {"nodes": NODES, "queues": (), "now": time.time()}
            with suppress(InvalidValue):
                kept = reservations.changed(kept, row.payload["name"], row.payload["value"], **known)
            tx.put_document(documents.RESERVATIONS, kept)


@pytest.fixture(autouse=True)
def obedient(leader: LeaderStore) -> Iterator[ObedientLeader]:
    with leader.transaction() as transaction:
        for name in NODES:
            transaction.upsert_node(NodeRecord(name=name, cpus=1, mem=1 << 30))
    with StandingLeader(leader) as one:
        yield one


def keyed(caller: Caller, key: str) -> Caller:
    return replace(caller, key=RequestKey(key, key.encode()))


def test_the_same_name_is_reserved_twice_at_once(site: Site) -> None:
    ann, bob = keyed(ANN, "anns"), keyed(BOB, "bobs")
    mine = msgspec.structs.replace(KEPT, nodes=["node2"])
    refused = pytest.raises(InvalidValue, match=r"kept: .*others were quicker")
    with meanwhile(site.store, "FROM settings", lambda: standing.reserve(site, bob, KEPT)), refused:
        standing.reserve(site, ann, mine)
    with refused:
        standing.reserve(site, ann, mine)
    [made] = standing.list_reservations(site)
    assert (made.by, made.nodes, made.users) == ("bob", NODES, ["dan", "eve"])
    assert standing.reserve(site, bob, KEPT) == made, "its answer was lost, and it is asked for again"


@pytest.mark.parametrize(
    "others",
    [
        {"rule": "R4//PT10H"},
        {"job": Submission(["--", "other"])},
        {"job": Submission([], b"#!/bin/sh\n")},
        {"cwd": "/tmp"},
        {"retries": 3},
    ],
)
def test_the_same_name_is_scheduled_twice_at_once(site: Site, others: dict[str, Any]) -> None:
    quick, slow = keyed(ANN, "quick"), keyed(ANN, "slow")
    other = msgspec.structs.replace(NIGHTLY, **others)
    refused = pytest.raises(InvalidValue, match="schedule a: another of that name was quicker")
    with meanwhile(site.store, "FROM schedules", lambda: schedules.add(site, quick, other)), refused:
        schedules.add(site, slow, NIGHTLY)
    with refused:
        schedules.add(site, slow, NIGHTLY)
    assert schedules.add(site, quick, other) == schedules.listing(site, ANN)[0]


def test_one_is_removed_while_another_comes_to_follow_it(site: Site) -> None:
    schedules.add(site, ANN, NIGHTLY)
    add = meanwhile(site.store, "FROM schedules", lambda: schedules.add(site, ANN, AFTER), turn=2)
    refused = pytest.raises(InvalidValue, match="schedule a: b follows it; remove that first")
    with add, refused:
        schedules.change(site, ANN, "ann", "a", "remove")
    assert [one.name for one in schedules.listing(site, ANN)] == ["a", "b"]
    for name in ("b", "a"):
        schedules.change(site, ANN, "ann", name, "remove")
    assert schedules.listing(site, ANN) == []


def test_one_comes_to_follow_another_while_that_is_removed(site: Site) -> None:
    schedules.add(site, ANN, NIGHTLY)
    ann = keyed(ANN, "b")

    def remove() -> None:
        schedules.change(site, ANN, "ann", "a", "remove")

    refused = pytest.raises(UnknownSchedule, match="you have no schedule 'a'")
    with meanwhile(site.store, "FROM schedules", remove, turn=3), refused:
        schedules.add(site, ann, AFTER)
    with refused:
        schedules.add(site, ann, AFTER)
    assert schedules.listing(site, ANN) == []
