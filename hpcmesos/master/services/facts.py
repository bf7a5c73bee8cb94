"""Rows of the queue as the facts that the renderers of ``pbs/`` show. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType

from hpcmesos.gang.islands import nvlink_islands
from hpcmesos.master.services import launches
from hpcmesos.master.services.lookup import id_of
from hpcmesos.master.services.output_paths import shown_paths
from hpcmesos.model import Cause, GpuState, JobId, JobState
from hpcmesos.pbs.facts import GpuFacts, JobFacts, NodeFacts
from hpcmesos.queue import elements
from hpcmesos.queue.accounting import gpu_used
from hpcmesos.queue.dependencies import Dependency, DependencyKind
from hpcmesos.queue.records import (
    ArrayElements,
    AttemptKey,
    AttemptRecord,
    GpuRecord,
    JobKey,
    JobRecord,
    NodeRecord,
    ShareRecord,
)
from hpcmesos.units import format_duration

_DEPENDENCY = "d"
_STARTED = frozenset({JobState.RUNNING, JobState.EXITING, JobState.COMPLETE})


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What is known of jobs beside their own rows; each may be empty where a format does not show it."""

    attempts: Mapping[AttemptKey, AttemptRecord] = field(default_factory=dict)
    runs: Mapping[JobKey, int] = field(default_factory=dict)
    shares: Mapping[AttemptKey, tuple[ShareRecord, ...]] = field(default_factory=dict)
    gpus: Mapping[str, GpuRecord] = field(default_factory=dict)
    reasons: Mapping[JobKey, str] = field(default_factory=dict)
    arrays: Mapping[int, ArrayElements] = field(default_factory=dict)  # by ``seq``

    @classmethod
    def of(
        cls,
        attempts: Iterable[AttemptRecord],
        shares: Iterable[ShareRecord],
        nodes: Iterable[NodeRecord],
        reasons: Mapping[JobKey, str],
        arrays: Mapping[int, ArrayElements],
    ) -> Surroundings:
        """From rows of several jobs."""
        by_attempt: defaultdict[AttemptKey, list[ShareRecord]] = defaultdict(list)
        for share in shares:
            by_attempt[share.attempt].append(share)
        known = {attempt.key: attempt for attempt in attempts}
        runs: defaultdict[JobKey, int] = defaultdict(int)
        for attempt in known.values():
            # One whose node was lost may have run, though nobody was told of its start.
            ran = attempt.started_at is not None or attempt.cause not in (None, Cause.START_FAILED)
            runs[attempt.key.job] += ran
        ordered = {
            key: tuple(sorted(found, key=lambda share: share.position)) for key, found in by_attempt.items()
        }
        gpus = {gpu.uuid: gpu for node in nodes for gpu in node.gpus}
        return cls(known, runs, ordered, gpus, reasons, arrays)

    def earlier(self, job: JobRecord) -> Iterator[Mapping[str, str]]:
        """The attempts before the last one, oldest first."""
        for number in range(1, job.attempt):
            key = AttemptKey(job.seq, job.index, number)
            if (attempt := self.attempts.get(key)) and attempt.cause:
                nodes = "+".join(share.node for share in self.shares.get(key, ()))
                shown = {"cause": str(attempt.cause), "culprit": attempt.culprit, "nodes": nodes}
                shown["message"] = attempt.message.replace(";", ",")
                yield {name: value for name, value in shown.items() if value}


