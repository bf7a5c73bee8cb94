"""qmgr and its small sisters on a living cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.cluster_kit import LiveCluster, wait_until
from tests.e2e.conftest import running

TRUE = "#!/bin/sh\ntrue\n"


@pytest.fixture(scope="module")
def own() -> Iterator[LiveCluster]:
    """A cluster whose queues these tests may change."""
    with running(LiveCluster(agents=1, gpus=1)) as cluster:
        yield cluster


def qmgr(cluster: LiveCluster, *directives: str, user: str = "") -> str:
    done = cluster.run("qmgr", stdin="\n".join(directives), user=user)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def test_a_queue_is_disabled_stopped_and_deleted(own: LiveCluster) -> None:
    def row() -> list[str]:
        return own.run("qstat", "-Q", "batch").stdout.splitlines()[2].split()[:5]

    assert own.run("qdisable", "batch", user="").returncode == 0
    assert row() == ["batch", "0", "0", "no", "yes"]
    refused = own.run("qsub", stdin=TRUE)
    assert (refused.returncode, refused.stdout) == (175, "")
    assert own.run("qenable", "batch", user="").returncode == 0
    assert own.run("qstop", "batch", user="").returncode == 0
    assert row() == ["batch", "0", "0", "yes", "no"]
    job = own.qsub(TRUE)
    assert own.job(job)["job_state"] == "Q"
    busy = own.run("qmgr", "-c", "delete queue batch", user="")
    assert busy.stderr.splitlines() == [
        "qmgr obj=batch svr=default: Queue is busy",
        "qmgr: Error (15029) returned from server",
    ]
    assert own.run("qstart", "batch", user="").returncode == 0
    assert own.wait(job)["Exit_status"] == 0
    unknown = own.run("qstart", "nosuch", user="")
    assert (unknown.returncode, unknown.stderr) == (2, "qstart: Unknown queue nosuch\n")


def test_refusals(own: LiveCluster, users: tuple[str, str]) -> None:
    ann, _ = users
    for directive, code, number, words in (
        ("create queue batch", 179, 15027, "Queue already exists"),
        ("delete queue nosuch", 172, 15020, "Unknown queue"),
        ("set queue batch foo = 1", 154, 15002, "Undefined attribute foo"),
        ("set queue batch started = maybe", 168, 15016, "maybe"),
        ("set server default_queue = nosuch", 172, 15020, "Unknown queue"),
        ("list node nosuch", 178, 15026, "Unknown node"),
    ):
        done = own.run("qmgr", "-c", directive, user="")
        first, second = done.stderr.splitlines()
        assert words in first, done.stderr
        assert second == f"qmgr: Error ({number}) returned from server"
        assert (done.returncode, done.stdout) == (code, "")
    denied = own.run("qmgr", "-c", "set server scheduling = false", user=ann)
    assert denied.returncode == 159
    assert own.run("qdisable", "batch", user=ann).returncode == 2
    assert "\tscheduling = True\n" in own.run("qmgr", "-c", "list server", user=ann).stdout
    qmgr(own, f"set server managers += {ann}@*")
    assert qmgr(own, "set server scheduling = false", "l s scheduling", user=ann).endswith(
        "Server hpcm\n\tscheduling = False\n\n"
    )
    qmgr(own, "unset server scheduling,managers")


def test_a_node_is_taken_out_of_use(own: LiveCluster) -> None:
    qmgr(own, "set node node1 state = offline", 'set node node1 note = "fan broken"')
    assert own.run("pbsnodes", "-l", "-n").stdout.split() == ["node1", "offline", "fan", "broken"]
    assert "\tstate = offline\n" in own.run("qmgr", "-c", "list node node1").stdout
    assert 'set node node1 note = "fan broken"' in own.run("qmgr", "-c", "print node node1").stdout
    qmgr(own, "set node node1 state = free", "unset node node1 note")
    assert own.run("pbsnodes", "-l").stdout == ""


def test_qterm_stops_the_master_and_no_job(own: LiveCluster) -> None:
    job = own.qsub("#!/bin/sh\nwhile [ ! -e $PBS_O_WORKDIR/go ]; do sleep 0.1; done\nexit 4\n")
    own.wait_state(job, "R")
    master = own.pid("master")
    if own.user is not None:
        assert own.run("qterm").returncode == 159
    assert own.run("qterm", "-t", "immediate", user="").returncode == 2
    done = own.run("qterm", "-t", "quick", user="")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    wait_until(lambda: not Path(f"/proc/{master}").exists(), "the master's end")
    assert own.run("qstat").returncode == 255
    (own.work() / "go").touch()
    own.up()
    assert own.wait(job)["Exit_status"] == 4


def test_what_print_server_says_makes_the_same_cluster(
    own: LiveCluster, make_cluster: Callable[..., LiveCluster]
) -> None:
    qmgr(
        own,
        "create queue gpu",
        "set queue gpu queue_type = Execution, Priority = 50, acl_user_enable = True",
        "set queue gpu acl_users += ann",
        "set queue gpu acl_users += bob",
        "set queue gpu resources_default.walltime = 3600, resources_max.mem = 4gb, ring = check",
        'set queue gpu comment = "nights, and week-ends"',
        "set queue gpu enabled = True",
        "create queue route queue_type = route",
        "set queue route route_destinations = gpu",
        "set queue route route_destinations += batch",
        "set server default_queue = gpu",
        "set server operators += ann@*",
    )
    printed = own.run("qmgr", "-c", "print server").stdout
    for line in (
        "create queue gpu",
        "set queue gpu Priority = 50",
        "set queue gpu acl_users += bob",
        "set queue gpu resources_default.walltime = 01:00:00",
        'set queue gpu comment = "nights, and week-ends"',
        "set queue gpu started = False",
        "set queue route queue_type = Route",
        "set queue route route_destinations += batch",
        "set server default_queue = gpu",
    ):
        assert line in printed.splitlines(), printed
    other = make_cluster(agents=1, gpus=1)
    qmgr(other, "delete queue batch", *printed.splitlines())
    assert other.run("qmgr", "-c", "p s").stdout == printed
