"""The life of an attempt as the leader steers it: PREPARE, GO, END, and its end (see `completion`)."""

from __future__ import annotations

import base64
import logging
import signal
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from msgspec import structs

from hpcmesos import wire
from hpcmesos.errors import StateError
from hpcmesos.master import billing, gang_clock
from hpcmesos.master.arrays import Arrays
from hpcmesos.master.billing import Billing
from hpcmesos.master.cluster import FINAL, Attempt, Phase
from hpcmesos.master.completion import LOSSES, TROUBLE, UNHARMED, Completion
from hpcmesos.master.effects import Desk
from hpcmesos.master.reports import clean, reported, verdict
from hpcmesos.master.spec import common_part, own_part, prepare_timeout
from hpcmesos.master.submissions import Submissions, Submitted
from hpcmesos.model import Cause, JobState
from hpcmesos.queue import accounting
from hpcmesos.queue.records import Ending, JobKey, JobRecord, NodeRecord, ShareRecord
from hpcmesos.units import parse_size

log = logging.getLogger(__name__)

PREEMPT_GRACE = "preempt_grace"
"""Attribute of a queue: seconds between SIGUSR1 and SIGTERM for its jobs that are preempted; unset: no SIGUSR1."""


class Gangs:
    """Steers every attempt; its methods are called within a handler and note effects on the desk."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.arrays = Arrays(desk)
        self.submissions = Submissions(desk.reader)
        self.billing = Billing(desk, self.submissions)
        self.completion = Completion(desk, self.arrays, self.billing)

    # --- start

    def prepare(self, attempt: Attempt, nodes: Iterable[str]) -> None:
        """Sends PREPARE to these members."""
        if attempt.spec is None:
            attempt.spec = self._spec(attempt)
        secret: dict[str, Any] = {}
        if names := attempt.spec["secrets"]:
            values = self._secrets(attempt.spec["owner"], names)
            if missing := sorted(name for name, value in values.items() if value is None):
                self.desk.alarms.set(0.0, partial(self._withhold, attempt.name, missing))
                return
            secret = {"secret_values": values}
        for node in nodes:
            spec = attempt.spec | secret | {"me": attempt.nodes.index(node)}
            self.desk.send(node, wire.Prepare(attempt=attempt.name, spec=spec))

    def _secrets(self, owner: str, names: Collection[str]) -> dict[str, str | None]:
        """The owner's secrets, base64, only for the wire; None: not there any more, or sealed with another key."""
        from hpcmesos.master import vault  # a leader that takes over need not wait for cryptography

        kept = {secret.name: secret.sealed for secret in self.desk.reader.secrets(owner)}
        values: dict[str, str | None] = dict.fromkeys(names)
        for name in set(names) & kept.keys():
            try:
                value = vault.unseal(self.desk.settings.state, owner, name, kept[name])
            except StateError as error:
                log.error("%s", error)
            else:
                values[name] = base64.b64encode(value).decode()
        return values

    def _withhold(self, name: str, missing: Sequence[str]) -> None:
        """A job without its secrets waits for its owner."""
        attempt = self.desk.cluster.attempts.get(name)
        if attempt is not None and attempt.phase is Phase.PREPARING and attempt.end is None:
            attempt.hold = "u"
            text = f"secret {', '.join(missing)} is not there any more: hpcmesos secret set, then qrls"
            self.start_failed(attempt, None, text)

    def _spec(self, attempt: Attempt) -> dict[str, Any]:
        submitted = self.submissions.get(attempt.key.seq)
        job = structs.replace(self.desk.cluster.jobs[attempt.key.job], submission=submitted.submission)
        attempt.billing = billing.of(submitted.submission)
        members = [(attempt.shares[name], self._described(attempt, name)) for name in attempt.nodes]
        return self._common(job, submitted) | own_part(job, members, self.desk.settings)

    def _described(self, attempt: Attempt, name: str) -> NodeRecord:
        """A member's node, with its GPUs if the attempt has some of them."""
        node = self.desk.cluster.nodes[name]
        gpus = tuple(node.gpus.values()) if attempt.shares[name].gpus else ()
        return structs.replace(node.record, gpus=gpus) if gpus else node.record

    def _common(self, job: JobRecord, submitted: Submitted) -> dict[str, Any]:
        """What the specs of the job, or of all elements of its array, have in common; made once."""
        queue = self.desk.cluster.queues.get(job.queue)
        demanded = queue is not None and queue.attributes.get("ring") == "check"
        limit = self._set_for(job.queue, "log_limit")
        depends = (job.request, job.queue, job.egroup, demanded, limit)
        if submitted.common is None or submitted.common[0] != depends:
            part = common_part(
                job,
                submitted.script,
                self.desk.settings,
                ring_demanded=demanded,
                log_limit=parse_size(limit) if limit else None,
            )
            submitted.common = depends, part
        return submitted.common[1]

    def _set_for(self, queue: str, name: str) -> str:
        """The attribute of the queue, else of the server; empty: neither has it."""
        cluster = self.desk.cluster
        own = cluster.queues[queue].attributes.get(name) if queue in cluster.queues else None
        return own or cluster.attributes.get(name, "")

    def watch(self, attempt: Attempt) -> None:
        """Gives the members their time to get ready."""
        name = attempt.name  # an alarm that kept the attempt would keep thousands that are long over
        self.desk.alarms.set(self._patience(attempt), lambda: self._too_late(name))

    def _patience(self, attempt: Attempt) -> float:
        return prepare_timeout(self.desk.cluster.jobs[attempt.key.job].request, self.desk.settings)

    def _too_late(self, name: str) -> None:
        attempt = self.desk.cluster.attempts.get(name)
        if attempt is None or attempt.phase is not Phase.PREPARING or attempt.end is not None:
            return
        if len(attempt.nodes) == 1:
            self._never_began(attempt)
            return
        late = [node for node in attempt.nodes if node not in attempt.ready]
        linked = [node for node in late if self.desk.cluster.nodes[node].link is not None]
        why = f"not ready within {self._patience(attempt):g} s: {', '.join(late)}"
        # A node that is away is the likelier culprit than one that may be waiting for it.
        self.start_failed(attempt, next((n for n in late if n not in linked), late[0]), why)

    def _never_began(self, attempt: Attempt) -> None:
        """PREPARE was GO as well, so the script may run: only the node's own word ends it."""
        if self.desk.cluster.nodes[attempt.head].link is None:
            self.watch(attempt)
        else:
            why = f"node {attempt.head} has not begun within {self._patience(attempt):g} s"
            self.end(attempt, Cause.START_FAILED, attempt.head, why)

    def watch_for_head(self, attempt: Attempt) -> None:
        """A member has never had it, so it has not begun: its head has as long to come as members to get ready."""
        self.desk.alarms.set(self._patience(attempt), partial(self._without_head, attempt.name))

    def _without_head(self, name: str) -> None:
        attempt = self.desk.cluster.attempts.get(name)
        if attempt is None or attempt.phase is not Phase.UNSURE or attempt.end is not None:
            return
        if self.desk.cluster.nodes[attempt.head].link is None:
            missing = ", ".join(sorted(attempt.missing))
            self.start_failed(
                attempt, attempt.head, f"node {attempt.head} is away, and {missing} never had it"
            )

    def on_ready(self, attempt: Attempt, node: str) -> None:
        """A member is prepared; once all are, the head hears GO."""
        attempt.ready.add(node)
        if (
            attempt.phase is Phase.PREPARING
            and attempt.end is None
            and attempt.ready.issuperset(attempt.nodes)
        ):
            attempt.phase = Phase.STARTING
            self.desk.send(attempt.head, wire.Go(attempt=attempt.name))

    def on_started(self, attempt: Attempt, started_at: float | None) -> None:
        """The script runs on the head."""
        if attempt.phase in (Phase.RUNNING, Phase.OVER):
            return
        attempt.phase, attempt.spec, attempt.started_at = Phase.RUNNING, None, started_at
        job = self.desk.cluster.jobs[attempt.key.job]
        entry = accounting.started(self.billing.of_job(job, attempt), attempt.placed, self.desk.now)
        self.desk.effects.accounting.append(entry)
        for message in attempt.untold:
            self.tell(attempt, message)
        attempt.untold = []
        for node in attempt.missing:
            if node in attempt.shares:
                self.part_lost(attempt, node, "it knows nothing of the attempt")

    def tell(self, attempt: Attempt, message: wire.Signal | wire.Alter) -> None:
        """Sends the head what concerns the running script; before the script runs there, it is kept until it does.

        A head that still prepares has nothing that could take it.
        """
        if attempt.phase in (Phase.PREPARING, Phase.STARTING):
            attempt.untold.append(message)
        elif attempt.phase is not Phase.OVER and attempt.end is None:  # what is told to end needs none
            self.desk.send(attempt.head, message)

    def on_refused(self, attempt: Attempt, node: str, culprit: str, reason: str) -> None:
        """A member cannot prepare; nothing of the attempt is there."""
        if node in attempt.shares:
            self.desk.release(attempt, node)
        if culprit == attempt.head != node and attempt.ready - {attempt.head, node}:
            culprit = node  # others have reached the head
        if attempt.phase is not Phase.OVER:
            self.start_failed(attempt, culprit or node, reason)

    def start_failed(self, attempt: Attempt, culprit: str | None, reason: str) -> None:
        """The attempt is over before its script ran."""
        record = verdict(attempt, self.desk.now, Cause.START_FAILED, culprit, reason)
        if attempt.end is None:
            self.end(attempt, Cause.START_FAILED, culprit, reason)
        self.completion.finish(attempt, record)

    def tell_walltime(self, attempt: Attempt) -> None:
        """Tells the head the walltime that holds now; it had one from the start."""
        job = self.desk.cluster.jobs[attempt.key.job]
        if attempt.spec is not None:
            attempt.spec["walltime"] = job.request.walltime  # for a PREPARE that is sent again
        self.tell(attempt, self._altered(job, attempt))

    def tell_suspended(self, attempt: Attempt, *nodes: str) -> None:
        """Tells these nodes, without any: all, whether the processes stand still."""
        job = self.desk.cluster.jobs[attempt.key.job]
        for node in nodes or list(attempt.shares):
            if node == attempt.head:
                self.tell(attempt, self._altered(job, attempt))
            else:
                self.desk.send(node, self._altered(job, attempt))

    def _altered(self, job: JobRecord, attempt: Attempt) -> wire.Alter:
        return wire.Alter(attempt=attempt.name, walltime=job.request.walltime, suspended=job.suspended)

    # --- end

    def end(
        self, attempt: Attempt, cause: Cause, culprit: str | None, text: str, kill_delay: float | None = None
    ) -> None:
        """Tells all members that hold a share to end; those that are away are told at their hello."""
        self._tell_end(attempt, self._ending(attempt, cause, culprit, text, kill_delay))

    def _ending(
        self, attempt: Attempt, cause: Cause, culprit: str | None, text: str, kill_delay: float | None = None
    ) -> Ending:
        delay = self.kill_delay(attempt.key.job) if kill_delay is None else kill_delay
        hurry = cause in TROUBLE and len(attempt.nodes) > 1  # as its own members do
        return Ending(
            cause=cause,
            at=self.desk.now.timestamp(),
            kill_delay=min(delay, gang_clock.HURRY) if hurry else delay,
            culprit=clean(culprit),
            message=clean(text),
            preempted_for=attempt.preempted_for,
        )

    def _decide(self, attempt: Attempt, ending: Ending) -> None:
        """Durable before anybody hears of it: a leader that dies in between leaves it to the next one."""
        attempt.ending = self.desk.effects.endings[attempt.key] = ending

    def _tell_end(self, attempt: Attempt, ending: Ending) -> None:
        self._decide(attempt, ending)
        attempt.end = _end(attempt, ending)
        for node in attempt.shares:
            self.desk.send(node, attempt.end)

    def preempt(self, attempt: Attempt, job: str) -> None:
        """The attempt has to go for a job of a higher level; it may save its work first, if its queue gives it time."""
        cluster, running = self.desk.cluster, self.desk.cluster.jobs[attempt.key.job]
        if attempt.end is not None or attempt.preempted_for or running.state is not JobState.RUNNING:
            return
        queue = cluster.queues.get(running.queue)
        grace = float(queue.attributes.get(PREEMPT_GRACE, "0")) if queue else 0.0
        ending = self._ending(attempt, Cause.PREEMPTED, None, f"preempted for {job}")
        ending = replace(ending, preempted_for=job)
        cluster.holdings.moved.add(attempt.key.job)
        self.desk.move(running, running.state, "preempted", {"for": job, "grace": grace})
        # A script on one node runs before its start is told.
        if grace > 0 and (attempt.phase is Phase.RUNNING or len(attempt.nodes) == 1):
            self._decide(attempt, replace(ending, at=ending.at + grace))
            self.tell(attempt, wire.Signal(attempt=attempt.name, signal=int(signal.SIGUSR1)))
            self.desk.alarms.set(grace, lambda: self._preempt_now(attempt.name))
        else:
            self._tell_end(attempt, ending)

    def _preempt_now(self, name: str) -> None:
        attempt = self.desk.cluster.attempts.get(name)
        if attempt is not None and attempt.ending and attempt.phase is not Phase.OVER and attempt.end is None:
            self._tell_end(attempt, attempt.ending)

    def kill_delay(self, key: JobKey) -> float:
        """The queue's, else the server's, else the settings'; of a job that is complete its queue is not known."""
        job = self.desk.cluster.jobs.get(key)
        text = self._set_for(job.queue if job is not None else "", "kill_delay")
        return float(text) if text else self.desk.settings.kill_delay

    def resume(self, attempt: Attempt) -> None:
        """Goes on with the end that an earlier leader decided; members hear of it at their hello."""
        ending = attempt.ending
        if attempt.phase is Phase.OVER:
            attempt.end = _end(attempt, ending) if ending else None
            self.completion.await_parts(attempt)
            return
        if ending is None:
            return
        left = ending.at - self.desk.now.timestamp()
        if ending.preempted_for and left > 0:
            self.desk.alarms.set(left, lambda: self._preempt_now(attempt.name))
            return
        attempt.end = _end(attempt, ending)
        fell = ending.cause in LOSSES or (ending.cause in TROUBLE and any(self._parts_over(attempt)))
        if fell and ending.culprit is not None:
            self._watch_fallen(attempt, ending.cause, ending.culprit, ending.message, left)
        else:
            self._watch_head(attempt)

    def on_ended(self, attempt: Attempt, node: str, report: wire.Ended) -> None:
        """A node's part is over. The head's report is the attempt's, unless there was a verdict before."""
        self.desk.send(node, wire.Acknowledged(attempt=attempt.name))
        if node in attempt.shares:
            self.desk.release(attempt, node)
        if attempt.phase is Phase.OVER:
            return
        if node == attempt.head:
            if report.started_at:
                self.on_started(attempt, report.started_at)  # a short one says both at once
            self.completion.finish(attempt, reported(attempt, self.desk.now, report))
        elif attempt.end is None and Cause(report.cause) in TROUBLE:
            culprit = report.culprit or node
            self._member_fell(attempt, Cause(report.cause), culprit, clean(report.message), report.ago)
        elif _by_word(attempt, report.cause):
            self._watch_head(attempt)

    def part_lost(self, attempt: Attempt, node: str, why: str) -> None:
        """A node denies a part that must have been there."""
        text = f"node {node} lost its part: {why}"
        cause = attempt.final or Cause.NODE_LOST
        self.desk.release(attempt, node)
        if attempt.phase is Phase.OVER:
            return
        if node == attempt.head:
            record = verdict(attempt, self.desk.now, cause, node, text)
            if attempt.end is None:
                self.end(attempt, cause, node, text)
            self.completion.finish(attempt, record)
        elif attempt.end is None:
            self._member_fell(attempt, cause, node, text)
        elif _by_word(attempt, cause):
            self._watch_head(attempt)

    def never_began(self, attempt: Attempt) -> bool:
        """The head has never had it: when it was told to end for no loss, that is the end it has; whether so."""
        ending = attempt.ending
        if attempt.end is None or ending is None or ending.cause not in UNHARMED:
            return False
        if attempt.phase in (Phase.RUNNING, Phase.OVER):
            return False
        self.desk.release(attempt, attempt.head)
        self.completion.finish(
            attempt, verdict(attempt, self.desk.now, ending.cause, ending.culprit, ending.message)
        )
        return True

    def _member_fell(self, attempt: Attempt, cause: Cause, culprit: str, text: str, ago: float = 0.0) -> None:
        """``ago``: s since the member's part ended, if positive; the head's clock has run as long."""
        longest = gang_clock.patience(attempt, cause, culprit) - gang_clock.HEARING
        ago = min(ago, longest) if ago > 0 else 0.0  # also for NaN
        ending = self._ending(attempt, cause, culprit, text)
        self._tell_end(attempt, replace(ending, at=ending.at - ago))
        self._watch_fallen(attempt, cause, culprit, text, -ago)

    def _watch_fallen(self, attempt: Attempt, cause: Cause, culprit: str, text: str, since: float) -> None:
        """``since``: s, at most 0: when the member fell."""
        patience = gang_clock.patience(attempt, cause, culprit) + since
        name = attempt.name
        self.desk.alarms.set(
            max(gang_clock.LINKING, patience), lambda: self._gang_lost(name, cause, culprit, text)
        )

    def _gang_lost(self, name: str, cause: Cause, culprit: str, text: str) -> None:
        """The gang clock has ended every part by now; a head that still is silent gets no more time."""
        attempt = self.desk.cluster.attempts.get(name)
        if attempt is None or attempt.phase is Phase.OVER:
            return
        if self.desk.cluster.nodes[attempt.head].link is None:
            self.completion.finish(attempt, verdict(attempt, self.desk.now, cause, culprit, text))
        else:
            self.desk.alarms.set(gang_clock.GANG_LOSS, lambda: self._gang_lost(name, cause, culprit, text))

    def _watch_head(self, attempt: Attempt) -> None:
        self.desk.alarms.set(gang_clock.GANG_LOSS, partial(self._head_silent, attempt.name))

    def _head_silent(self, name: str) -> None:
        """A gang was told to end: a head that is away has ended too, by that word or by the gang clock, once a member
        has. It may have heard the word when its link was lost, or from a member, when that one ended at the latest.
        """
        attempt = self.desk.cluster.attempts.get(name)
        if attempt is None or attempt.phase is Phase.OVER or (ending := attempt.ending) is None:
            return
        head = self.desk.cluster.nodes[attempt.head]
        told = max(head.away_since, attempt.released)
        left = told + ending.kill_delay + gang_clock.GANG_LOSS - self.desk.alarms.clock()
        if head.link is not None or left > 0:
            again = gang_clock.GANG_LOSS if head.link is not None else left
            self.desk.alarms.set(again, partial(self._head_silent, name))
            return
        if any(_obeyed(part, ending) for part in self._parts_over(attempt)):
            record = verdict(attempt, self.desk.now, ending.cause, ending.culprit, ending.message)
            self.completion.finish(attempt, record, grace=0.0)

    def _parts_over(self, attempt: Attempt) -> list[ShareRecord]:
        """Shares that were given back, also to earlier leaders."""
        parts = self.desk.reader.shares([attempt.key.job])
        return [part for part in parts if part.attempt == attempt.key and part.released_at is not None]


def _by_word(attempt: Attempt, cause: str) -> bool:
    """Whether a member's part has ended when the gang was told to, for no trouble, and not with a script that ended by
    itself.
    """
    told = attempt.ending
    return told is not None and told.cause not in TROUBLE and cause in (told.cause, *TROUBLE)


def _obeyed(part: ShareRecord, ending: Ending) -> bool:
    """Whether a part was not over before it was told: then the script ended by itself, which the head knows."""
    over = part.released_at
    return ending.cause in FINAL or (over is not None and over.timestamp() >= ending.at)


def _end(attempt: Attempt, ending: Ending) -> wire.End:
    return wire.End(
        attempt=attempt.name, cause=ending.cause, kill_delay=ending.kill_delay, message=ending.message
    )
