"""Mails and webhook calls that are to be sent: rows, so that no leader forgets them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert

from hpcmesos.queue import documents
from hpcmesos.queue import tables as t

MAIL, WEBHOOK = "mail", "webhook"


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """``recipient``: a mail address; of a webhook call the job. Those of one recipient come one after the other.

    ``content``: of mail ``subject`` and ``text``, of a webhook call its JSON body.
    """

    channel: str
    recipient: str = ""
    content: Mapping[str, Any] = field(default_factory=dict)
    id: int = 0  # given by the database
    tries: int = 0
    created_at: datetime | None = None


class Outbox:
    """On a leader's transaction."""

    def __init__(self, connection: Connection, now: datetime) -> None:
        self._connection = connection
        self.now = now

    def after(self) -> int:
        """The last event of which notices were made; a site that begins to send some begins with what comes now."""
        row = select(t.settings.c.value).where(t.settings.c.name == documents.NOTICES)
        value = self._connection.scalar(row)
        if value is not None:
            return int(value["after"])
        last = int(self._connection.scalar(select(func.max(t.events.c.id))) or 0)
        self.put((), last)
        return last

    def put(self, notices: Iterable[Notice], after: int) -> None:
        """Notices of all events up to ``after``."""
        rows = [
            {"channel": one.channel, "recipient": one.recipient, "content": dict(one.content)}
            for one in notices
        ]
        if rows:
            self._connection.execute(insert(t.notices), rows)
        new = insert(t.settings).values(name=documents.NOTICES, value={"after": after})
        self._connection.execute(
            new.on_conflict_do_update(index_elements=["name"], set_={"value": new.excluded.value})
        )

    def due(self, channel: str, most: int, besides: Collection[str] = (), after: str = "") -> list[Notice]:
        """Those of a channel to send now: of each recipient the oldest, without these recipients.

        They come by turns, those behind ``after`` first, so that many notices of some hold up nobody else's.
        """
        found: list[Notice] = []
        seen: set[str] = set()
        place, again = after, False
        while len(found) < most:
            notice = self._next(channel, place)
            if notice is None:
                if again:
                    break
                place, again = "", True  # those before ``after``
                continue
            if notice.recipient in seen:
                break
            seen.add(notice.recipient)
            place = notice.recipient
            if notice.recipient not in besides:
                found.append(notice)
        return found

    def _next(self, channel: str, after: str) -> Notice | None:
        """The oldest that is due of the first recipient behind ``after`` who has one: one step in the index."""
        kept = t.notices.c
        wanted = select(t.notices).where(
            kept.channel == channel, kept.recipient > after, kept.next_try <= self.now
        )
        row = self._connection.execute(wanted.order_by(kept.recipient, kept.id).limit(1)).first()
        return None if row is None else Notice(**{name: row._mapping[name] for name in Notice.__slots__})

    def remove(self, notice: Notice) -> None:
        """It is delivered, or given up."""
        self._connection.execute(delete(t.notices).where(t.notices.c.id == notice.id))

    def put_off(self, notice: Notice, until: datetime) -> None:
        """It could not be delivered now."""
        changed = update(t.notices).where(t.notices.c.id == notice.id)
        self._connection.execute(changed.values(tries=t.notices.c.tries + 1, next_try=until))
