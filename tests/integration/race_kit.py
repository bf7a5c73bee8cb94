"""An API process' services over a real database, with somebody who acts between two of their statements."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import event

from hpcmesos.config import MasterSettings
from hpcmesos.master.services.site import Site
from hpcmesos.queue.leader_store import LeaderStore
from hpcmesos.queue.records import QueueRecord
from hpcmesos.queue.store import Store

if TYPE_CHECKING:
    from tests.integration.database_kit import Database


@contextmanager
def meanwhile(
    store: Store, part: str | re.Pattern[str], act: Callable[[], object], *, turn: int = 1
) -> Iterator[None]:
    """Right after the statement that holds ``part``, of several the ``turn``-th, ``act`` is called, and then its reader
    goes on.
    """
    wanted = re.compile(re.escape(part)) if isinstance(part, str) else part
    heard: list[str] = []

    def hear(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if wanted.search(statement):
            heard.append(statement)
            if len(heard) == turn:
                act()

    event.listen(store._engine, "after_cursor_execute", hear)
    try:
        yield
    finally:
        event.remove(store._engine, "after_cursor_execute", hear)
    assert len(heard) >= turn


def reads(table: str) -> re.Pattern[str]:
    """Of statements that read this table, not one whose name begins as its own."""
    return re.compile(rf"\b(FROM|JOIN) {table}\b")


@pytest.fixture
def site(database: Database, leader: LeaderStore, tmp_path: Path) -> Iterator[Site]:
    """With the queue ``batch``; nobody takes wishes unless the test does. It closes its store itself."""
    with leader.transaction() as transaction:
        transaction.put_queue(QueueRecord(name="batch"))
    settings = MasterSettings(
        database_url=database.api, state=tmp_path, socket=tmp_path / "api.sock", managers=("root",)
    )
    with closing(Site.open(settings, Store(database.api))) as one:
        yield one
