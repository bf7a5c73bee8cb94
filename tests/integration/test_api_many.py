"""Many jobs in one call, and what happened to them in order, against a real API process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from hpcmesos.api_schema import MOST_AT_ONCE, Submission
from hpcmesos.errors import InvalidScript, KeyReused, NeverFits, Unauthenticated, UsageError
from hpcmesos.model import JobState

if TYPE_CHECKING:
    from .api_kit import Api

pytest_plugins = ["tests.integration.database_kit", "tests.integration.api_kit"]


@pytest.fixture(scope="module", autouse=True)
def two_nodes(api: Api) -> None:
    api.add_nodes(2, gpus=2)


def commands(count: int) -> list[list[str]]:
    return [["-N", f"sweep{number}", "--", "prog", str(number)] for number in range(count)]


def test_many_jobs_are_as_if_each_came_alone(api: Api) -> None:
    script = Submission(["-l", "nodes=2:gpus=1"], b"#!/bin/sh\n#PBS -N script\necho hello\n")
    held = ["-h", "-a", "203012312359", "--", "prog"]
    with api.client() as client:
        ids = client.submit_many([*commands(48), script, held], environ={"HOME": "/home/ann"})
        alone = client.command("qsub", ["-N", "sweep7", "--", "prog", "7"], environ={"HOME": "/home/ann"})
    jobs = [api.store.job(int(text.partition(".")[0])) for text in ids]
    assert len(set(ids)) == 50
    assert [job.name for job in jobs] == [*(f"sweep{number}" for number in range(48)), "script", "prog"]
    assert [job.state for job in jobs[-3:]] == [JobState.QUEUED, JobState.QUEUED, JobState.HELD]
    assert jobs[0].queued_at is not None
    assert jobs[-1].queued_at is None
    assert jobs[-1].not_before is not None
    assert api.store.script(jobs[-2].seq) == script.script
    one, same = jobs[7], api.store.job(int(alone.stdout.partition(".")[0]))
    assert (one.request, one.submission, one.owner) == (same.request, same.submission, api.me)


def test_a_sweep_by_variables_is_as_if_each_came_alone(api: Api) -> None:
    script = b"#!/bin/sh\n#PBS -v SEED=0,KEPT=1 -N sweep\n./run\n"
    words = [["-v", f"SEED={seed}", "-F", f"{seed} 'a b'"] for seed in range(30)]
    with api.client() as client:
        many = client.submit_many([Submission(argv, script) for argv in words], environ={"HOME": "/home/ann"})
        alone = client.command("qsub", words[7], script=script, environ={"HOME": "/home/ann"})
    one, same = (api.store.job(int(text.partition(".")[0])) for text in (many[7], alone.stdout))
    assert (one.name, one.request, one.submission) == (same.name, same.request, same.submission)
    assert one.submission["environment"] | {"SEED": "7", "KEPT": "1"} == one.submission["environment"]


def test_an_array_of_a_million_elements_is_one_row(api: Api) -> None:
    jobs, inbox, _ = api.counts()
    with api.client() as client:
        reply = client.command("qsub", ["-h", "-t", "0-999999", "--", "prog"])
        array = reply.stdout.strip()
        listed = client.command("qstat", [array]).stdout.splitlines()
    assert (api.counts()[0], api.counts()[1]) == (jobs + 1, inbox + 1)
    assert [line.split()[0] for line in listed[2:]] == [array]


def test_a_repeated_call_makes_no_second_set(api: Api) -> None:
    with api.client() as client:
        first = client.submit_many(commands(30), key="once")
        before = api.counts()
        assert client.submit_many(commands(30), key="once") == first
        with pytest.raises(KeyReused):
            client.submit_many(commands(31), key="once")
        assert client.submit_many([]) == []
    assert api.counts() == before


def test_one_bad_job_keeps_all_out_and_is_named(api: Api) -> None:
    before = api.counts()
    bad = {
        UsageError: ["-l", "nodes=1"],
        NeverFits: ["-l", "nodes=99", "--", "prog"],
        InvalidScript: Submission([], b"\x7fELF\0"),
    }
    with api.client() as client:
        for error, job in bad.items():
            with pytest.raises(error, match=r"^job 25: "):
                client.submit_many([*commands(25), job])
        with pytest.raises(UsageError, match="at most"):
            client.submit_many([["--", "prog"]] * (MOST_AT_ONCE + 1))
        with api.client(token="wrong") as stranger, pytest.raises(Unauthenticated):
            stranger.submit_many(commands(1))
    assert api.counts() == before


def test_events_come_in_order_and_go_on_from_a_cursor(api: Api) -> None:
    job = api.qsub()
    other = api.qsub()
    api.start(job, "node1")
    with api.client() as client:
        events = list(client.events())
        mine = list(client.events(job=str(job.seq)))
        assert [event.id for event in events] == sorted(event.id for event in events)
        assert list(client.events(events[-1].id)) == []
        assert list(client.events(events[0].id)) == events[1:]
        assert [(event.job, event.before, event.state) for event in mine][-1] == (f"{job.seq}.hpcm", "Q", "R")
        api.start(other, "node2")
        follower = client.events(events[-1].id, follow=True)
        assert next(follower).job == f"{other.seq}.hpcm"
