"""The scheduler: one pure function from what is to what shall be.

Bounded by work, not by the clock: equal requests form one class; a class that failed is not tried again in the same
cycle, for within a cycle room only shrinks.
"""

from __future__ import annotations

from collections.abc import Sequence

from hpcmesos.gang import explain, score
from hpcmesos.gang.feasible import Arrangement, Room, arrange, kinds_of
from hpcmesos.gang.ledger import Ledger
from hpcmesos.gang.order import in_order
from hpcmesos.gang.snapshot import JobView, Member, Plan, Policy, Snapshot, Start
from hpcmesos.model import Chunk, JobId, NodeName, PendingReason, Request

_Class = tuple[Request, frozenset[NodeName]]


def schedule(snapshot: Snapshot, policy: Policy, now: float) -> Plan:
    """Which jobs start now, where, and why each of the others waits.

    Args:
        snapshot: the cluster and the jobs that wait.
        policy: the site's rules.
        now: epoch seconds; the order of the first cut does not depend on it, reservations in time will.
    """
    ledger = Ledger(snapshot.nodes)
    explainer = explain.Explainer(Room(ledger.room.nodes, installed=True), ledger.room)
    starts: list[Start] = []
    reasons: dict[JobId, PendingReason] = {}
    failed: dict[_Class, list[JobView]] = {}
    held_back: dict[_Class, list[JobView]] = {}
    blocker: JobView | None = None
    for job in in_order(snapshot.pending):
        if job.queue in snapshot.stopped_queues:
            reasons[job.id] = explain.queue_stopped(job.queue)
            continue
        key = (job.request, job.excluded)
        if key in failed:
            failed[key].append(job)
        elif blocker is not None:
            held_back.setdefault(key, []).append(job)
        else:
            begun = _starts(job, ledger, explainer)
            starts += begun
            if len(begun) == job.count:
                continue
            failed[key] = [job]
            # A reservation in time for this job, and jobs that may run before it (backfill), belong here.
            if policy.strict and explainer.could_start_on_empty(job):
                blocker = job
    for jobs in failed.values():
        reasons.update(dict.fromkeys([job.id for job in jobs], explainer.waiting(jobs[0], None)))
    for jobs in held_back.values():
        reasons.update(dict.fromkeys([job.id for job in jobs], explainer.waiting(jobs[0], blocker)))
    return Plan(tuple(starts), reasons)


def _starts(job: JobView, ledger: Ledger, explainer: explain.Explainer) -> list[Start]:
    """As many of the job's equal elements as fit, up to its count; of a plain job one or none."""
    begun: list[Start] = []
    while len(begun) < job.count and (start := _start(job, ledger, explainer)) is not None:
        begun.append(start)
    return begun


def _start(job: JobView, ledger: Ledger, explainer: explain.Explainer) -> Start | None:
    """Reserves the job's whole gang and commits it; None, and nothing reserved, when it does not fit."""
    found = arrange(job.request, ledger.room, explainer.usable(job), score.prefer)
    if found.lots is None:
        return None
    members = _members(job.request, found, ledger)
    try:
        for member in members:
            ledger.reserve(job.id, member)
    except BaseException:
        ledger.discard()
        raise
    ledger.commit()
    return Start(job.id, members)


def _members(request: Request, found: Arrangement, ledger: Ledger) -> tuple[Member, ...]:
    """One member a node; the head is the first node of the first kind of pieces, as with Torque's mother superior."""
    kinds = kinds_of(request)
    shares: dict[int, list[tuple[Chunk, int]]] = {}
    for lot in sorted(found.lots or (), key=lambda lot: (lot.kind, lot.row)):
        shares.setdefault(lot.row, []).append((kinds[lot.kind], lot.pieces))
    return tuple(_member(row, share, ledger) for row, share in shares.items())


def _member(row: int, share: Sequence[tuple[Chunk, int]], ledger: Ledger) -> Member:
    node = ledger.room.nodes[row]
    gpus = score.choose_gpus(node, ledger.free_gpus(row), sum(kind.gpus * n for kind, n in share))
    return Member(
        node.name,
        cpus=sum(kind.cpus * n for kind, n in share),
        mem=sum(kind.mem * n for kind, n in share),
        slots=sum(kind.slots * n for kind, n in share),
        gpus=tuple(node.gpus[at].uuid for at in gpus),
    )
