"""hpcmesos cron as users run it; and every due time has exactly one job, also over the death of a leader."""

from __future__ import annotations

import os
import signal
import subprocess
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from hpcmesos.api_schema import ScheduleRequest, Submission
from tests.e2e.cluster_kit import LiveCluster, wait_until

NEVER = "0 0 1 1 *"


def cron(
    cluster: LiveCluster, *words: str, user: str | None = None, code: int = 0
) -> subprocess.CompletedProcess[str]:
    done = cluster.run("hpcmesos", "cron", *words, user=user)
    assert done.returncode == code, done
    return done


def runs(cluster: LiveCluster, name: str) -> list[dict[str, Any]]:
    """From outside: what the database says, the earliest first."""
    query = """SELECT due, try, seq, outcome FROM schedule_runs WHERE schedule = %s ORDER BY due, try"""
    with psycopg.connect(cluster.database_url) as connection:
        rows = connection.execute(query, [name]).fetchall()
    return [dict(zip(("due", "try", "seq", "outcome"), row, strict=True)) for row in rows]


def settled(cluster: LiveCluster, name: str, count: int) -> list[dict[str, Any]]:
    def look() -> list[dict[str, Any]]:
        found = runs(cluster, name)
        return found if len(found) >= count and all(run["outcome"] for run in found) else []

    return wait_until(look, f"{count} runs of {name} have ended", 40)


def test_a_schedule_fires_and_tells_its_job(cluster: LiveCluster) -> None:
    script = (
        '#!/bin/sh\necho "$HPCMESOS_SCHEDULE $HPCMESOS_SCHEDULE_TRY $FOO $1"; echo $HPCMESOS_SCHEDULE_DUE\n'
    )
    (cluster.work() / "tick.sh").write_text(script)
    words = ["-N", "tick", "-v", "FOO=bar", "-j", "oe", "-F", "arg", "tick.sh"]
    added = cron(cluster, "add", "--timezone", "Europe/Berlin", "tick", "R2//PT1S", *words)
    assert "tick" in added.stdout
    found = settled(cluster, "tick", 2)
    assert found[1]["due"] - found[0]["due"] == timedelta(seconds=1)
    assert [run["outcome"] for run in found] == ["exit 0", "exit 0"]
    for run in found:
        told, due = cluster.output(f"{run['seq']}.hpcm", "tick").splitlines()
        assert told == "tick 0 bar arg"
        assert datetime.fromisoformat(due) == run["due"]
    assert "never" in cron(cluster, "list").stdout
    history = cron(cluster, "history", "tick").stdout
    assert history.count("exit 0") == 2
    cron(cluster, "rm", "tick")
    assert "tick" not in cron(cluster, "list").stdout


def test_pause_resume_and_run_now(cluster: LiveCluster) -> None:
    cron(cluster, "add", "--paused", "nightly", NEVER, "--", "/bin/true")
    assert "paused" in cron(cluster, "list").stdout
    cron(cluster, "run-now", "nightly")
    [run] = settled(cluster, "nightly", 1)
    assert run["outcome"] == "exit 0"
    cron(cluster, "resume", "nightly")
    assert "-01-01 00:00:00" in cron(cluster, "list").stdout
    cron(cluster, "pause", "nightly")
    assert "paused" in cron(cluster, "list").stdout
    cron(cluster, "rm", "nightly")


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["x", "every day", "--", "true"], 168, "is no time rule"),
        (["x", "R1/2000-01-01/P1D", "--", "true"], 168, "never due again"),
        (["x", "after:nobody", "--", "true"], 153, "no schedule 'nobody'"),
        (["x y", NEVER, "--", "true"], 168, "name"),
        (["x", NEVER, "-l", "nodes=99", "--", "true"], 190, "99"),
        (["x", NEVER, "-q", "nowhere", "--", "true"], 172, "nowhere"),
        (["x", NEVER, "-W", "depend=on:1", "--", "true"], 168, "depend="),
        (["x", NEVER, "-a", "209912312359", "--", "true"], 168, "-a"),
        (["x", NEVER, "-I"], 2, "interactive"),
        (["x", NEVER, "no-such-file"], 1, "no-such-file"),
        (["--timezone", "Nowhere", "x", NEVER, "--", "true"], 168, "no such time zone"),
        (["--retries", "101", "x", NEVER, "--", "true"], 168, "from 0 to 100"),
    ],
)
def test_refused_and_nothing_kept(cluster: LiveCluster, words: list[str], code: int, text: str) -> None:
    done = cron(cluster, "add", *words, code=code)
    assert text in done.stderr
    assert len(done.stderr.splitlines()) == 1
    with psycopg.connect(cluster.database_url) as connection:
        assert connection.execute("SELECT name FROM schedules WHERE owner <> ''").fetchall() == []


def test_only_its_owner_and_operators_may(cluster: LiveCluster, users: tuple[str, str]) -> None:
    mine, other = users
    cron(cluster, "add", "--paused", "private", NEVER, "--", "true", user=mine)
    cron(cluster, "add", "--paused", "private", NEVER, "--", "true", user=other)  # names are each user's own
    for word in ("rm", "pause", "resume", "run-now", "history"):
        refused = cron(cluster, word, "--owner", mine, "private", user=other, code=159)
        assert refused.stderr == f"hpcmesos: schedule private is {mine}'s\n"
    assert mine not in cron(cluster, "list", user=other).stdout
    assert mine in cron(cluster, "list", user="").stdout
    for owner in users:
        cron(cluster, "rm", "--owner", owner, "private", user="")
    assert cron(cluster, "rm", "private", user=mine, code=153).stderr.startswith("hpcmesos: ")


