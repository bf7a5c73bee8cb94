"""The life of an attempt as the leader steers it: PREPARE, GO, END, its end, and what then becomes of the job."""

from __future__ import annotations

import base64
import logging
import signal
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from hpcmesos import wire
from hpcmesos.errors import StateError
from hpcmesos.gang.feasible import can_ever_fit
from hpcmesos.master import cycle, vault
from hpcmesos.master.arrays import Arrays
from hpcmesos.master.cluster import Attempt, Phase
from hpcmesos.master.effects import Desk
from hpcmesos.master.gpu_use import with_gpus
from hpcmesos.master.spec import build_spec, prepare_timeout
from hpcmesos.master.submissions import Submissions
from hpcmesos.model import Cause, JobState
from hpcmesos.queue import accounting
from hpcmesos.queue.records import AttemptRecord, Ending, JobRecord
from hpcmesos.queue.states import exit_status
from hpcmesos.units import parse_size

log = logging.getLogger(__name__)

T = TypeVar("T")

GANG_LOSS = 30.0
"""Seconds after which the other parts of a lost gang have ended by their own clocks (docs: gang clock, 20 s)."""

ACCUSED = 6.0
"""The same when a member has not heard the head for the gang's silence: the head's clock has run as long."""

HEARING = 5.0
"""Seconds that the head has from a member's report on, however long that one had to wait for a leader: the head's own,
and truer, may have waited as well. An agent's longest pause between two dials is 2 s, then a master that knows of no
leader yet answers after 1 s, then it dials.
"""

LINKING = 2.0
"""Seconds that the next leader gives the nodes to link before it gives up the head of such a gang.

Nine of ten agents need less than 1.7 (docs/nodes.md, Chaos), and the head has had its time under leaders before.
"""

PREEMPT_GRACE = "preempt_grace"
"""Attribute of a queue: seconds between SIGUSR1 and SIGTERM for its jobs that are preempted; unset: no SIGUSR1."""

MAX_FAILED_STARTS = 5
_BILLED = ("account", "resource_list")
_BILLED_AT_ONCE = 500  # submissions read together: each has a user's environment
_LOSSES = frozenset({Cause.NODE_LOST, Cause.GPU_LOST})
_UNHARMED = frozenset({Cause.START_FAILED, Cause.PREEMPTED})
"""Ends that cost a job nothing: it waits again."""
_SAID_SO = frozenset({Cause.APP, Cause.SIGNAL})
"""How a job ends that was told to save its work and did not end with 0; with 0 it is complete."""

_BY_ITS_NODE = frozenset({Cause.DELETED, Cause.APP, Cause.OK, Cause.SIGNAL})
"""Ends of which a node may have to tell something: nobody at a terminal, a prologue's refusal, files not staged out."""
_TROUBLE = _LOSSES | {Cause.START_FAILED, Cause.OOM}  # of a member: the whole attempt ends with it