def job_facts(
    job: JobRecord, around: Surroundings, now: datetime, *, private: bool, live: bool = False
) -> JobFacts:
    """One job; ``private`` shows its variables and the words it was submitted with. ``live``: an element whose array is
    not complete.
    """
    attempt = around.attempts.get(job.attempt_key)
    shares = around.shares.get(job.attempt_key, ()) if job.state in _STARTED else ()
    submission = job.submission
    started = job.started_at if job.state in _STARTED else None
    used = _seconds_used(job, attempt, started, now)
    limit = job.request.walltime
    unborn = job.index is not None and not job.attempt
    shown_id = (
        JobId(job.seq, job.server, array=True) if unborn else job.id
    )  # OpenPBS: without the index until it starts
    out, err = shown_paths(submission, shown_id, job.name)
    return JobFacts(
        id=str(id_of(job)),
        name=job.name,
        owner=job.owner,
        submit_host=job.submit_host,
        state="S" if job.suspended and job.state is JobState.RUNNING else job.state.value,
        queue=job.queue,
        server=job.server,
        ctime=job.created_at,
        qtime=job.created_at,
        mtime=job.modified_at,
        etime=job.queued_at,
        start_time=started,
        comp_time=job.ended_at,
        execution_time=job.not_before,
        exec_host=tuple((share.node, share.slots) for share in shares),
        exec_gpus=_exec_gpus(shares, around.gpus),
        resource_list=submission.get("resource_list", {}),
        resources_used=_resources_used(attempt, used),
        session_id=int(attempt.usage.get("session", 0)) or None if attempt else None,
        exit_status=job.exit_status,
        cause=job.cause.value if job.cause else None,
        comment=job.comment or None,
        interactive=bool(submission.get("interactive")),
        environment=submission.get("environment", {}) if private else {},
        output_path=out,
        error_path=err,
        workdir=submission.get("submit_dir", ""),
        join=submission.get("join", "n"),
        keep=submission.get("keep", "n"),
        checkpoint=submission.get("checkpoint", "u"),
        mail_points=submission.get("mail_points", "a"),
        mail_users=",".join(submission.get("mail_users", ())) or None,
        priority=job.priority,
        rerunable=job.rerunable,
        submit_args=submission.get("submit_args", "") if private else "",
        hold_types=hold_types(job.holds),
        depend=",".join(_depend(job)) or None,
        project=job.project or None,
        account=submission.get("account"),
        group=job.egroup or None,
        array=job.array_spec,
        array_counts={}
        if job.array_spec is None
        else _element_counts(around.arrays.get(job.seq) or ArrayElements(job, {})),
        array_remaining=job.array_spec.text(job.todo or ()) if job.array_spec else "",
        array_id=None if job.index is None else str(JobId(job.seq, job.server, array=True)),
        array_index=job.index,
        in_live_array=live,
        run_count=around.runs.get(job.key, 0),
        steps=launches.shown_steps(attempt, private=private) if attempt else (),
        ranks=launches.shown_ranks(attempt) if attempt else (),
        first_failed=launches.first_failed(attempt) if attempt else {},
        last_lines=launches.last_lines(attempt) if attempt and private else None,
        earlier=tuple(around.earlier(job)),
        walltime_used=used,
        walltime_remaining=_remaining(job, limit, used),
        pending_reason=around.reasons.get(job.key),
        extra=_extra(job),
    )


def _depend(job: JobRecord) -> Iterator[str]:
    yield from (depend_text(one, job.server) for one in job.dependencies)
    for kind, seq in job.submission.get("before", ()):
        yield f"{kind.replace('after', 'before', 1)}:{JobId(seq, job.server)}"


def depend_text(dependency: Dependency, server: str) -> str:
    """As users write it: ``afterok:12.hpcm``, ``afterokarray:12[].hpcm[5]``."""
    if dependency.kind is DependencyKind.ON:
        return dependency.short
    array = dependency.kind.counts and dependency.element is None
    parent = JobId(dependency.seq, server, dependency.element, array)
    number = "" if dependency.number is None else f"[{dependency.number}]"
    return f"{dependency.kind}:{parent}{number}"


def _element_counts(array: ArrayElements) -> dict[str, int]:
    """The elements by state letter, those that have no row included."""
    parent, spec = array.parent, array.parent.array_spec
    if spec is None:
        return {}
    counts = Counter({state.value: number for state, number in array.live.items()})
    waiting, gone = elements.states_without_row(parent)
    counts[waiting.value] += parent.waiting_elements
    counts[gone.value] += spec.count(parent.deleted or ()) + (parent.succeeded or 0) + (parent.failed or 0)
    return dict(counts)


