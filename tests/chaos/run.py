"""One chaos run: a cluster, its jobs and faults side by side, the invariants each second, and the verdict."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from hpcmesos.model import JobId
from hpcmesos.queue.records import AttemptRecord, JobFilter, JobRecord, ShareRecord
from hpcmesos.queue.store import Store
from tests.chaos import clusters, script
from tests.chaos.clusters import Loopback, Namespaces
from tests.chaos.faults import FAILED, Injector
from tests.chaos.plan import Plan, PlannedJob
from tests.chaos.verdict import Fault, Outcome, Verdict, judge
from tests.e2e.cluster_kit import wait_until
from tests.integration.invariants import check_invariants, check_moment

NODES, GPUS = 8, 6
"""Of the cluster: nodes, and the simulated GPUs of each."""
LOAD = 0.6
"""Of all declared CPUs so many are busy on average: most nodes have something to lose, and some room is left."""
DRAIN = 420.0
"""Seconds within which the last jobs end after the last fault."""
Say = Callable[[str], None]


@dataclass
class Run:
    """What came of it. ``slack``: how late the faults were begun at worst, in seconds."""

    verdict: Verdict
    faults: list[Fault]
    seconds: float
    looks: int = 0
    notes: dict[str, str] = field(default_factory=dict)


def run(plan: Plan, say: Say, keep: Path | None = None) -> Run:
    """Does the plan; ``keep``: where logs of the daemons and the runs are left when a promise was broken."""
    with clusters.running(NODES, GPUS, cpus_for(plan)) as cluster:
        began = time.monotonic()
        injector, runs = Injector(cluster, say), _runs(cluster)
        with Watch(cluster) as watch, Submitter(cluster, runs, plan.jobs) as submitter:
            for fault in plan.faults:
                _sleep_until(began + fault.at)
                injector.start(fault)
            _sleep_until(began + plan.seconds)
            injector.finish()
            submitter.finish()
            say(
                f"all submitted and repaired after {time.monotonic() - began:.0f} s; waiting for the last jobs"
            )
            drained = _drain(cluster, say)
        outcomes = _outcomes(cluster, plan.jobs, submitter.ids, runs)
        verdict = judge(outcomes, injector.done)
        _add_violations(verdict, cluster, submitter, watch, drained)
        verdict.violations["a fault that could not be done"] += [
            fault.what for fault in injector.done if fault.kind == FAILED
        ]
        done = Run(verdict, injector.done, time.monotonic() - began, watch.looks)
        done.notes = {"seconds": f"{done.seconds:.0f}", "invariants looked at": str(watch.looks)}
        if keep is not None and not verdict.kept:
            _keep(cluster, runs, injector.done, keep)
        return done


def cpus_for(plan: Plan) -> int:
    """What each node declares."""
    work = sum((job.seconds + 1.0) * job.nodes * job.slots for job in plan.jobs)
    return max(4, round(work / plan.seconds / LOAD / NODES))


def _runs(cluster: Namespaces | Loopback) -> Path:
    runs = cluster.work() / "runs"
    runs.mkdir()
    if cluster.user:
        entry = pwd.getpwnam(cluster.user)
        os.chown(runs, entry.pw_uid, entry.pw_gid)
    return runs


def _sleep_until(moment: float) -> None:
    if (left := moment - time.monotonic()) > 0:
        time.sleep(left)


# --- jobs


class Submitter:
    """A thread that submits each job at its time, through a process of the user's. ``ids``: by key."""

    def __init__(self, cluster: Namespaces | Loopback, runs: Path, jobs: Sequence[PlannedJob]) -> None:
        self.ids: dict[str, str] = {}
        self.errors: list[str] = []
        self._cluster, self._runs, self._jobs = cluster, runs, jobs
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="submitter")

    def __enter__(self) -> Submitter:
        command = [
            sys.executable,
            "-m",
            "tests.chaos.submitter",
            *map(str, self._cluster.described.api_sockets),
        ]
        user = pwd.getpwnam(self._cluster.user) if self._cluster.user else None
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
            user=user.pw_uid if user else None,
            group=user.pw_gid if user else None,
            extra_groups=[] if user else None,
            env={**os.environ, "HOME": user.pw_dir, "LOGNAME": user.pw_name} if user else None,
        )
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._process.kill()
        self._thread.join()
        with self._process:
            pass

    def finish(self) -> None:
        """Once every job is submitted."""
        self._thread.join()

    def _run(self) -> None:
        began = time.monotonic()
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        for job in self._jobs:
            if self._stopped.wait(max(0.0, began + job.at - time.monotonic())):
                return
            words = {
                "key": job.key,
                "argv": [*_options(job), "-o", f"{self._runs}/{job.key}.out", "-j", "oe", "-N", job.key],
                "script": script.write(job, self._runs),
                "cwd": str(self._runs),
            }
            try:
                stdin.write(json.dumps(words) + "\n")
                stdin.flush()
                answer = json.loads(stdout.readline())
            except (OSError, ValueError) as error:
                self.errors.append(f"{job.key}: {error!r}")
                return
            if "id" in answer:
                self.ids[job.key] = answer["id"]
            else:
                self.errors.append(f"{job.key}: {answer['error']}")


def _options(job: PlannedJob) -> list[str]:
    gpus = f":gpus={job.gpus}" if job.gpus else ""
    return ["-l", f"nodes={job.nodes}:ppn={job.slots}{gpus}", "-r", "y" if job.rerunnable else "n"]


