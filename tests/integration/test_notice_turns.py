"""Who gets many notices holds up nobody else's: real rows, and a real SMTP server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hpcmesos.config import MasterSettings
from hpcmesos.master.notices import Notices
from hpcmesos.queue.leader_store import LeaderStore
from hpcmesos.queue.notices import MAIL, WEBHOOK, Notice
from tests.integration.mail_kit import Postbox

pytest_plugins = ["tests.integration.database_kit"]


class Inbox:
    def __init__(self) -> None:
        self.mails: list[tuple[str, str]] = []  # recipient, text

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802 - aiosmtpd's name
        self.mails.append((envelope.rcpt_tos[0], envelope.content.decode().strip().splitlines()[-1]))
        return "250 OK"


@pytest.fixture
def inbox() -> Iterator[tuple[Inbox, str]]:
    """And its URL."""
    inbox = Inbox()
    controller = Postbox(inbox)
    controller.start()
    yield inbox, f"smtp://127.0.0.1:{controller.port}"
    controller.stop()


def mail(recipient: str, text: str) -> Notice:
    return Notice(channel=MAIL, recipient=recipient, content={"subject": "job 1", "text": text})


def put(leader: LeaderStore, *notices: Notice) -> None:
    with leader.transaction() as transaction:
        transaction.outbox.put(notices, 0)


def test_each_recipient_gets_its_turn(
    patient_leader: LeaderStore, inbox: tuple[Inbox, str], tmp_path: Path
) -> None:
    many = [f"user{number}@example.org" for number in range(6)]  # more than are sent to at a time
    put(patient_leader, *(mail(one, str(n)) for one in many for n in range(200)))
    put(patient_leader, mail("zoe@example.org", "the only one"))
    got, url = inbox
    notices = Notices(
        patient_leader,
        MasterSettings(database_url="", state=tmp_path, socket=tmp_path / "s", mail=url, mail_from="b@x.org"),
    )
    for _ in range(100):
        notices.hand_out()
        notices.settle(5.0)
        if ("zoe@example.org", "the only one") in got.mails:
            break
    before = [recipient for recipient, _ in got.mails].index("zoe@example.org")
    assert before <= 2 * len(many), f"{before} mails to others went first"
    for one in many:
        texts = [text for recipient, text in got.mails if recipient == one]
        assert texts == [str(number) for number in range(len(texts))], "in the order of what they tell"
    while any(senders.flying for senders in notices._senders.values()):
        notices.settle(5.0)


def test_what_is_due_comes_by_turns(leader: LeaderStore) -> None:
    put(leader, *(mail(one, "") for one in ("ann", "ann", "bob", "cem")), Notice(channel=WEBHOOK))
    with leader.transaction() as transaction:

        def due(*besides: str, most: int = 10, after: str = "") -> list[str]:
            return [one.recipient for one in transaction.outbox.due(MAIL, most, besides, after)]

        assert due() == ["ann", "bob", "cem"]
        assert due(after="ann") == ["bob", "cem", "ann"]
        assert due("bob", after="ann") == ["cem", "ann"]
        assert due(most=1, after="cem") == ["ann"]
        [first] = transaction.outbox.due(MAIL, 1)
        transaction.outbox.remove(first)
        [second] = transaction.outbox.due(MAIL, 1)
        assert second.recipient == "ann" and second.id > first.id
