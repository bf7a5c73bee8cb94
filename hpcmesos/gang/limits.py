"""How much may run at once: for each user, group, project and queue, and in all."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence

from hpcmesos.gang.classes import class_of, class_of_running
from hpcmesos.gang.snapshot import JobView, Limit, Plugged, RunningView
from hpcmesos.gang.tables import Shape
from hpcmesos.model import PendingReason, ReasonCode
from hpcmesos.plugin import JobClass

HOUR, DAY = 3600.0, 86400.0
_NO_PLUGIN = Plugged()
_Key = tuple[str, str, str]  # the queue in which it counts ("": everywhere), scope and name


def _own_walltime(job: JobView) -> float:
    """The job's own word, else a day."""
    walltime = job.request.walltime if job.walltime is None else job.walltime
    return DAY if walltime is None else float(walltime)


class Gate:
    """Counts what runs, and what this cycle starts, against the limits."""

    def __init__(
        self,
        limits: Sequence[Limit],
        running: Iterable[RunningView],
        plugged: Plugged = _NO_PLUGIN,
        *,
        now: float = 0.0,
        walltime: Callable[[JobView], float] = _own_walltime,
    ) -> None:
        """``walltime``: seconds that a job is taken to need at most."""
        self._walltime = walltime
        self._limits = limits
        self._told = plugged.limits
        self._of_class: Counter[JobClass | None] = Counter(
            class_of_running(job) for job in (running if self._told is not None else ())
        )
        self._jobs: Counter[_Key] = Counter()
        self._gpus: Counter[_Key] = Counter()
        self._cpus: Counter[_Key] = Counter()
        self._hours: defaultdict[_Key, float] = defaultdict(float)
        for job in running if limits else ():
            gpus = sum(len(member.gpus) for member in job.members)
            left = DAY if job.ends_at is None else max(0.0, job.ends_at - now)
            self._add(_keys(job), gpus, sum(member.cpus for member in job.members), gpus * left / HOUR)

    def count(self, job: JobView, shape: Shape) -> None:
        """One more of these has started."""
        if self._told is not None:
            self._of_class[class_of(job)] += 1
        if self._limits:
            self._add(_keys(job), shape.gpus, shape.cpus, self._gpu_hours(job, shape))

    def refuses(self, job: JobView, shape: Shape) -> PendingReason | None:
        """Why a limit keeps the job from starting now; None: none does."""
        names = _names(job) if self._limits else {}
        for limit in self._limits:
            name = names[limit.scope]
            if limit.name not in ("*", name) or name in limit.but or limit.queue not in ("", job.queue):
                continue
            key = (limit.queue, limit.scope, name)
            for unit, used, asked, most in (
                ("jobs", self._jobs[key], 1, limit.jobs),
                ("GPUs", self._gpus[key], shape.gpus, limit.gpus),
                ("CPUs", self._cpus[key], shape.cpus, limit.cpus),
                ("GPU-hours", self._hours[key], self._gpu_hours(job, shape), limit.gpu_hours),
            ):
                if most is not None and used + asked > most:
                    return _reason(limit, name, unit, used, asked, most)
        return self._refused_by_plugin(job)

    def _refused_by_plugin(self, job: JobView) -> PendingReason | None:
        if self._told is None:
            return None
        kind = class_of(job)
        if kind not in self._told:
            text = "the plug-in of the site's limits was not asked about jobs like it yet; it will be at once"
            return PendingReason(ReasonCode.LIMIT, text)
        most, used = self._told[kind], self._of_class[kind]
        if most is None or used < most:
            return None
        text = f"limit of the site's plug-in: {used} of {most} jobs like it run"
        return PendingReason(ReasonCode.LIMIT, text, {"scope": "plug-in", "used": used, "limit": most})

    def _gpu_hours(self, job: JobView, shape: Shape) -> float:
        return shape.gpus * self._walltime(job) / HOUR

    def _add(self, keys: Iterable[_Key], gpus: int, cpus: int, hours: float) -> None:
        for key in keys:
            self._jobs[key] += 1
            self._gpus[key] += gpus
            self._cpus[key] += cpus
            self._hours[key] += hours


def never(job: JobView, shape: Shape, limits: Sequence[Limit]) -> PendingReason | None:
    """Why limits would keep the job waiting for ever, even if nothing else ran; for use at submit."""
    return Gate(limits, ()).refuses(job, shape)


def _names(job: JobView | RunningView) -> dict[str, str]:
    return {
        "user": job.user,
        "group": job.group or job.user,
        "project": job.project,
        "queue": job.queue,
        "server": "",
    }


def _keys(job: JobView | RunningView) -> list[_Key]:
    return [(queue, scope, name) for queue in {"", job.queue} for scope, name in _names(job).items()]


def _reason(limit: Limit, name: str, unit: str, used: float, asked: float, most: float) -> PendingReason:
    who = f"{limit.scope} {name}" if name else f"the {limit.scope}"
    where = f" in queue {limit.queue}" if limit.queue and limit.scope != "queue" else ""
    shown = [f"{value:.1f}".removesuffix(".0") for value in (used, most, asked)]
    text = f"limit of {who}{where}: {shown[0]} of {shown[1]} {unit} in use, this job needs {shown[2]} more"
    facts: dict[str, int | float | str] = {
        "scope": limit.scope,
        "name": name,
        "unit": unit,
        "used": used,
        "needed": asked,
        "limit": most,
    }
    return PendingReason(ReasonCode.LIMIT, text, facts)
