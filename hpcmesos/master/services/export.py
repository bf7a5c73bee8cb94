"""The live queue as a file for ``hpcmesos simulate``: from the database, so that the leader is not held up."""

from __future__ import annotations

import time
from collections import defaultdict

from hpcmesos.errors import Unauthorized
from hpcmesos.gang.fair import decayed
from hpcmesos.gang.snapshot import Member, RunningView
from hpcmesos.master import cycle, limits, reservations
from hpcmesos.master.auth import Caller
from hpcmesos.master.cluster import may_start
from hpcmesos.master.passes import POLICY
from hpcmesos.master.services.site import Site, node_view
from hpcmesos.master.usage import accounts
from hpcmesos.model import GpuUuid, JobState, NodeName
from hpcmesos.queue import documents, reads
from hpcmesos.queue.records import JobFilter, JobKey, JobRecord, ShareRecord
from hpcmesos.traces.queue_file import QueueFile

_LIVE = frozenset(set(JobState) - {JobState.COMPLETE})


def exported(site: Site, caller: Caller) -> bytes:
    """The queue, the nodes and the rules as they are now, as JSON. Raises Unauthorized: for operators only."""
    if not caller.privileged:
        raise Unauthorized("only operators may export the queue: it shows what everybody asks for")
    now = time.time()
    # Read one after the other, a node would be held by a job that had not begun yet when the jobs were read.
    with site.store.moment() as connection:
        jobs = reads.read_jobs(connection, JobFilter(states=_LIVE, brief=True))
        running = sorted({job.seq for job in jobs if _runs(job)})
        shares = reads.read_shares(connection, running, live_only=True)
        nodes = reads.read_nodes(connection)
        queues = {queue.name: queue for queue in reads.read_queues(connection)}
        kept = reads.read_documents(connection)
    attributes = kept.get(documents.SERVER) or {}
    views = {name: cycle.queue_view(queue) for name, queue in queues.items()}
    usage = kept.get(documents.USAGE) or {}
    passed = max(0.0, now - float(usage.get("at", now)))
    used = {
        (project, user): decayed(float(gpus), passed) for project, user, gpus in usage.get("accounts") or ()
    }
    tree = kept.get(documents.SHARES) or {}
    pending = tuple(
        cycle.job_view(job, views[job.queue].level if job.queue in views else 0)
        for job in jobs
        if may_start(job)
    )
    return QueueFile(
        now=now,
        server=site.settings.server,
        nodes=tuple(node_view(node) for node in nodes),
        pending=pending,
        running=_running(jobs, shares, now),
        stopped_queues=frozenset(name for name, view in views.items() if not view.started),
        queues=views,
        windows=reservations.windows(kept.get(documents.RESERVATIONS) or {}, now),
        limits=limits.limits(queues, attributes),
        accounts=accounts(used, tree),
        project_shares=tree.get("projects") or {},
        held=sum(job.state in (JobState.HELD, JobState.WAITING) for job in jobs),
    ).encode()


def _runs(job: JobRecord) -> bool:
    return job.state in (JobState.RUNNING, JobState.EXITING)


def _running(jobs: list[JobRecord], shares: list[ShareRecord], now: float) -> tuple[RunningView, ...]:
    known = {job.key: job for job in jobs if _runs(job)}
    held: defaultdict[JobKey, list[ShareRecord]] = defaultdict(list)
    for share in shares:
        held[share.attempt.job].append(share)
    found = []
    for key, shares in held.items():
        job = known.get(key)
        if job is None:
            continue
        started = (job.started_at or job.created_at).timestamp()
        walltime = POLICY.assumed_walltime if job.request.walltime is None else job.request.walltime
        members = tuple(
            Member(NodeName(s.node), s.cpus, s.mem, s.slots, tuple(GpuUuid(uuid) for uuid in s.gpus))
            for s in shares
        )
        found.append(
            RunningView(
                job.id,
                members,
                started,
                max(now, started + walltime),
                job.queue,
                job.owner,
                job.project,
                job.egroup,
                preemptible=job.rerunable,
                priority=job.priority,
                queued_at=(job.queued_at or job.created_at).timestamp(),
                request=job.request,
            )
        )
    return tuple(found)