def test_overlapping_runs(cluster: LiveCluster) -> None:
    for policy in ("skip", "replace"):
        cron(cluster, "add", "--overlap", policy, policy, NEVER, "--", "sleep", "300")
        cron(cluster, "run-now", policy)
        [first] = runs(cluster, policy)
        cluster.wait_state(f"{first['seq']}.hpcm", "R")
        cron(cluster, "run-now", policy)
    _, skipped = runs(cluster, "skip")
    assert (skipped["seq"], skipped["outcome"].split(",")[0]) == (None, "skipped")
    old, new = runs(cluster, "replace")
    assert cluster.wait(f"{old['seq']}.hpcm")["Exit_status"] == 271
    cluster.wait_state(f"{new['seq']}.hpcm", "R")
    cluster.run("qdel", "-W", "0", "all", check=True)
    for policy in ("skip", "replace"):
        cron(cluster, "rm", policy)


def test_retries_and_those_that_follow(cluster: LiveCluster) -> None:
    script = "#!/bin/sh\ntest $HPCMESOS_SCHEDULE_TRY = 2\n"
    (cluster.work() / "third.sh").write_text(script)
    cron(cluster, "add", "--retries", "2", "--retry-delay", "0", "left", NEVER, "third.sh")
    cron(cluster, "add", "right", NEVER, "--", "/bin/true")
    cron(cluster, "add", "both", "after:left,right", "--", "/bin/true")
    assert cron(cluster, "rm", "left", code=168).stderr.startswith("hpcmesos: schedule left: both follows it")
    graph = cron(cluster, "graph").stdout
    assert f'"{cluster.user or "root"}/left" -> "{cluster.user or "root"}/both"' in graph
    cron(cluster, "run-now", "right")
    settled(cluster, "right", 1)
    assert runs(cluster, "both") == []
    cron(cluster, "run-now", "left")
    tries = settled(cluster, "left", 3)
    assert [(run["try"], run["outcome"]) for run in tries] == [(0, "exit 1"), (1, "exit 1"), (2, "exit 0")]
    assert [run["outcome"] for run in settled(cluster, "both", 1)] == ["exit 0"]
    for name in ("both", "left", "right"):
        cron(cluster, "rm", name)


@pytest.mark.full
def test_every_due_time_has_one_job_over_the_death_of_leaders(make_cluster: Any) -> None:
    """200 schedules; in each of 20 seconds ten of them are due, twice each; leaders are killed meanwhile."""
    cluster = make_cluster(agents=2, gpus=2, extra=("--masters", "2"))
    start = (datetime.now(UTC) + timedelta(seconds=40)).replace(microsecond=0)
    expected = []
    with cluster.client() as client:
        for number in range(200):
            first = start + timedelta(seconds=number % 10)
            rule = f"R2/{first.isoformat()}/PT10S"
            wanted = {"name": f"s{number}", "rule": rule, "missed": "all"}
            client.add_schedule(ScheduleRequest(**wanted, job=Submission(["--", "/bin/true"])))
            expected += [(f"s{number}", first), (f"s{number}", first + timedelta(seconds=10))]
    assert datetime.now(UTC) < start, "the machine took too long to make them"
    for second in (4, 9, 14):
        moment = start + timedelta(seconds=second)
        wait_until(lambda moment=moment: datetime.now(UTC) > moment, f"{second} s have passed", 60)
        kill_leader(cluster)

    def all_there() -> bool:
        with psycopg.connect(cluster.database_url) as connection:
            row = connection.execute("SELECT count(*) FROM schedule_runs WHERE owner <> ''").fetchone()
        return row is not None and row[0] >= 400

    wait_until(all_there, "400 runs", 60, interval=0.5)
    with psycopg.connect(cluster.database_url) as connection:
        rows = connection.execute(
            "SELECT schedule, due, seq FROM schedule_runs WHERE owner <> '' AND try = 0"
        ).fetchall()
        jobs = connection.execute(
            "SELECT seq, submission->'environment'->>'HPCMESOS_SCHEDULE', "
            "(submission->'environment'->>'HPCMESOS_SCHEDULE_DUE')::timestamptz FROM jobs"
        ).fetchall()
    assert Counter((name, due) for name, due, _ in rows) == Counter(expected)
    assert Counter((name, due) for _, name, due in jobs) == Counter(expected)
    assert {(name, due, seq) for name, due, seq in rows} == {(name, due, seq) for seq, name, due in jobs}

    def all_over() -> bool:
        with psycopg.connect(cluster.database_url) as connection:
            row = connection.execute("SELECT count(*) FROM schedule_runs WHERE outcome = 'exit 0'").fetchone()
        return row == (400,)

    wait_until(all_over, "all ended well", 60, interval=0.5)


def kill_leader(cluster: LiveCluster) -> None:
    """As soon as there is one."""
    wait_until(lambda: killed(cluster), "a leader to kill", 30)


def killed(cluster: LiveCluster) -> bool:
    query = "SELECT holder FROM leadership ORDER BY term DESC LIMIT 1"
    with psycopg.connect(cluster.database_url) as connection:
        row = connection.execute(query).fetchone()
    assert row is not None
    try:
        os.kill(int(row[0].rpartition(":")[2]), signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True
