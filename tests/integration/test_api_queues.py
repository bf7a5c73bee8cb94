"""What queues let in, and what their jobs get from them, against a real API process."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from hpcmesos.client import Client
from hpcmesos.errors import HpcmesosError, QueueDenied, QueueLimit, TooManyJobs
from hpcmesos.queue.records import QueueRecord

if TYPE_CHECKING:
    from .api_kit import Api, ObedientLeader

pytest_plugins = ["tests.integration.database_kit", "tests.integration.api_kit"]

HOST = os.uname().nodename
ME = pwd.getpwuid(os.getuid()).pw_name
QUEUES = {
    "bounded": {
        "resources_max.walltime": "01:00:00",
        "resources_max.ncpus": "4",
        "resources_min.ncpus": "2",
        "resources_default.walltime": "00:10:00",
        "resources_default.nodes": "1:ppn=2",
    },
    "longest": {"resources_max.walltime": "02:00:00"},
    "few": {"max_user_queuable": "1"},
    "pro": {"max_queued": "[u:PBS_GENERIC=1]"},
    "named": {"max_queued": f"[u:PBS_GENERIC=0],[u:{ME}=1]"},
    "group": {"max_queued": "[g:PBS_GENERIC=1]"},
    "project": {"max_queued": "[p:PBS_GENERIC=1],[p:chem=2]"},
    "all": {"max_queued": "[o:PBS_ALL=1]"},
    "bob": {"acl_user_enable": "True", "acl_users": "bob"},
    "mine": {"acl_user_enable": "True", "acl_users": f"-{ME}@elsewhere,{ME}"},
    "notmine": {"acl_user_enable": "True", "acl_users": f"-{ME}@{HOST},{ME}"},
    "host": {"acl_host_enable": "True", "acl_hosts": f"{HOST[:1]}*"},
    "away": {"acl_host_enable": "True", "acl_hosts": "*.nowhere"},
    "either": {
        "acl_host_enable": "True",
        "acl_hosts": "nowhere",
        "acl_user_enable": "True",
        "acl_users": ME,
        "acl_logic_or": "True",
    },
    "onegroup": {"acl_group_enable": "True", "acl_groups": "chem"},
    "grouprun": {"max_group_run": "1"},
    "groupgpus": {"max_run_res.ngpus": "[g:chem=4]"},
    "group-or-user": {
        "acl_group_enable": "True",
        "acl_groups": "chem",
        "acl_user_enable": "True",
        "acl_users": "stranger",
        "acl_logic_or": "True",
    },
    "plain": {},
    "empty": {},
    "nogroup": {"acl_group_enable": "True", "acl_groups": "no-such-group"},
    "inner": {"from_route_only": "True"},
    "route": {"queue_type": "Route", "route_destinations": "closed,bob,bounded,inner"},
    "nowhere": {"queue_type": "Route", "route_destinations": "away,bob"},
    "later": {"queue_type": "Route", "route_destinations": "bob,closed"},
    "circle": {"queue_type": "Route", "route_destinations": "circle"},
    "two": {"max_user_queuable": "2"},
    "three": {"max_queued": "[o:PBS_ALL=3]"},
    "spill": {"queue_type": "Route", "route_destinations": "two,three"},
    "norerun": {"disallowed_types": "nonrerunable"},
}


@pytest.fixture(scope="module")
def api_settings() -> dict[str, object]:
    return {"managers": ("boss",)}


@pytest.fixture(scope="module", autouse=True)
def queues(api: Api) -> Iterator[None]:
    with api.leader.transaction() as tx:
        for name, attributes in QUEUES.items():
            tx.put_queue(QueueRecord(name=name, attributes=attributes))
    yield


def submit(api: Api, *argv: str, by: Client | None = None) -> str:
    with by or api.client() as client:
        reply = client.command(
            "qsub", list(argv), script=b"#!/bin/sh\n", cwd=str(api.work), environ={"HOME": "/"}
        )
    return reply.stdout.strip()


@pytest.mark.parametrize(
    ("words", "error", "text"),
    [
        (["-q", "bounded", "-l", "ncpus=8"], QueueLimit, "ncpus is 8, at most 4"),
        (["-q", "bounded", "-l", "ncpus=1"], QueueLimit, "ncpus is 1, at least 2"),
        (["-q", "bounded", "-l", "walltime=2:00:00"], QueueLimit, "walltime is 02:00:00, at most 01:00:00"),
        (["-q", "bob"], QueueDenied, f"user {ME}@{HOST} is not allowed in queue bob"),
        (["-q", "nogroup"], QueueDenied, "nogroup"),
        (["-q", "inner"], QueueDenied, "route queues only"),
        (["-q", "nowhere"], QueueLimit, "is not allowed in queue away; bob: "),
        (["-q", "circle"], QueueLimit, "circle"),
        (["-q", "norerun", "-r", "n"], QueueDenied, "nonrerunable"),
    ],
)
def test_refused_by_the_queue(api: Api, words: list[str], error: type[HpcmesosError], text: str) -> None:
    before = api.counts()
    with pytest.raises(error) as caught:
        submit(api, *words)
    assert text in str(caught.value)
    assert api.counts() == before


def test_hosts_decide(api: Api) -> None:
    assert submit(api, "-q", "host")
    assert submit(api, "-q", "either")
    assert submit(api, "-q", "mine")
    for queue in ("away", "notmine"):
        with pytest.raises(QueueDenied):
            submit(api, "-q", queue)


@pytest.mark.parametrize("queue", ["few", "pro", "named", "group", "project", "all"])
def test_a_user_has_so_many_jobs_in_a_queue_and_no_more(api: Api, queue: str) -> None:
    submit(api, "-q", queue)
    with pytest.raises(TooManyJobs) as caught:
        submit(api, "-q", queue)
    assert f"1 jobs of at most 1 in queue {queue}" in str(caught.value)


def test_the_jobs_of_one_call_count_one_another(api: Api) -> None:
    def jobs(queue: str, count: int) -> list[list[str]]:
        return [["-q", queue, "-l", f"ncpus={1 + place % 2}", "--", "prog"] for place in range(count)]

    before = api.counts()
    with api.client() as client:
        with pytest.raises(TooManyJobs, match=r"^job 2: .*2 jobs of at most 2 in queue two"):
            client.submit_many(jobs("two", 3))
        assert api.counts() == before
        taken = client.submit_many(jobs("spill", 4))
        seqs = [int(job.partition(".")[0]) for job in taken]
        assert [api.store.job(seq).queue for seq in seqs] == ["two", "two", "three", "three"]
        after = api.counts()
        with pytest.raises(TooManyJobs):
            client.submit_many(jobs("three", 2))
        assert api.counts() == after


@pytest.mark.parametrize("queue", ["onegroup", "group-or-user", "grouprun", "groupgpus", "group"])
def test_a_group_that_nobody_can_verify_opens_no_door(api: Api, queue: str) -> None:
    """The user of a token need not be one of the master's host."""
    before = api.counts()
    with pytest.raises(QueueDenied) as caught:
        submit(api, "-q", queue, "-W", "group_list=chem", by=api.client(api.token_of("stranger")))
    assert f"queue {queue} minds groups" in str(caught.value)
    assert api.counts() == before


