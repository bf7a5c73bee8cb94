"""Route queues, and queues that start jobs at certain times."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest

from tests.e2e.cluster_kit import LiveCluster, wait_until
from tests.e2e.conftest import running

TRUE = "#!/bin/sh\ntrue\n"
SETTINGS = """
create queue small queue_type=Execution,enabled=True,started=True,resources_max.ncpus=1,max_user_queuable=1
create queue large queue_type=Execution,enabled=False,started=True
create queue route queue_type=Route,enabled=True,started=True
set queue route route_destinations=small,route_destinations+=large,route_retry_time=1
"""


@pytest.fixture(scope="module")
def own() -> Iterator[LiveCluster]:
    with running(LiveCluster(agents=1, gpus=0)) as cluster:
        done = cluster.run("qmgr", stdin=SETTINGS, user="")
        assert (done.returncode, done.stderr) == (0, ""), done
        yield cluster


def qmgr(own: LiveCluster, directive: str) -> None:
    done = own.run("qmgr", "-c", directive, user="")
    assert (done.returncode, done.stderr) == (0, ""), done


def why_is(own: LiveCluster, job: str, reason: str) -> None:
    """The leader has looked at the job, and that is why it waits."""

    def why() -> str:
        return own.run("qstat", "-f", "--why", job).stdout.replace("\n\t", "")

    wait_until(lambda: reason in why(), reason)


def test_a_job_waits_in_the_route_queue_until_a_destination_takes_it(own: LiveCluster) -> None:
    job = own.qsub("#!/bin/sh\necho $PBS_QUEUE\n", "-q", "route", "-l", "ncpus=2")
    shown = own.job(job)
    assert (shown["job_state"], shown["queue"]) == ("Q", "route")
    why_is(own, job, "no destination of route queue route takes it now")
    qmgr(own, "set queue large enabled=True")
    try:
        assert own.wait(job)["Exit_status"] == 0
        assert own.job(job)["queue"] == "large"
        assert own.output(job) == "large\n"
    finally:
        qmgr(own, "set queue large enabled=False")


def test_a_full_destination_is_waited_for(own: LiveCluster) -> None:
    first = own.qsub(TRUE, "-h", "-q", "route", "-l", "ncpus=1")
    second = own.qsub(TRUE, "-q", "route", "-l", "ncpus=1")
    assert (own.job(first)["queue"], own.job(second)["queue"]) == ("small", "route")
    assert own.run("qdel", first).returncode == 0
    assert own.wait(second)["Exit_status"] == 0
    assert own.job(second)["queue"] == "small"


def test_a_stopped_route_queue_keeps_its_jobs(own: LiveCluster) -> None:
    qmgr(own, "set queue route started=False")
    try:
        job = own.qsub(TRUE, "-q", "route", "-l", "ncpus=1")
        assert own.job(job)["queue"] == "route"
    finally:
        qmgr(own, "set queue route started=True")
    assert own.wait(job)["Exit_status"] == 0


def test_held_jobs_are_routed_when_they_are_released_or_the_queue_says_so(own: LiveCluster) -> None:
    qmgr(own, "set queue route started=False")
    held, other = (own.qsub(TRUE, "-h", "-q", "route", "-l", "ncpus=1") for _ in range(2))
    qmgr(own, "set queue route started=True")
    job = own.qsub(TRUE, "-q", "route", "-l", "ncpus=1")  # both have had their turn when it has passed
    own.wait(job)
    assert own.job(held)["queue"] == "route"
    qmgr(own, "set queue route route_held_jobs=True")
    wait_until(
        lambda: {own.job(one)["queue"] for one in (held, other)} == {"small", "route"}, "one is routed"
    )
    for one in (held, other):
        own.run("qrls", one, check=True)
        assert own.wait(one)["Exit_status"] == 0
    qmgr(own, "unset queue route route_held_jobs")


def test_what_no_destination_ever_takes_is_refused_at_once(own: LiveCluster) -> None:
    qmgr(own, "set queue route route_destinations=small")
    try:
        done = own.run("qsub", "-q", "route", "-l", "ncpus=2", stdin=TRUE)
        assert (done.returncode, done.stdout) == (190, "")
        assert "rejected by all possible destinations" in done.stderr
    finally:
        qmgr(own, "set queue route route_destinations+=large")


def test_a_lifetime_ends_the_wait(own: LiveCluster) -> None:
    qmgr(own, "set queue route route_lifetime=1")
    try:
        job = own.qsub(TRUE, "-q", "route", "-l", "ncpus=2")
        ended = own.wait(job)
        assert "Exit_status" not in ended
        assert ended["comment"] == "no destination of route queue route has taken it within 1 s"
    finally:
        qmgr(own, "unset queue route route_lifetime")


def test_jobs_start_when_the_queue_is_open(own: LiveCluster) -> None:
    tomorrow = (datetime.now().astimezone() + timedelta(days=2)).strftime("%a")
    qmgr(own, f"create queue night enabled=True,started=True,start_times='{tomorrow} 18:00-08:00'")
    job = own.qsub(TRUE, "-q", "night")
    why_is(own, job, f"queue night starts jobs {tomorrow} 18:00-08:00, next at {tomorrow} 18:00")
    assert own.job(job)["job_state"] == "Q"
    qmgr(own, "set queue night start_times='00:00-24:00'")
    assert own.wait(job)["Exit_status"] == 0
    refused = own.run("qmgr", "-c", "set queue night start_times = sometimes", user="")
    assert refused.returncode != 0
    assert "is no time of a queue" in refused.stderr
    printed = own.run("qmgr", "-c", "print queue night", user="").stdout
    assert "set queue night start_times = 00:00-24:00" in printed
