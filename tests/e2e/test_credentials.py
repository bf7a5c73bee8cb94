"""Users' tokens are replaced under a flow of jobs: none is lost, the old ones are refused."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from hpcmesos.client import Client
from hpcmesos.errors import Unauthenticated
from tests.e2e.cluster_kit import HPCMESOS, LiveCluster
from tests.e2e.remote_kit import Remote
from tests.e2e.test_masters import Submitting

pytestmark = pytest.mark.full
ROUNDS = 6
PATIENCE = 240.0
NOTE = "#!/bin/sh\necho $PBS_JOBID >>credentials-ran\n"


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def by_program(remote: Remote) -> str:
    """A job that notes that it ran, submitted by a program that reads the token when it starts."""
    done = remote.run("qsub", "-d", ".", stdin=NOTE)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout.strip()


def by_client(client: Client, remote: Remote) -> str:
    """The same, by one client that lives as long as the flow does."""
    place = str(remote.cluster.work(remote.user))
    done = client.command("qsub", ["-d", "."], script=NOTE.encode(), cwd=place)
    assert done.code == 0, done.stderr
    return done.stdout.strip()


def check_each_ran_once(cluster: LiveCluster, jobs: list[str], *users: str | None) -> None:
    """By what the jobs themselves have noted."""
    found = cluster.wait_all(jobs, PATIENCE)
    assert [job for job in jobs if found[job].get("Exit_status") != 0] == []
    ran = [line for user in users for line in (cluster.work(user) / "credentials-ran").read_text().split()]
    assert sorted(ran) == sorted(jobs)


def refused(remote: Remote, token: str) -> bool:
    with Client(url=remote.url, token=token, ca=remote.ca) as client:
        try:
            client.jobs()
        except Unauthenticated:
            return True
    return False


def test_no_job_is_lost_while_tokens_are_replaced(
    cluster: LiveCluster, users: tuple[str, str], stack: ExitStack
) -> None:
    ann, bob = (Remote(cluster, user) for user in users)
    gate = cluster.work(ann.user) / "gate"
    long = cluster.qsub(f"#!/bin/sh\nuntil [ -e {gate} ]; do sleep 0.1; done\nexit 3\n", user=ann.user)
    words = [*HPCMESOS, "wait", "--exit-status", long]
    waiting = stack.enter_context(subprocess.Popen(words, env=ann.environ))  # it begins with the first token
    stack.callback(waiting.kill)
    client = stack.enter_context(bob.client())
    manager = stack.enter_context(cluster.client())
    old: list[tuple[Remote, str]] = []
    with (
        Submitting(cluster, lambda: by_program(ann)) as of_ann,
        Submitting(cluster, lambda: by_client(client, bob)) as of_bob,
    ):
        for _ in range(ROUNDS):
            for remote, flow in ((ann, of_ann), (bob, of_bob)):
                old.append((remote, remote.file.read_text()))
                last = remote.next_token()
                assert not refused(*old[-1])
                flow.more(2)  # the grace: who has read the last one is through by then
                assert manager.revoke_tokens([last]) == [last]
                assert refused(*old[-1])
                flow.more(1)
    gate.touch()
    assert waiting.wait(60) == 3
    assert (cluster.wait(long)["Exit_status"], len(old)) == (3, 2 * ROUNDS)
    assert all(refused(*one) for one in old)
    print(
        f"{len(of_ann.jobs)} and {len(of_bob.jobs)} jobs; slowest {max(of_ann.longest, of_bob.longest):.2f} s"
    )
    check_each_ran_once(cluster, [*of_ann.jobs, *of_bob.jobs], *users)
