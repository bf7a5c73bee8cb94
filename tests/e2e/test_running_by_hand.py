"""qrun, and jobs that stand still (qsig -s suspend)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.cluster_kit import LiveCluster, wait_until
from tests.e2e.conftest import running

SLEEP = "#!/bin/sh\nsleep 600\n"
TRUE = "#!/bin/sh\ntrue\n"


@pytest.fixture(scope="module")
def own() -> Iterator[LiveCluster]:
    with running(LiveCluster(agents=2, gpus=4)) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def _empty(own: LiveCluster) -> Iterator[None]:
    yield
    own.run("qdel", "-W", "0", "all", user="")
    wait_until(lambda: own.run("qselect").stdout == "", "no job is left")


def qrun(own: LiveCluster, *words: str, pbspro: bool = False) -> tuple[int, str]:
    family = {"PATH": own.environ["PATH"].replace("/torque:", "/pbspro:")} if pbspro else {}
    done = own.run("qrun", *words, user="", environ=family)
    assert done.stdout == ""
    return done.returncode, done.stderr


def test_a_held_job_of_a_stopped_queue_starts_on_the_node_of_choice(own: LiveCluster) -> None:
    own.run("qstop", "batch", user="", check=True)
    try:
        job, waits = own.qsub(SLEEP, "-h", "-l", "nodes=1:gpus=1"), own.qsub(SLEEP)
        if own.user is not None:
            denied = own.run("qrun", job)
            assert (denied.returncode, denied.stderr) == (159, f"qrun: Unauthorized Request  {job}\n")
        assert qrun(own, "-H", "node2", job) == (0, "")
        shown = own.job(job)
        assert (shown["job_state"], shown["exec_host"]) == ("R", "node2/0")
        assert own.job(waits)["job_state"] == "Q"
        code, text = qrun(own, job)
        assert (code, "invalid state for job - RUNNING" in text) == (170, True)
    finally:
        own.run("qstart", "batch", user="", check=True)


def test_a_job_without_room_says_why_and_stays(own: LiveCluster) -> None:
    keep = own.qsub(SLEEP, "-l", "nodes=2:gpus=2")
    own.wait_state(keep, "R")
    job = own.qsub(SLEEP, "-h", "-l", "nodes=1:gpus=2")
    code, text = qrun(own, job)
    assert code == 198
    assert text.startswith("qrun: Resource temporarily unavailable MSG=")
    assert "GPU" in text
    code, text = qrun(own, job, pbspro=True)
    assert (code, text.startswith("qrun: Insufficient amount of resource: ")) == (2, True)
    shown = own.job(job)
    assert (shown["job_state"], shown["Hold_Types"]) == ("H", "u")
    assert shown["comment"].startswith("Not Running: ")
    own.run("qdel", "-W", "0", keep, check=True)
    wait_until(lambda: qrun(own, job)[0] == 0, "room is there")
    assert own.job(job)["job_state"] == "R"


def test_several_at_once_and_what_is_refused(own: LiveCluster) -> None:
    jobs = [own.qsub(SLEEP, "-h") for _ in range(3)]
    assert qrun(own, *jobs) == (0, "")
    assert {own.job(job)["job_state"] for job in jobs} == {"R"}
    array = own.qsub(TRUE, "-h", "-t", "1-3")
    for words, code, part in (
        ([], 2, "name at least one job"),
        (["99999"], 153, "Unknown Job Id"),
        ([array], 168, "is an array"),
        (["-H", "nosuch", jobs[0]], 170, ""),
        (["-H", "a b", jobs[0]], 168, "illegal -H value"),
    ):
        got, text = qrun(own, *words)
        assert (got, part in text, len(text.splitlines())) == (code, True, 1), (words, got, text)
    over = own.qsub(TRUE)
    own.wait(over)
    assert qrun(own, over)[0] == 170


def test_a_suspended_job_stands_still_and_its_walltime_too(own: LiveCluster) -> None:
    script = "#!/bin/sh\npbsdsh sh -c 'while :; do date +%s.%N >beat.$PBS_NODENUM; sleep 0.05; done'\n"
    job = own.qsub(script, "-l", "nodes=2,walltime=10", "-d", ".")
    beats = [own.work() / f"beat.{number}" for number in (0, 1)]
    wait_until(lambda: all(beat.exists() for beat in beats), "both nodes beat")
    own.wait_state(job, "R")
    if own.user is not None:
        denied = own.run("qsig", "-s", "suspend", job)
        assert (denied.returncode, denied.stderr) == (159, f"qsig: Unauthorized Request  {job}\n")
    done = own.run("qsig", "-s", "suspend", job, user="")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert own.job(job)["job_state"] == "S"

    def still() -> bool:
        before = [beat.read_text() for beat in beats]
        own.run("qstat", job)  # some tenths of a second
        return before == [beat.read_text() for beat in beats]

    wait_until(still, "nobody beats")
    before = [beat.read_text() for beat in beats]
    other = own.qsub("#!/bin/sh\nsleep 11\n")  # longer than the walltime
    own.wait(other)
    assert [beat.read_text() for beat in beats] == before
    assert own.job(job)["job_state"] == "S"
    assert own.run("qsig", "-s", "resume", job, user="").returncode == 0
    assert own.job(job)["job_state"] == "R"
    wait_until(lambda: all(beat.read_text() != old for beat, old in zip(beats, before, strict=True)), "beats")
    assert own.wait(job)["Exit_status"] == -11


def test_a_suspended_job_can_be_deleted(own: LiveCluster) -> None:
    job = own.qsub(SLEEP)
    own.wait_state(job, "R")
    own.run("qsig", "-s", "suspend", job, user="", check=True)
    own.run("qdel", job, check=True)
    assert own.wait(job)["Exit_status"] == 271