def node_facts(
    node: NodeRecord,
    jobs: Iterable[tuple[int, str]],
    gpu_jobs: Mapping[str, str],
    figures: Mapping[str, Mapping[str, float]] = MappingProxyType({}),
) -> NodeFacts:
    """One node; ``jobs``: (slots, id) of what runs on it, ``gpu_jobs``: the job that holds a GPU, by UUID; ``figures``:
    what GPUs show now, by UUID.
    """
    slots = tuple((position, job) for position, job in enumerate(job for n, job in jobs for _ in range(n)))
    gpus = sorted(node.gpus, key=lambda gpu: gpu.index)
    islands = nvlink_islands([gpu.links for gpu in gpus])
    return NodeFacts(
        name=node.name,
        state=frozenset(node_states(node)),
        np=node.cpus,
        features=node.features,
        jobs=slots,
        gpus=tuple(
            _gpu_facts(gpu, gpu_jobs.get(gpu.uuid), figures.get(gpu.uuid, {}), island)
            for gpu, island in zip(gpus, islands, strict=True)
        ),
        memory_total=node.mem,
        memory_available=node.mem - node.mem_used,
        physical_memory=node.mem,
        isolation=node.isolation or "environment-only",
        uname=f"{node.os.replace(',', '')} {node.hostname}".strip(),  # clients split its line at commas
        rectime=node.changed_at,
        note=node.note or None,
        declared=node.declared,
    )


def node_states(node: NodeRecord) -> list[str]:
    """``down`` and ``offline`` may come together; else ``job-exclusive`` (no CPU is left) or ``free``.

    Torque has no words for ``gone`` (down, and somebody vouches that it is off) and ``draining`` (offline, and jobs
    still run): they stand beside its own.
    """
    words = {
        "down": not node.up,
        "gone": not node.up and node.gone,
        "offline": node.offline,
        "draining": node.up and node.offline and node.cpus_used > 0,
    }
    bad = [word for word, holds in words.items() if holds]
    return bad or ["job-exclusive" if node.cpus and node.cpus_used >= node.cpus else "free"]


def hold_types(holds: str) -> str:
    """The letters that users know: a dependency is the system's hold."""
    shown = {"s" if letter == _DEPENDENCY else letter for letter in holds}
    return "".join(letter for letter in "uos" if letter in shown) or "n"


def _extra(job: JobRecord) -> dict[str, str]:
    request = job.request
    asked = {"framework": request.framework, "constraints": ",".join(map(str, request.constraints))}
    asked |= {name: job.submission.get(name, "") for name in ("image", "image_pull", "image_secret")}
    return {**{name: text for name, text in asked.items() if text}, **job.submission.get("extra", {})}


def _seconds_used(
    job: JobRecord, attempt: AttemptRecord | None, started: datetime | None, now: datetime
) -> int | None:
    if attempt is not None and "walltime" in attempt.usage:
        return int(attempt.usage["walltime"])
    if started is None:
        return None
    return max(0, int(((job.ended_at or now) - started).total_seconds()))


def _remaining(job: JobRecord, limit: int | None, used: int | None) -> int | None:
    if job.state is not JobState.RUNNING or limit is None or used is None:
        return None
    return max(0, limit - used)


def _resources_used(attempt: AttemptRecord | None, used: int | None) -> dict[str, str]:
    usage = attempt.usage if attempt is not None else {}
    shown: dict[str, str] = {}
    if "cput" in usage:
        shown["cput"] = format_duration(usage["cput"])
    if "mem" in usage:
        shown["mem"] = f"{int(usage['mem']) // 1024}kb"
    if used is not None:
        shown["walltime"] = format_duration(used)
    return shown | gpu_used(usage)


def _exec_gpus(
    shares: tuple[ShareRecord, ...], gpus: Mapping[str, GpuRecord]
) -> tuple[tuple[str, str, int], ...]:
    return tuple(
        (share.node, uuid, gpus[uuid].index if uuid in gpus else position)
        for share in shares
        for position, uuid in enumerate(share.gpus)
    )


def _gpu_facts(gpu: GpuRecord, job: str | None, figures: Mapping[str, float], island: int | None) -> GpuFacts:
    return GpuFacts(
        index=gpu.index,
        uuid=gpu.uuid,
        model=gpu.model,
        state=gpu.state.value,
        simulated=gpu.simulated,
        job_id=job if gpu.state is GpuState.ALLOCATED else None,
        note=gpu.note,
        parent=gpu.parent,
        profile=gpu.profile,
        memory=0 if gpu.simulated else gpu.memory,
        numa=gpu.numa,
        nvlink_island=island,
        figures=figures,
    )