def _drain(cluster: Namespaces | Loopback, say: Say) -> bool:
    """Whether the last job ended in time."""
    deadline = time.monotonic() + DRAIN

    def left() -> int | None:
        try:
            with psycopg.connect(cluster.database_url, connect_timeout=2) as connection:
                row = connection.execute("SELECT count(*) FROM jobs WHERE ended_at IS NULL").fetchone()
        except psycopg.Error:
            return None
        return int(row[0]) if row else None

    with contextlib.suppress(AssertionError):
        wait_until(lambda: left() == 0, "the last job", DRAIN, 0.5)
        say(f"the last job ended {DRAIN - (deadline - time.monotonic()):.0f} s later")
        return True
    say(f"{left()} jobs have not ended")
    return False


def _outcomes(
    cluster: Namespaces | Loopback, jobs: Sequence[PlannedJob], ids: dict[str, str], runs: Path
) -> list[Outcome]:
    store = Store(cluster.database_url, pool=1)
    try:
        records: dict[int, JobRecord] = {
            job.seq: job for job in store.jobs(JobFilter(history=True, brief=True)) if job.index is None
        }
        shares: dict[int, list[ShareRecord]] = {}
        for share in store.shares(list(records)):
            shares.setdefault(share.attempt.seq, []).append(share)
        attempts: dict[int, list[AttemptRecord]] = {}
        for attempt in store.attempts(list(records), tails=False):
            attempts.setdefault(attempt.key.seq, []).append(attempt)
    finally:
        store.close()
    found = []
    for plan in jobs:
        if name := ids.get(plan.key):
            seq = JobId.parse(name, "hpcm").seq
            lines = script.read(runs, plan.key)
            ran = attempts.get(seq, []), shares.get(seq, [])
            found.append(Outcome(plan, name, lines, records.get(seq), *ran))
    return found


# --- promises that hold at every moment


class Watch:
    """Looks at the invariants of GPUs and allocations each second, in a thread."""

    def __init__(self, cluster: Namespaces | Loopback) -> None:
        self.looks = 0
        self.violations: list[str] = []
        self._cluster = cluster
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch")

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(1.0):
            try:
                found = check_moment(self._cluster.database_url)
                found += self._leaked()
            except psycopg.Error:
                continue  # PostgreSQL is one of the victims
            self.looks += 1
            self.violations += [f"{time.time():.1f}: {text}" for text in found]

    def _leaked(self) -> list[str]:
        """Nodes of which another number of GPUs is known than is installed."""
        with psycopg.connect(self._cluster.database_url, connect_timeout=2) as connection:
            rows = connection.execute("SELECT node, count(*) FROM gpus GROUP BY node").fetchall()
        return [f"{node} has {count} of {GPUS} GPUs" for node, count in rows if count != GPUS]


def _add_violations(
    verdict: Verdict, cluster: Namespaces | Loopback, submitter: Submitter, watch: Watch, drained: bool
) -> None:
    """What is seen of the cluster as a whole, once it is at rest."""
    found = verdict.violations
    found["a submission that failed"] += submitter.errors
    found["an invariant that did not hold at some second"] += watch.violations
    if not drained:
        found["jobs that do not end"].append(f"after {DRAIN:.0f} s")
    with contextlib.suppress(AssertionError):
        wait_until(lambda: not _unsettled(cluster), "the cluster at rest", 60, 0.5)
    found["an invariant that does not hold at the end"] += _unsettled(cluster)
    found["an orphan process"] += cluster.job_processes()
    if isinstance(cluster, Namespaces):
        found["a cgroup that was left"] += cluster.cgroups()
    with psycopg.connect(cluster.database_url) as connection:
        rows = connection.execute(
            "SELECT seq, name FROM jobs UNION ALL SELECT seq, name FROM jobs_history"
        ).fetchall()
        free = connection.execute("SELECT uuid, state FROM gpus WHERE state <> 'free'").fetchall()
    known = {JobId.parse(name, "hpcm").seq for name in submitter.ids.values()}
    found["a job that nobody submitted"] += [f"{seq} ({name})" for seq, name in rows if seq not in known]
    found["a GPU leaked"] += [f"{uuid} is {state}" for uuid, state in free]


def _unsettled(cluster: Namespaces | Loopback) -> list[str]:
    trouble = clusters.all_well(cluster)
    return [
        *check_invariants(cluster.database_url, drained=True, settled=True),
        *([trouble] if trouble else []),
    ]


def _keep(cluster: Namespaces | Loopback, runs: Path, faults: Sequence[Fault], place: Path) -> None:
    """Logs for whoever looks for the reason."""
    place.mkdir(parents=True, exist_ok=True)
    for path in _logs(cluster, runs):
        target = place / path.relative_to(cluster.root)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    with (place / "faults.jsonl").open("w") as file:
        for fault in sorted(faults, key=lambda fault: fault.began):
            file.write(json.dumps([fault.kind, fault.began, fault.ended, fault.nodes, fault.what]) + "\n")
    events = subprocess.run(
        [sys.executable, "-c", _DUMP, cluster.database_url], capture_output=True, text=True, check=False
    )
    (place / "events.txt").write_text(events.stdout)


def _logs(cluster: Namespaces | Loopback, runs: Path) -> Iterator[Path]:
    yield from (cluster.state / "log").glob("*.log")
    yield from cluster.state.glob("agents/*/shepherd.log")
    yield from runs.glob("*.log")
    yield from (path for path in runs.glob("*.out") if path.stat().st_size)


_DUMP = """
import sys, psycopg
with psycopg.connect(sys.argv[1]) as connection:
    for row in connection.execute("SELECT at, seq, kind, source, target, payload FROM events ORDER BY id"):
        print(*row)
    for row in connection.execute(
        "SELECT seq, number, created_at, started_at, ended_at, cause, code, culprit, message FROM attempts"
        " ORDER BY seq, number"
    ):
        print("attempt", *row)
    for row in connection.execute("SELECT seq, number, node, position, gpus, released_at FROM shares ORDER BY 1, 2, 4"):
        print("share", *row)
"""
