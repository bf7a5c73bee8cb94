"""The one thread that decides. Events in; leader transactions and messages to agents out.

A turn takes what has come and writes all that follows from it in one transaction, together with the starts of a pass
over the front of the queue when something changed that scheduling looks at. One bad row costs one row: what fails is
logged and left out, and the picture is loaded anew. Trouble with the database itself ends the process.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from queue import Empty, SimpleQueue
from typing import Protocol

from msgspec.structs import replace

from hpcmesos import wire
from hpcmesos.config import MasterSettings
from hpcmesos.errors import DatabaseUnavailable, InvalidValue, LostLeadership
from hpcmesos.master.absence import Absence, Fence
from hpcmesos.master.alarms import Alarms
from hpcmesos.master.chores import Chores
from hpcmesos.master.effects import Desk, Effects, Outcome
from hpcmesos.master.events import (
    Asked,
    Event,
    Fenced,
    InboxHint,
    LinkDown,
    LinkUp,
    PluginTold,
    Received,
    Stop,
)
from hpcmesos.master.gangs import Gangs
from hpcmesos.master.idle_gpus import IdleGpus
from hpcmesos.master.inbox import Inbox
from hpcmesos.master.links_client import Answer, Question
from hpcmesos.master.passes import POLICY, Passes
from hpcmesos.master.plugins import Plugins
from hpcmesos.master.quarantine import Quarantine
from hpcmesos.master.reasons import Reasons
from hpcmesos.master.reconcile import Nodes
from hpcmesos.master.runs import Runs
from hpcmesos.master.standby import WarmPicture
from hpcmesos.master.why import Why
from hpcmesos.model import JobState
from hpcmesos.queue import elements
from hpcmesos.queue.accounting import AccountingFiles, Entry
from hpcmesos.queue.leader_store import LeaderStore, LeaderTransaction
from hpcmesos.queue.records import InboxRow, JobKey, JobRecord, StartRecord

log = logging.getLogger(__name__)

POLL = 0.5  # seconds after which the inbox is looked at without a hint
_GATHER = 0.02  # seconds between two transactions under load, at least
_LONGEST_GATHER = 0.1  # at most: as long as the last turn took, so that a slow machine writes more at once
_ROWS, _FEWEST_ROWS = 1000, 50  # events and rows of the inbox in one transaction
_SLOW, _QUICK = 0.5, 0.1  # seconds of a transaction that make the next ones smaller, or larger again
_LONG = (
    0.1  # seconds of handling events after which what they decided is written: a leader may die any moment
)
_RELOAD_PAUSE, _LONGEST_RELOAD_PAUSE = 1.0, 30.0
_ALARM = "an alarm"
_CALM = 60.0  # seconds without a reload after which the next one need not wait longer
_FATAL = (DatabaseUnavailable, LostLeadership)


class Wire(Protocol):
    """The links, as the planner uses them."""

    def send(self, messages: Iterable[tuple[str, wire.ToAgent]]) -> None: ...

    def drop_all(self, why: str) -> None: ...


class Planner:
    """``run()`` in its own thread; everything else talks to it through ``events``."""

    def __init__(
        self,
        settings: MasterSettings,
        store: LeaderStore,
        links: Wire,
        events: SimpleQueue[Event],
        clock: Callable[[], float] = time.monotonic,
        picture: WarmPicture | None = None,
    ) -> None:
        """``picture``: a standby's; None: everything is loaded now."""
        self.events = events
        self._settings = settings
        self._store = store
        self._links = links
        self._alarms = Alarms(clock)
        self._desk = Desk((picture or self._blank()).take(store), settings, store, self._alarms)
        self._gangs = Gangs(self._desk)
        fence = Fence(settings.fence_command, events.put).ask if settings.fence_command else None
        self._absence = Absence(self._desk, self._gangs, fence)
        self._nodes = Nodes(self._desk, self._gangs, self._absence)
        runs = Runs(self._desk, POLICY)
        self._inbox = Inbox(self._desk, self._gangs, self._nodes, runs)
        zone = datetime.now(UTC).astimezone().tzinfo
        self._accounting = AccountingFiles(settings.state / "accounting", zone)
        self._reasons = Reasons(self._desk)
        self._plugins = Plugins(self._desk, events.put)
        self._passes = Passes(self._desk, self._gangs, self._reasons, runs, self._plugins)
        self._chores = Chores(self._desk)
        self._idle_gpus = IdleGpus(self._desk, self._gangs)
        self._why = Why(self._desk, self._reasons, POLICY, self._plugins)
        self._polled = self._loaded = self._written = float("-inf")
        self._rows = _ROWS
        self._gather = _GATHER
        self._reload_wanted = False
        self._outbox: list[tuple[str, wire.ToAgent]] = []
        self._entries: list[Entry] = []
        self._reload_pause = _RELOAD_PAUSE
        self._quarantine = Quarantine(clock)
        self._recheck: set[JobKey] = set()
        self._begin()

    def run(self) -> None:
        """Until told to stop. Raises DatabaseUnavailable or LostLeadership when this process can no longer lead."""
        while True:
            batch = self._wait()
            if any(isinstance(event, Stop) for event in batch):
                self._plugins.close()
                return
            self.turn(batch)

    def turn(self, batch: Sequence[Event]) -> None:
        """Everything that follows from these events and from what is due."""
        began = self._alarms.clock()
        self._plugins.follow()
        work: list[tuple[str, Effects]] = []
        since = began
        for event in batch:
            if work and self._alarms.clock() - since > _LONG:
                self._write(work, look=False, schedule=False)
                self._flush()
                work, since = [], self._alarms.clock()
            node = event.node if isinstance(event, Received | LinkUp) else None
            self._attempt(work, _label(event), partial(self._on_event, event), node)
        for key in self._take_recheck():
            self._attempt(work, f"dependencies of {key}", partial(self._inbox.judge, key))
        for call in self._alarms.due():
            self._attempt(work, _ALARM, call)
        hinted = any(isinstance(event, InboxHint) for event in batch)
        self._write(work, look=hinted or began - self._polled >= POLL)
        self._flush()
        if self._reload_wanted and began - self._loaded >= self._reload_pause:
            self._reload()
        if self._passes.full_due() and not self._reload_wanted:
            self._full_pass()
            self._flush()
        self._gangs.submissions.keep(self._desk.cluster.arrays.live.keys())
        took = self._alarms.clock() - began
        self._gather = min(_LONGEST_GATHER, max(_GATHER, took))
        self._reasons.turn(took, len(batch))

    # --- events

    def _wait(self) -> list[Event]:
        longest = max(0.0, self._polled + POLL - self._alarms.clock())
        if self._recheck or self._passes.again:
            longest = 0.0
        batch: list[Event] = []
        unhurried = True
        try:
            timeout = self._alarms.next_delay(longest)
            batch.append(self.events.get(timeout=timeout) if timeout > 0 else self.events.get_nowait())
            while len(batch) < self._rows:
                unhurried = unhurried and _can_wait(batch[-1])
                batch.append(self._next_event(unhurried))
        except Empty:
            pass
        return batch

    def _next_event(self, unhurried: bool) -> Event:
        """What has come; while nothing is in a hurry, also what comes for a while after the last transaction.

        So a burst of submissions and ends shares transactions, and a single one is served at once.
        """
        left = self._written + self._gather - self._alarms.clock() if unhurried else 0.0
        return self.events.get(timeout=left) if left > 0 else self.events.get_nowait()

    def _attempt(
        self,
        work: list[tuple[str, Effects]],
        label: str,
        handler: Callable[[], None],
        node: str | None = None,
    ) -> None:
        """Runs one handler; if it fails, nothing of it is written. ``node``: whose message it handles."""
        if self._quarantine.holds(label, node):
            return
        self._desk.effects = Effects()
        try:
            handler()
            work.append((label, self._desk.effects))
        except _FATAL:
            raise
        except InvalidValue as error:  # refused before anything was changed
            log.warning("dropped: %s: %s", label, error)
        except Exception:
            log.exception("dropped: %s", label)
            self._reload_wanted = True
            if label != _ALARM:  # whose alarm it was, nobody knows
                self._quarantine.failed(label, node)

    def _on_event(self, event: Event) -> None:
        match event:
            case LinkUp():
                self._nodes.on_up(event)
            case LinkDown():
                self._nodes.on_down(event)
            case Received(node, message):
                self._nodes.on_message(node, message)
            case Fenced():
                self._absence.on_fenced(event)
            case PluginTold():
                self._plugins.on_told(event)
            case Asked(question, reply):
                reply(self._answer(question))
            case InboxHint() | Stop():
                pass

    def _answer(self, question: Question) -> Answer:
        """A question that cannot be answered is no reason to load the picture anew."""
        try:
            return self._told(question)
        except _FATAL:
            raise
        except Exception:
            log.exception("no answer to %s", question)
            return Answer(explained=[None] * len(question.explain))

    def _told(self, question: Question) -> Answer:
        answer = self._reasons.answer(question)
        if question.metrics:
            answer = replace(answer, metrics=answer.metrics | self._plugins.figures())
        told = [self._why.try_out(question.trial)] if question.trial else self._why.explain(question.explain)
        return replace(answer, explained=told)

    def _take_recheck(self) -> set[JobKey]:
        keys, self._recheck = self._recheck, set()
        return keys

    # --- transactions

    def _write(self, work: list[tuple[str, Effects]], look: bool, schedule: bool = True) -> None:
        """One transaction: all effects, rows of the inbox, and with ``schedule`` what can start then.

        In the middle of a turn nothing starts: nodes that have not been heard yet would be left out. What cannot be
        written together is written one by one.
        """
        wanted = schedule and self._passes.wanted()
        if not look and not wanted and not any(effects for _, effects in work):
            self._after(_together(work), Outcome())
            return
        rows: list[InboxRow] = []
        done = list(work)
        began = self._alarms.clock()
        try:
            with self._store.transaction() as transaction:
                self._desk.clock = transaction.now.timestamp() - self._alarms.clock()
                if look:
                    rows = transaction.drain_inbox(self._rows)
                    self._take_rows(rows, done, transaction)
                effects = _together(done)
                outcome = effects.write(transaction)
                may_start = schedule and not (outcome.outrun or self._reload_wanted)
                decided = self._passes.decide(whole=False) if may_start else []
                started = transaction.apply_starts(decided)
        except _FATAL:
            raise
        except Exception:
            log.exception("%d changes could not be written together", len(done))
            self._one_by_one(work, look)
            return
        now = self._alarms.clock()
        if look and len(rows) < self._rows:
            self._polled = now
        self._written = now
        self._fit(now - began)
        self._after(effects, outcome)
        self._begin_starts(decided, started)

    def _fit(self, took: float) -> None:
        """The database ends transactions that take too long, and a leader with it: a slow machine gets smaller ones."""
        if took > _SLOW:
            self._rows = max(_FEWEST_ROWS, self._rows // 2)
        elif took < _QUICK:
            self._rows = min(_ROWS, 2 * self._rows)

    def _full_pass(self) -> None:
        """Over the whole queue, which may take too long for a transaction to be open meanwhile."""
        decided = self._passes.decide(whole=True)
        if decided:
            with self._store.transaction() as transaction:
                started = transaction.apply_starts(decided)
            self._begin_starts(decided, started)

    def _begin_starts(self, decided: Sequence[StartRecord], started: set[JobKey]) -> None:
        """Sends PREPARE for the gangs whose start is committed."""
        if len(started) < len(decided):
            lost = [str(record.attempt.job) for record in decided if record.attempt.job not in started]
            log.warning("gangs that no longer fit: %s", lost)
            self._reload_wanted = True
        begun = [record for record in decided if record.attempt.job in started]
        if not begun:
            return
        cluster, now = self._desk.cluster, self._desk.now
        self._gangs.submissions.load({record.attempt.seq for record in begun})
        parents = self._take_elements(begun, now)
        work: list[tuple[str, Effects]] = []
        for record in begun:
            key = record.attempt.job
            if record.new and key.index is not None:
                job = elements.started(parents[key.seq], key.index, now)
            else:
                number = record.attempt.number
                job = replace(cluster.jobs[key], state=JobState.RUNNING, attempt=number, started_at=now)
            attempt = cluster.begin(job, record.shares)
            self._gangs.watch(attempt)
            prepare = partial(self._gangs.prepare, attempt, attempt.nodes)
            self._attempt(work, f"PREPARE of {attempt.name}", prepare)
            self._recheck |= cluster.dependents.get(key.seq, set())
        self._after(_together(work), Outcome())

    def _take_elements(self, begun: Iterable[StartRecord], now: datetime) -> dict[int, JobRecord]:
        """The arrays of which elements get rows, as they are without them."""
        indexes: defaultdict[int, list[int]] = defaultdict(list)
        for record in begun:
            if record.new and record.attempt.index is not None:
                indexes[record.attempt.seq].append(record.attempt.index)
        return {seq: self._desk.cluster.take_elements(seq, found, now) for seq, found in indexes.items()}

    def _take_rows(
        self, rows: Sequence[InboxRow], work: list[tuple[str, Effects]], transaction: LeaderTransaction
    ) -> None:
        if not rows:
            self._inbox.fresh = {}
            return
        moves = (move for _, effects in work for move in effects.moves)
        over = {move.key for move in moves if move.target is JobState.COMPLETE}
        self._inbox.load_submitted(rows, transaction, over)
        for row in rows:
            label = f"inbox {row.id} {row.kind} {row.seq}"
            self._attempt(work, label, partial(self._inbox.on_row, row))

    def _one_by_one(self, work: list[tuple[str, Effects]], look: bool) -> None:
        """Each change, and each row of the inbox, in its own transaction; what cannot be written is dropped."""
        self._reload_wanted = True
        for label, effects in work:
            try:
                with self._store.transaction() as transaction:
                    outcome = effects.write(transaction)
            except _FATAL:
                raise
            except Exception:
                log.exception("dropped: %s", label)
            else:
                self._after(effects, outcome)
        if look:
            self._reload()  # the picture shows what those rows would have done
            while self._one_row():
                pass

    def _one_row(self) -> bool:
        """The first row of the inbox; one that cannot be written is taken out all the same. False: there was none."""
        done: list[tuple[str, Effects]] = []
        rows: list[InboxRow] = []
        try:
            with self._store.transaction() as transaction:
                rows = transaction.drain_inbox(1)
                self._take_rows(rows, done, transaction)
                effects = _together(done)
                outcome = effects.write(transaction)
        except _FATAL:
            raise
        except Exception:
            log.exception("dropped: inbox %s", rows)
            self._reload_wanted = True
            with self._store.transaction() as transaction:
                transaction.drain_inbox(1)
        else:
            self._after(effects, outcome)
        return bool(rows)

    def _after(self, effects: Effects, outcome: Outcome) -> None:
        """What may follow now that it is durable."""
        if outcome.outrun:
            log.error("the database had other states for jobs %s", sorted(map(str, outcome.outrun)))
            self._reload_wanted = True
        for name, uuids in outcome.refused.items():
            for uuid in uuids:
                log.error("GPU refused, another node has it node=%s gpu=%s", name, uuid)
                self._desk.cluster.nodes[name].gpus.pop(uuid, None)
        for seq in effects.recheck:  # asked now: some may have been submitted in the same transaction
            self._recheck |= self._desk.cluster.dependents.get(seq, set())
        self._outbox += effects.messages
        self._entries += effects.accounting
        if effects.schedules:  # one may have put a job into the inbox
            self.events.put(InboxHint())

    def _flush(self) -> None:
        """Sends what is durable, to each node at once: a node that is woken twice costs twice."""
        messages, self._outbox = self._outbox, []
        entries, self._entries = self._entries, []
        self._links.send(messages)
        try:
            self._accounting.append(entries)
        except OSError:
            log.exception("accounting lines lost: %s", [str(entry) for entry in entries])

    # --- the picture

    def _begin(self) -> None:
        """What has to be looked at after a load."""
        cluster = self._desk.cluster
        with self._store.transaction() as transaction:
            self._desk.clock = transaction.now.timestamp() - self._alarms.clock()
        self._loaded = self._alarms.clock()
        for attempt in cluster.attempts.values():
            self._gangs.resume(attempt)
        self._absence.watch_all()
        self._chores.begin()
        self._idle_gpus.begin()
        work: list[tuple[str, Effects]] = []
        waiting = (JobState.WAITING, JobState.HELD, JobState.QUEUED)
        for job in list(cluster.jobs.values()):
            # Most of a long queue waits for nothing but its turn.
            if job.state is JobState.WAITING or (job.dependencies and job.state in waiting):
                self._attempt(work, f"job {job.key}", partial(self._inbox.settle, job))
        self._write(work, look=False)
        self._flush()

    def _blank(self) -> WarmPicture:
        return WarmPicture(self._settings.server)

    def _reload(self) -> None:
        """The picture anew from the database; agents dial again and tell what they hold."""
        log.warning("loading the picture anew")
        calm = self._alarms.clock() - self._loaded > _CALM
        self._reload_pause = _RELOAD_PAUSE if calm else min(_LONGEST_RELOAD_PAUSE, 2 * self._reload_pause)
        self._reload_wanted = False
        self._alarms.clear()
        self._desk.cluster = self._blank().take(self._store)
        self._links.drop_all("the leader loads its picture anew")
        self._begin()


def _together(work: Iterable[tuple[str, Effects]]) -> Effects:
    total = Effects()
    for _, effects in work:
        total.add(effects)
    return total


def _can_wait(event: Event) -> bool:
    """Submissions, wishes and ends: their users do not notice some milliseconds."""
    return isinstance(event, InboxHint) or (
        isinstance(event, Received) and isinstance(event.message, wire.Ended)
    )


def _label(event: Event) -> str:
    match event:
        case Received(node, message):
            return f"{type(message).__name__} of {getattr(message, 'attempt', '')} from {node}"
        case LinkUp(node) | LinkDown(node):
            return f"{type(event).__name__} of {node}"
        case _:
            return type(event).__name__