class Gangs:
    """Steers every attempt; its methods are called within a handler and note effects on the desk."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.arrays = Arrays(desk)
        self.submissions = Submissions(desk.reader)

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
        job = replace(self.desk.cluster.jobs[attempt.key.job], submission=submitted.submission)
        attempt.billing = _billing(submitted.submission)
        nodes = self.desk.cluster.nodes
        members = []
        for name in attempt.nodes:
            node = nodes[name]
            members.append((attempt.shares[name], replace(node.record, gpus=tuple(node.gpus.values()))))
        queue = self.desk.cluster.queues.get(job.queue)
        demanded = queue is not None and queue.attributes.get("ring") == "check"
        limit = self._set_for(job.queue, "log_limit")
        return build_spec(
            job,
            members,
            submitted.script,
            self.desk.settings,
            ring_demanded=demanded,
            log_limit=parse_size(limit) if limit else None,
        )

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

    def on_ready(self, attempt: Attempt, node: str) -> None:
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
        entry = accounting.started(self._billed(job, attempt), attempt.placed, self.desk.now)
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

    def _billed(self, job: JobRecord, attempt: Attempt) -> JobRecord:
        """The job with what accounting wants to know; the picture's jobs have no submission."""
        if not attempt.billing:
            self._read_billing(attempt)
        return replace(job, submission=attempt.billing)

    def _read_billing(self, attempt: Attempt) -> None:
        """With those of other jobs: after a takeover none is known, and nodes have many ends to tell."""
        unread = defaultdict(list, {attempt.key.seq: [attempt]})
        for one in self.desk.cluster.attempts.values():
            if not one.billing:
                unread[one.key.seq].append(one)
        seqs = list(islice(unread, _BILLED_AT_ONCE))
        found = self.submissions.currents(seqs)
        for seq in seqs:
            for one in unread[seq]:
                one.billing = _billing(found[seq])

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
        record = self.verdict(attempt, Cause.START_FAILED, culprit, reason)
        if attempt.end is None:
            self.end(attempt, Cause.START_FAILED, culprit, reason)
        self.finish(attempt, record)

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
        return Ending(
            cause=cause,
            at=self.desk.now.timestamp(),
            kill_delay=self._kill_delay(attempt) if kill_delay is None else kill_delay,
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

    def _kill_delay(self, attempt: Attempt) -> float:
        """The queue's, else the server's, else the settings'."""
        job = self.desk.cluster.jobs.get(attempt.key.job)
        text = self._set_for(job.queue if job is not None else "", "kill_delay")
        return float(text) if text else self.desk.settings.kill_delay

    def resume(self, attempt: Attempt) -> None:
        """Goes on with the end that an earlier leader decided; members hear of it at their hello."""
        ending = attempt.ending
        if ending is None or attempt.phase is Phase.OVER:
            return
        left = ending.at - self.desk.now.timestamp()
        if ending.preempted_for and left > 0:
            self.desk.alarms.set(left, lambda: self._preempt_now(attempt.name))
            return
        attempt.end = _end(attempt, ending)
        if ending.cause in _LOSSES and ending.culprit is not None:
            self._watch_lost(attempt, ending.cause, ending.culprit, ending.message, left)

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
            self.finish(attempt, self._report(attempt, report))
        elif attempt.end is None and Cause(report.cause) in _TROUBLE:
            culprit = report.culprit or node
            self._member_fell(attempt, Cause(report.cause), culprit, clean(report.message), report.ago)

    def part_lost(self, attempt: Attempt, node: str, why: str) -> None:
        """A node denies a part that must have been there."""
        text = f"node {node} lost its part: {why}"
        cause = attempt.final or Cause.NODE_LOST
        self.desk.release(attempt, node)
        if attempt.phase is Phase.OVER:
            return
        if node == attempt.head:
            record = self.verdict(attempt, cause, node, text)
            if attempt.end is None:
                self.end(attempt, cause, node, text)
            self.finish(attempt, record)
        elif attempt.end is None:
            self._member_fell(attempt, cause, node, text)

    def never_began(self, attempt: Attempt) -> bool:
        """The head has never had it: when it was told to end for no loss, that is the end it has; whether so."""
        ending = attempt.ending
        if attempt.end is None or ending is None or ending.cause not in _UNHARMED:
            return False
        if attempt.phase in (Phase.RUNNING, Phase.OVER):
            return False
        self.desk.release(attempt, attempt.head)
        self.finish(attempt, self.verdict(attempt, ending.cause, ending.culprit, ending.message))
        return True

    def _member_fell(self, attempt: Attempt, cause: Cause, culprit: str, text: str, ago: float = 0.0) -> None:
        """``ago``: s since the member's part ended, if positive; the head's clock has run as long."""
        ago = min(ago, _patience_with(attempt, culprit) - HEARING) if ago > 0 else 0.0  # also for NaN
        ending = self._ending(attempt, cause, culprit, text)
        self._tell_end(attempt, replace(ending, at=ending.at - ago))
        if cause in _LOSSES:
            self._watch_lost(attempt, cause, culprit, text, -ago)

    def _watch_lost(
        self, attempt: Attempt, cause: Cause, culprit: str, text: str, since: float = 0.0
    ) -> None:
        """``since``: s, at most 0: when the loss was noticed."""
        patience = _patience_with(attempt, culprit) + since
        name = attempt.name
        self.desk.alarms.set(max(LINKING, patience), lambda: self._gang_lost(name, cause, culprit, text))

    def _gang_lost(self, name: str, cause: Cause, culprit: str, text: str) -> None:
        """The gang clock has ended every part by now; a head that still is silent gets no more time."""
        attempt = self.desk.cluster.attempts.get(name)
        if attempt is None or attempt.phase is Phase.OVER:
            return
        if self.desk.cluster.nodes[attempt.head].link is None:
            self.finish(attempt, self.verdict(attempt, cause, culprit, text))
        else:
            self.desk.alarms.set(GANG_LOSS, lambda: self._gang_lost(name, cause, culprit, text))

    def verdict(self, attempt: Attempt, cause: Cause, culprit: str | None, text: str) -> AttemptRecord:
        """An end that no head reported."""
        started = moment(attempt.started_at)
        return AttemptRecord(
            key=attempt.key,
            started_at=started,
            ended_at=self.desk.now,
            cause=cause,
            culprit=clean(culprit),
            message=clean(text),
        )

    def _report(self, attempt: Attempt, report: wire.Ended) -> AttemptRecord:
        culprit = report.culprit or attempt.culprit
        # A head and a member accuse each other: of two, the one who told us first is right. A head of more hears the
        # others, and accuses itself when it hears none of them.
        knows = attempt.culprit == attempt.head and len(attempt.nodes) > 2 and report.culprit
        if report.cause == Cause.NODE_LOST and attempt.culprit and not knows:
            culprit = attempt.culprit
        return AttemptRecord(
            key=attempt.key,
            started_at=moment(report.started_at or attempt.started_at),
            ended_at=moment(report.ended_at) or self.desk.now,
            cause=Cause(report.cause),
            code=report.code,
            signal=report.signal,
            forced=report.forced,
            culprit=clean(culprit),
            message=clean(report.message),
            usage=with_gpus(report.usage, attempt.head, attempt.uses),
            ranks=tuple(clean(report.ranks)),
            steps=tuple(clean(report.steps)),
            stdout_tail=report.stdout_tail,
            stderr_tail=report.stderr_tail,
            stdout_path=clean(report.stdout_path),
            stderr_path=clean(report.stderr_path),
            undelivered=clean(report.undelivered),
        )

    def finish(self, attempt: Attempt, record: AttemptRecord) -> None:
        """The attempt is over: its job is complete or waits again."""
        desk = self.desk
        attempt.phase, attempt.spec = Phase.OVER, None
        if attempt.preempted_for and record.cause in _SAID_SO:
            text = f"preempted for {attempt.preempted_for}: {record.message}".removesuffix(": ")
            record = replace(record, cause=Cause.PREEMPTED, message=text)
        desk.effects.finished.append(record)
        level = logging.WARNING if record.cause in _TROUBLE else logging.DEBUG
        log.log(
            level,
            "attempt over attempt=%s cause=%s culprit=%s message=%r",
            attempt.name,
            record.cause,
            record.culprit,
            record.message,
        )
        job = desk.cluster.jobs[attempt.key.job]
        if self._may_run_again(job, attempt, record):
            self._requeue(job, attempt, record)
        else:
            self._complete(job, attempt, record)
        if not attempt.shares:
            desk.cluster.drop(attempt)

    def _may_run_again(self, job: JobRecord, attempt: Attempt, record: AttemptRecord) -> bool:
        if attempt.final or job.state is not JobState.RUNNING:
            return False
        if record.cause in _LOSSES:
            return job.rerunable and job.charged_attempts + 1 < self.desk.settings.max_attempts
        return record.cause in _UNHARMED

    def _requeue(self, job: JobRecord, attempt: Attempt, record: AttemptRecord) -> None:
        """Back to its old place in the queue, away from the culprit; too many failed starts hold it."""
        changes: dict[str, Any] = {
            "comment": f"attempt {job.attempt}: {record.cause}: {record.message}"[:1000]
        }
        if job.suspended:
            changes["suspended"] = False
        excluded = self._excluded(job, record.culprit)
        if excluded != job.excluded:
            changes["excluded"] = excluded
        if record.cause in _LOSSES:
            changes["charged_attempts"] = job.charged_attempts + 1
        if attempt.preempted_for:
            self.desk.cluster.preempted.add(job.key)
        if attempt.hold:
            changes["holds"] = "".join(sorted({*job.holds, *attempt.hold}))
        elif record.cause is Cause.START_FAILED and (failed := self._failed_starts(job)) >= MAX_FAILED_STARTS:
            changes["holds"] = "".join(sorted({*job.holds, "s"}))
            text = f"held after {failed} failed starts; the last: {record.message}"
            changes["comment"] = text[:1000]
        target = resting_state(changes.get("holds", job.holds), job.not_before, self.desk.now)
        payload = {"attempt": job.attempt, "cause": record.cause, "culprit": record.culprit}
        if attempt.shares:
            # Set before the move: a job in Q is a candidate at once.
            self.desk.cluster.blocked.add(job.key)
            self.desk.alarms.set(GANG_LOSS, lambda: self.desk.cluster.unblock(job.key))
        waiting = self.desk.move(job, target, "requeued", payload, **changes)
        self.desk.effects.accounting.append(accounting.requeued(waiting, self.desk.now))

    def _failed_starts(self, job: JobRecord) -> int:
        """Failed starts of a job whose last one has just failed. Attempts that were preempted or rerun do not count."""
        most = job.attempt - job.charged_attempts
        if most < MAX_FAILED_STARTS:
            return most  # too few, whatever they were
        earlier = [a for a in self.desk.reader.attempts([job.key], tails=False) if a.key.number < job.attempt]
        return 1 + sum(attempt.cause is Cause.START_FAILED for attempt in earlier)

    def _excluded(self, job: JobRecord, culprit: str | None) -> tuple[str, ...]:
        """Nodes not to use again; none is added without which the job could never run."""
        excluded = job.excluded
        for name in culprit.split("+") if culprit else ():
            if (
                name not in excluded
                and name in self.desk.cluster.nodes
                and self._could_do_without(job, (*excluded, name))
            ):
                excluded = (*excluded, name)
        return excluded

    def _could_do_without(self, job: JobRecord, nodes: tuple[str, ...]) -> bool:
        left = [cycle.node_view(node) for name, node in self.desk.cluster.nodes.items() if name not in nodes]
        return bool(left) and can_ever_fit(job.request, left) is None

    def _complete(self, job: JobRecord, attempt: Attempt, record: AttemptRecord) -> None:
        assert record.cause is not None
        cause = attempt.final if attempt.final and record.cause in _TROUBLE else record.cause
        status = exit_status(cause, record.code, record.signal, record.forced)
        if cause is Cause.DELETED:
            status = canceled_status(self.desk.cluster.attributes, status)
        changes: dict[str, Any] = {"exit_status": status, "cause": cause}
        if record.undelivered:
            changes["comment"] = record.undelivered[:1000]
        elif cause is Cause.GPU_IDLE:
            told = attempt.ending.message if attempt.ending else record.message
            changes["comment"] = f"{cause}: {told}"[:1000]
        elif record.cause in _TROUBLE:
            changes["comment"] = f"{record.cause}: {record.message}"[:1000]
        elif record.message and record.cause in _BY_ITS_NODE and not attempt.deleted:
            changes["comment"] = record.message[:1000]
        if record.started_at is not None and record.ended_at is not None:
            size = (job.request.gpus, job.request.cpus)
            ran = (record.ended_at - record.started_at).total_seconds()
            self.desk.cluster.history.ended(job.owner, size, ran)
        payload = {"attempt": job.attempt, "exit_status": status, "cause": cause}
        done = self.desk.move(job, JobState.COMPLETE, "ended", payload, **changes)
        entry = accounting.ended(self._billed(done, attempt), record, attempt.placed, self.desk.now)
        self.desk.effects.accounting.append(entry)
        self.arrays.element_over(done)


def _patience_with(attempt: Attempt, culprit: str) -> float:
    """Seconds that the head of a lost gang has to tell its end."""
    return ACCUSED if culprit == attempt.head else GANG_LOSS


def _end(attempt: Attempt, ending: Ending) -> wire.End:
    return wire.End(
        attempt=attempt.name, cause=ending.cause, kill_delay=ending.kill_delay, message=ending.message
    )


def _billing(submission: Mapping[str, Any]) -> dict[str, Any]:
    return {key: submission.get(key) or {} for key in _BILLED}


def canceled_status(server: Mapping[str, str], otherwise: T) -> int | T:
    """Exit_status of a deleted job: the site's, if it has set one (``exit_code_canceled_job``, Torque)."""
    given = server.get("exit_code_canceled_job")
    return otherwise if given is None else int(given)


def resting_state(holds: str, not_before: datetime | None, now: datetime) -> JobState:
    """Where a job waits that does not run."""
    if holds:
        return JobState.HELD
    return JobState.WAITING if not_before is not None and not_before > now else JobState.QUEUED


def moment(seconds: float | None) -> datetime | None:
    """An aware time of epoch seconds; None, 0 and what no calendar has: unknown."""
    try:
        return datetime.fromtimestamp(seconds, UTC) if seconds else None
    except (OverflowError, ValueError, OSError):
        return None


def clean(value: T) -> T:
    """Text from a node without the zero bytes that PostgreSQL cannot store, at any depth."""
    convert: Callable[[Any], Any] = clean
    result: Any = value
    if isinstance(value, str):
        result = value.replace("\0", "\N{REPLACEMENT CHARACTER}")
    elif isinstance(value, dict):
        result = {convert(key): convert(item) for key, item in value.items()}
    elif isinstance(value, list):
        result = [convert(item) for item in value]
    return result  # type: ignore[no-any-return]
