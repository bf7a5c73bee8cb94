"""One shared cluster for tests that do it no harm, one of its own for each that does; invariants after every test."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

import pytest

from tests.e2e import clients_kit
from tests.e2e.accounts import accounts
from tests.e2e.clients_kit import Clients
from tests.e2e.cluster_kit import USERS, LiveCluster, wait_until
from tests.e2e.namespace_cluster import NamespaceCluster, Stack
from tests.integration.invariants import check_invariants


def check_clean(cluster: LiveCluster) -> None:
    """The invariants hold over the whole database and no process of an attempt is left."""
    _soon_none(cluster.job_processes, "processes of attempts")
    _soon_none(lambda: check_invariants(cluster.database_url), "violations")


def _soon_none(look: Callable[[], list[str]], what: str) -> None:
    """Fails with those that were seen last."""
    last: list[str] = []

    def gone() -> bool:
        last[:] = look()
        return not last

    with contextlib.suppress(AssertionError):
        wait_until(gone, what, 15)
    assert not last, f"{what}: {last}"


def end_jobs(cluster: LiveCluster) -> None:
    """What a test left must not meet the next one."""
    with cluster.client() as client:
        left = client.jobs()
    if left:
        cluster.run("qdel", "-W", "0", "all", user="")


@contextlib.contextmanager
def left_as_found(cluster: LiveCluster) -> Iterator[None]:
    """One test's turn with a cluster that others use before and after it."""
    cluster.new_work()
    yield
    end_jobs(cluster)
    check_clean(cluster)


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[LiveCluster]:
    with running(LiveCluster(agents=4, gpus=16)) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared_cluster: LiveCluster) -> Iterator[LiveCluster]:
    """4 agents with 4 simulated GPUs each; left as it was found, and users start in empty directories."""
    with left_as_found(shared_cluster):
        yield shared_cluster


@pytest.fixture
def make_cluster() -> Iterator[Callable[..., LiveCluster]]:
    """Makes clusters that only this test uses."""
    with contextlib.ExitStack() as stack:

        def make(agents: int = 2, gpus: int = 4, extra: tuple[str, ...] = ()) -> LiveCluster:
            return stack.enter_context(running(LiveCluster(agents, gpus, extra)))

        yield make


@contextlib.contextmanager
def running(cluster: LiveCluster) -> Iterator[LiveCluster]:
    """Up, the test, the invariants, down, nothing left."""
    try:
        cluster.up()
        yield cluster
        check_clean(cluster)
    finally:
        if (cluster.state / "cluster.json").exists():
            cluster.down()
            left = cluster.processes()
            assert not left, left
        cluster.remove()


@pytest.fixture(scope="session", autouse=True)
def users_of_tests() -> Iterator[None]:
    with accounts():
        yield


@pytest.fixture(scope="session")
def users() -> tuple[str, str]:
    """Two real users."""
    if os.getuid() != 0:
        pytest.skip("needs root: two real users")
    return USERS


@pytest.fixture(scope="session")
def shared_namespaces() -> Iterator[NamespaceCluster]:
    """4 hosts with 4 simulated GPUs each, and one for the master."""
    with NamespaceCluster(["node1", "node2", "node3", "node4"]) as cluster:
        yield cluster


@pytest.fixture
def namespaces(shared_namespaces: NamespaceCluster) -> Iterator[NamespaceCluster]:
    """Left as it was found: every link mended, every node up, no job, nothing of one on any node."""
    yield shared_namespaces
    shared_namespaces.hosts.mend()
    end_jobs(shared_namespaces)
    wait_until(lambda: shared_namespaces.up_nodes() == set(shared_namespaces.nodes), "all nodes up", 30)
    check_clean(shared_namespaces)
    shared_namespaces.check_nothing_left()


@pytest.fixture(scope="session")
def installed_clients() -> str:
    """Why there are no PBS clients; empty when there are."""
    return clients_kit.install()


@pytest.fixture
def clients(cluster: LiveCluster, installed_clients: str) -> Clients:
    """Others' programs at work on the shared cluster."""
    if installed_clients:
        pytest.skip(installed_clients)
    return Clients(cluster)


@pytest.fixture
def stack(request: pytest.FixtureRequest) -> Stack:
    """The one of the test's parameter; skips where it is missing."""
    found: Stack = request.param
    if missing := found.why_missing():
        pytest.skip(missing)
    return found