def test_a_group_that_nobody_can_verify_is_taken_where_nothing_hangs_on_it(api: Api) -> None:
    def as_stranger() -> Client:
        return api.client(api.token_of("stranger"))

    job = submit(api, "-q", "plain", "-W", "group_list=chem", by=as_stranger())
    assert submit(api, "-q", "grouprun", by=as_stranger())
    with as_stranger() as client:
        reply = client.command("qmove", ["grouprun", job])
        assert (reply.code != 0, "minds groups" in reply.stderr) == (True, True)
    own = submit(api, "-q", "grouprun", "-h", by=as_stranger())
    with as_stranger() as client:
        reply = client.command("qalter", ["-W", "group_list=chem", own])
        assert (reply.code != 0, "minds groups" in reply.stderr) == (True, True)


def test_an_own_group_lends_no_weight_to_another_one(api: Api) -> None:
    own = grp.getgrgid(os.getgid()).gr_name
    with pytest.raises(QueueDenied, match="not allowed in queue onegroup"):
        submit(api, "-q", "onegroup", "-W", f"group_list={own},chem")


def test_projects_are_counted_each_by_itself(api: Api) -> None:
    for _ in range(2):
        submit(api, "-q", "project", "-P", "chem")
    with pytest.raises(TooManyJobs) as caught:
        submit(api, "-q", "project", "-P", "chem")
    assert "jobs of project chem exceeds the queue limit MSG=2 jobs of at most 2 in queue project" in str(
        caught.value
    )


def test_defaults_of_the_queue(api: Api) -> None:
    def resources(*words: str) -> dict[str, str]:
        job = api.store.job(int(submit(api, *words).split(".")[0]))
        assert job is not None
        return dict(job.submission["resource_list"])

    assert resources("-q", "bounded") == {
        "ncpus": "2",
        "nodect": "1",
        "nodes": "1:ppn=2",
        "walltime": "00:10:00",
    }
    assert resources("-q", "bounded", "-l", "select=1:ncpus=3,walltime=60") == {
        "ncpus": "3",
        "nodect": "1",
        "select": "1:ncpus=3",
        "walltime": "00:01:00",
    }
    assert resources("-q", "longest")["walltime"] == "02:00:00"
    assert "walltime" not in resources()


def test_a_route_queue_picks_the_first_that_takes_the_job(api: Api) -> None:
    def queue(*words: str) -> str:
        job = api.store.job(int(submit(api, *words).split(".")[0]))
        assert job is not None
        return job.queue

    assert queue("-q", "route", "-l", "ncpus=2") == "bounded"
    assert queue("-q", "route", "-l", "ncpus=1") == "inner"
    assert queue("-q", "later") == "later"  # a disabled destination may take it another day


def test_a_queue_that_a_job_has_come_into_meanwhile_is_not_said_to_be_deleted(
    api: Api, obedient: ObedientLeader
) -> None:
    """The leader, which knows of the job, leaves the queue as it is."""
    with api.client(api.token_of("boss")) as manager:
        reply = manager.command("qmgr", ["-c", "delete queue empty"])
    assert [row.payload["name"] for row in obedient.taken if row.kind == "object"] == ["empty"]
    assert "Queue is busy" in reply.stderr
    assert reply.code != 0
