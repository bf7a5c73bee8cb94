"""What the leader does with wishes that change jobs."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from msgspec.structs import replace

from hpcmesos import wire
from hpcmesos.model import Cause, JobState, Request
from hpcmesos.queue.dependencies import Dependency, DependencyKind
from hpcmesos.units import parse_duration
from tests.integration.leader_kit import Bench, ended, kinds, report, request

if TYPE_CHECKING:
    pass

pytest_plugins = ["tests.integration.database_kit", "tests.integration.leader_kit"]
STOPPED = {"kind": "queue", "name": "batch", "action": "set", "changes": [["started", "=", "false"]]}


def test_a_job_that_waits_is_altered(bench: Bench) -> None:
    seq = bench.submit(request(9, 1))
    bench.turn()
    later = "2099-01-01T00:00:00+00:00"
    fields = {
        "name": "new",
        "priority": 5,
        "rerunable": False,
        "not_before": later,
    }
    given = {"umask": 0o22, "environment": {"B": "2"}}
    bench.wish("alter", seq, fields=fields, submission=given, resources={"select": "1:ncpus=1:ngpus=1"})
    job = bench.job(seq)
    assert (job.name, job.priority, job.rerunable, job.state) == ("new", 5, False, JobState.WAITING)
    assert job.request.chunks == request(1, 1).chunks
    assert job.not_before == datetime(2099, 1, 1, tzinfo=UTC)
    shown = job.submission["resource_list"]
    assert job.submission == {"environment": {"A": "1", "B": "2"}, "umask": 0o22, "resource_list": shown}
    assert shown["select"] == "1:ncpus=1:ngpus=1"
    told = [event.payload["user"] for event in bench.store.events(seq=seq) if event.kind == "altered"]
    assert told == ["ann", "ann"]


def test_a_job_does_not_grow_beyond_what_its_nodes_can_be_told(bench: Bench) -> None:
    """Of several wishes none is too much, so the API has let all of them pass."""
    seq = bench.submit(holds="u", state=JobState.HELD)
    for letter in "ABC":
        bench.wish("alter", seq, fields={}, submission={"environment": {letter: letter * 1_000_000}})
    assert sorted(bench.job(seq).submission["environment"]) == ["A", "B"]
    bench.up("node1")
    ((_, message),) = bench.wish("release", seq, kinds="u")
    assert len(wire.encode(message)) < wire.MAX_FRAME
    bench.run(seq)
    bench.say(("node1", ended(bench.attempt(seq))))


def test_an_altered_request_can_start_at_once(bench: Bench) -> None:
    bench.up("node1")
    seq = bench.submit(request(9, 1))
    bench.turn()
    assert bench.state(seq) is JobState.QUEUED
    sent = bench.wish("alter", seq, resources={"select": "1:ncpus=1:ngpus=2"})
    assert kinds(sent) == [("node1", "Prepare")]
    assert bench.state(seq) is JobState.RUNNING


def test_new_holds_and_parents(bench: Bench) -> None:
    parent, seq = bench.submit(), bench.submit()
    bench.turn()
    bench.wish("alter", seq, fields={"dependencies": [["afterok", parent]]})
    assert (bench.state(seq), bench.job(seq).holds) == (JobState.HELD, "d")
    assert bench.job(seq).dependencies[0].kind is DependencyKind.AFTER_OK
    bench.wish("alter", seq, fields={"holds": "u"})
    assert bench.job(seq).holds == "du"
    bench.wish("alter", seq, fields={"dependencies": []})
    assert bench.job(seq).holds == "u"
    bench.wish("alter", seq, fields={"holds": ""})
    assert bench.state(seq) is JobState.QUEUED


def test_a_running_job_gets_another_walltime_and_keeps_its_shape(bench: Bench) -> None:
    bench.up("node1")
    seq = bench.submit()
    bench.turn()
    bench.run(seq)
    sent = bench.wish("alter", seq, fields={"priority": 3}, resources={"walltime": "90"})
    assert sent == [("node1", wire.Alter(attempt=f"{seq}.hpcm#1", walltime=90, suspended=False))]
    job = bench.job(seq)
    assert (job.request.walltime, job.request.chunks, job.priority) == (90, request().chunks, 3)

    # A head that was away meanwhile is told again.
    bench.down("node1")
    sent = bench.up("node1", attempts=[report(f"{seq}.hpcm#1", "running")])
    assert ("node1", wire.Alter(attempt=f"{seq}.hpcm#1", walltime=90, suspended=False)) in sent
    bench.say(("node1", ended(f"{seq}.hpcm#1")))


def test_what_only_a_job_that_waits_can_take_comes_too_late(bench: Bench) -> None:
    """The API looked when it waited: nothing of it is done, and nothing is shown that is not so."""
    bench.up("node1")
    seq = bench.submit(submission={"resource_list": {"nodes": "1"}, "umask": 0o77})
    bench.turn()
    before = bench.job(seq)
    assert before.state is JobState.RUNNING
    late = {"fields": {"name": "new"}, "submission": {"umask": 0o22}, "resources": {"nodes": "4"}}
    bench.wish("alter", seq, **late, waits=True)
    assert replace(bench.job(seq), modified_at=before.modified_at) == before
    assert [event.kind for event in bench.store.events(seq=seq)][-1] == "ignored"
    bench.run(seq)
    bench.say(("node1", ended(bench.attempt(seq))))


def test_an_owners_longer_walltime_comes_too_late_for_a_job_that_has_begun(bench: Bench) -> None:
    bench.up("node1")
    seq = bench.submit(
        Request(request().chunks, walltime=600), submission={"resource_list": {"walltime": "600"}}
    )
    bench.turn()
    bench.run(seq)
    for walltime, privileged, found in (("900", False, 600), ("300", False, 300), ("900", True, 900)):
        bench.wish("alter", seq, resources={"walltime": walltime}, privileged=privileged)
        job = bench.job(seq)
        assert job.request.walltime == found
        assert parse_duration(job.submission["resource_list"]["walltime"]) == found
    bench.say(("node1", ended(bench.attempt(seq))))


def test_two_alterations_at_once_are_both_done(bench: Bench) -> None:
    """Each was looked at before the other one was done."""
    seq = bench.submit(request(9), submission={"resource_list": {"nodes": "9", "walltime": "01:00:00"}})
    for words in ({"nodes": "2"}, {"walltime": "00:10:00"}):
        bench.store.wish("alter", seq, "ann", {"resources": words})
    bench.turn()
    job = bench.job(seq)
    assert (job.request.walltime, [chunk.count for chunk in job.request.chunks]) == (600, [2])
    shown = job.submission["resource_list"]
    assert (shown["nodes"], shown["walltime"]) == ("2", "00:10:00")


def test_a_job_moves_to_another_queue_while_it_waits(bench: Bench) -> None:
    bench.store.wish(
        "object", None, "ann", {"kind": "queue", "name": "gpu", "action": "create", "changes": []}
    )
    seq = bench.submit()
    bench.turn()
    bench.wish("move", seq, queue="gpu")
    assert bench.job(seq).queue == "gpu"
    bench.wish("move", seq, queue="nosuch")
    assert bench.job(seq).queue == "gpu"


def test_two_jobs_exchange_their_places(bench: Bench) -> None:
    bench.store.wish("object", None, "ann", STOPPED)
    first, second = bench.submit(request(1, 2)), bench.submit(request(1, 2))
    bench.turn()
    bench.wish("order", first, other=second)
    bench.up("node1")
    bench.store.wish("object", None, "ann", {**STOPPED, "changes": [["started", "=", "true"]]})
    bench.turn()
    assert (bench.state(first), bench.state(second)) == (JobState.QUEUED, JobState.RUNNING)


def test_a_job_that_is_rerun_goes_back_uncharged(bench: Bench) -> None:
    bench.up("node1")
    seq = bench.submit()
    bench.turn()
    bench.run(seq)
    sent = bench.wish("rerun", seq, kill_delay=0)
    [(node, end)] = sent
    assert isinstance(end, wire.End)
    assert (node, end.cause, end.kill_delay) == ("node1", Cause.PREEMPTED, 0)
    assert bench.wish("rerun", seq) == []  # once is enough
    bench.say(("node1", ended(f"{seq}.hpcm#1", "PREEMPTED", signal=15)))
    job = bench.job(seq)
    assert (job.state, job.attempt, job.charged_attempts) == (JobState.RUNNING, 2, 0)


def test_a_job_that_may_not_be_rerun_runs_on(bench: Bench) -> None:
    bench.up("node1")
    seq = bench.submit(rerunable=False)
    bench.turn()
    bench.run(seq)
    assert bench.wish("rerun", seq) == []


def test_a_message_goes_to_the_head(bench: Bench) -> None:
    bench.up("node1")
    seq = bench.submit()
    bench.turn()
    bench.run(seq)
    sent = bench.wish("message", seq, text="hello", streams="oe")
    assert sent == [("node1", wire.Alter(attempt=f"{seq}.hpcm#1", streams="oe", text="hello"))]


def test_what_a_running_script_is_told_waits_until_its_head_says_that_it_runs(bench: Bench) -> None:
    bench.up("node1")
    seq = bench.submit()
    bench.turn()
    assert bench.wish("message", seq, text="hello", streams="e") == []
    assert bench.wish("signal", seq, signal=10) == []
    name = f"{seq}.hpcm#1"
    told = [
        ("node1", wire.Alter(attempt=name, streams="e", text="hello")),
        ("node1", wire.Signal(attempt=name, signal=10)),
    ]
    assert bench.say(("node1", wire.Ready(attempt=name))) == [("node1", wire.Go(attempt=name))]
    assert bench.say(("node1", wire.Started(attempt=name, pid=1, started_at=time.time()))) == told
    assert bench.wish("signal", seq, signal=12) == [("node1", wire.Signal(attempt=name, signal=12))]


def test_a_job_waits_until_others_have_named_it(bench: Bench) -> None:
    bench.up("node1")
    on = (Dependency(DependencyKind.ON, 0, None, 2),)
    seq = bench.submit(dependencies=on, holds="d", state=JobState.HELD)
    bench.turn()
    assert bench.state(seq) is JobState.HELD
    submission = {"before": [["afterok", seq]]}
    first, second = (bench.submit(submission=submission) for _ in range(2))
    bench.turn()
    assert bench.job(seq).dependencies == (
        Dependency(DependencyKind.AFTER_OK, first),
        Dependency(DependencyKind.AFTER_OK, second),
    )
    for parent in (first, second):
        assert bench.state(seq) is JobState.HELD
        bench.run(parent)
        bench.say(("node1", ended(f"{parent}.hpcm#1")))
    assert bench.state(seq) is JobState.RUNNING


def test_the_queue_decides_how_long_a_job_may_take_to_end(bench: Bench) -> None:
    bench.store.wish("object", None, "ann", {**STOPPED, "changes": [["kill_delay", "=", "3"]]})
    bench.up("node1")
    seq = bench.submit()
    bench.turn()
    bench.run(seq)
    [(_, end)] = bench.wish("delete", seq)
    assert isinstance(end, wire.End)
    assert end.kill_delay == 3


def test_every_change_says_who_made_it_and_how_that_one_came(bench: Bench) -> None:
    seq = bench.submit()
    bench.turn()
    began = datetime(2000, 1, 1, tzinfo=UTC)
    bench.store.wish("hold", seq, "ann", {"index": None, "kinds": "u"}, via="token 1 from ::1")
    bench.store.wish("object", None, "boss", STOPPED, via="socket uid 7 pid 8")
    bench.turn()
    found = {(c.action, c.seq): (c.user, c.via) for c in bench.store.changes(began)}
    assert found == {
        ("held", seq): ("ann", "token 1 from ::1"),
        ("queue set", None): ("boss", "socket uid 7 pid 8"),
    }
    assert [c.action for c in bench.store.changes(began, user="ann")] == ["held"]
    assert [c.action for c in bench.store.changes(began, seq=seq)] == ["held"]
