"""Tells users and sites by mail and webhooks what became of jobs. A thread of the leader that nobody waits for, and a
few for each channel that send (`master.senders`).

It follows the events by a cursor: the cursor and the notices made of its events are written in one transaction, so each
event is told of once, whoever leads. A notice that was sent while its leader died is sent again, under the same id.
"""

from __future__ import annotations

import logging
import queue
import socket
import threading
from contextlib import suppress
from datetime import timedelta

from hpcmesos.config import MasterSettings
from hpcmesos.errors import ConfigError, DatabaseUnavailable
from hpcmesos.master import notice_text
from hpcmesos.master.delivery import Delivery, Undelivered
from hpcmesos.master.senders import Result, Senders
from hpcmesos.queue.leader_store import LeaderStore
from hpcmesos.queue.notices import MAIL, WEBHOOK, Notice
from hpcmesos.queue.records import IDLE, EventRecord

log = logging.getLogger(__name__)

_LOOK = 1.0  # seconds between two looks
_EVENTS = 500  # a transaction
_SOON = 0.2  # seconds that the next result is waited for while some are under way
_FIRST_PAUSE, _LONGEST_PAUSE = 10.0, 3600.0  # seconds until a notice is tried again
_GIVEN_UP = timedelta(days=1)


class Notices:
    """Makes and sends notices. Raises ConfigError for settings that nothing can be sent by."""

    def __init__(self, store: LeaderStore, settings: MasterSettings) -> None:
        self._store = store
        self._settings = settings
        self._delivery = Delivery(
            settings.mail,
            settings.mail_password_file,
            settings.webhook,
            settings.webhook_secret_file,
            settings.server,
        )
        self._delivery.check()
        self._results: queue.SimpleQueue[Result] = queue.SimpleQueue()
        used = [name for name, wanted in ((MAIL, settings.mail), (WEBHOOK, settings.webhook)) if wanted]
        self._senders = {channel: Senders(self._send, self._results) for channel in used}
        self._last = dict.fromkeys(used, "")  # recipients that had their turn last

    def run(self, stop: threading.Event) -> None:
        """Until ``stop`` is set. Raises what ends leadership."""
        if not self._senders:
            return
        pause = 0.0
        while not stop.wait(pause):
            try:
                more = self.collect()
                self.hand_out()
                pause = 0.0 if more or self.settle(_SOON) else _LOOK
            except DatabaseUnavailable as error:
                log.warning("notices are looked at later: %s", error)
                pause = _LOOK

    def collect(self) -> bool:
        """Makes notices of what happened since the last look; whether there may be more."""
        server = self._store.server()
        channels = {WEBHOOK: ""} if self._settings.webhook else {}
        if self._settings.mail:
            channels[MAIL] = server.get("mail_domain", self._settings.mail_domain)
        with self._store.transaction() as transaction:
            after = transaction.outbox.after()
        # No transaction meanwhile: it would hold the lease's row. Nobody else moves the cursor.
        events = self._store.events(after, _EVENTS)
        made = [notice for event in events for notice in self._of(event, channels)]
        if events:
            with self._store.transaction() as transaction:
                transaction.outbox.put(made, events[-1].id)
        return len(events) == _EVENTS

    def hand_out(self) -> None:
        """Gives what is due to the threads that send, as far as they have room."""
        sender = self._store.server().get("mail_from") or self._settings.mail_from
        for channel, senders in self._senders.items():
            if senders.room:
                with self._store.transaction() as transaction:
                    due = transaction.outbox.due(channel, senders.room, senders.flying, self._last[channel])
                for notice in due:
                    self._last[channel] = notice.recipient
                    senders.give(notice, sender or f"hpcmesos@{socket.getfqdn()}")

    def settle(self, seconds: float) -> bool:
        """Writes down what became of notices, waiting some seconds for the first result; whether some are under way."""
        if not any(senders.flying for senders in self._senders.values()):
            return False
        with suppress(queue.Empty):
            result = self._results.get(timeout=seconds)
            while True:
                try:
                    self._note(*result)
                except BaseException:
                    self._results.put(result)
                    raise
                result = self._results.get_nowait()
        return True

    def _note(self, notice: Notice, error: Undelivered | None) -> None:
        with self._store.transaction() as transaction:
            young = notice.created_at is not None and transaction.now - notice.created_at < _GIVEN_UP
            if error is not None and not error.for_good and young:
                pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**notice.tries)
                log.warning("notice %d is sent later: %s", notice.id, error)
                transaction.outbox.put_off(notice, transaction.now + timedelta(seconds=pause))
            else:
                if error is not None:
                    log.error("notice %d is given up: %s", notice.id, error)
                transaction.outbox.remove(notice)
        self._senders[notice.channel].taken(notice)

    def _send(self, notice: Notice, sender: str) -> None:
        """Raises Undelivered for whatever goes wrong: no notice is a reason not to lead."""
        try:
            self._delivery.send(notice, sender)
        except Undelivered:
            raise
        except Exception as error:
            log.exception("notice %d cannot be sent", notice.id)
            raise Undelivered(f"{type(error).__name__}: {error}") from error

    def _of(self, event: EventRecord, channels: dict[str, str]) -> list[Notice]:
        if event.seq is None or not (event.kind in ("started", IDLE) or event.target == "C"):
            return []
        job = self._store.job(event.seq, event.index)
        if job is None:
            return []
        if job.index is not None and MAIL not in channels:
            return []
        attempts = self._store.attempts([job.key])
        attempt = attempts[-1] if attempts else None
        # The job may have begun once more since: what the event itself says is of its own attempt.
        hosts = event.payload.get("nodes") or [
            share.node
            for share in self._store.shares([job.key])
            if attempt is not None and share.attempt == attempt.key
        ]
        return notice_text.notices(event, job, attempt, hosts, channels)


def made(store: LeaderStore, settings: MasterSettings) -> Notices | None:
    """None, and a line in the log, where the settings are wrong: no reason not to lead."""
    try:
        return Notices(store, settings)
    except ConfigError as error:
        log.error("neither mail nor webhooks: %s", error)
        return None
