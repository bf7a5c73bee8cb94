"""500 processes of qsub, qalter and qmgr with words that a program made up: no traceback, no hang, and what is refused
leaves nothing. The words are the same in every run.
"""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.e2e.cluster_kit import LiveCluster
from tests.e2e.conftest import running
from tests.fuzz import qalter_words, qmgr_text, qsub_script, qsub_words

pytestmark = pytest.mark.full
_HANGS = 30.0  # s; much, for the machine may be busy
_UNUSUAL = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
KINDLY = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=_UNUSUAL,
    phases=[Phase.generate],  # a smaller case is not worth hundreds of processes
)


class Watched:
    """A cluster that starts nothing, and what is stored in it."""

    def __init__(self, cluster: LiveCluster, connection: psycopg.Connection) -> None:
        self.cluster = cluster
        self._connection = connection
        self.refused = self.done = 0

    def stored(self) -> tuple[object, ...]:
        """Jobs, scripts, how much was ever wished, and all settings."""
        row = self._connection.execute(
            """SELECT (SELECT count(*) FROM jobs), (SELECT count(*) FROM job_scripts),
                      (SELECT last_value FROM inbox_ids),
                      (SELECT md5(string_agg(q::text, '' ORDER BY name)) FROM queues q),
                      (SELECT md5(value::text) FROM settings WHERE name = 'server'),
                      (SELECT md5(string_agg(j.request::text || j.name || j.submission::text, '' ORDER BY seq))
                       FROM jobs j)"""
        ).fetchone()
        assert row is not None
        return tuple(row)

    def run(self, *command: str, stdin: bytes = b"") -> None:
        before = self.stored()
        # As the administrator: no right stands between the words and what they would do.
        done = self.cluster.run(*command, user="", stdin=stdin, timeout=_HANGS)
        said = done.stdout + done.stderr
        assert "Traceback" not in said, (command, said)
        assert "internal error" not in said, (command, said)
        assert done.returncode >= 0, (command, done)
        if done.returncode == 0:
            self.done += 1
        else:
            self.refused += 1
            assert done.stderr.strip() or command[0] == "qmgr", (command, done)
            assert self.stored() == before, (command, stdin, done)


@pytest.fixture(scope="module")
def watched() -> Iterator[Watched]:
    with running(LiveCluster(agents=1, gpus=1)) as cluster:
        cluster.run("qmgr", "-c", "set server scheduling = False", user="", check=True)
        with psycopg.connect(cluster.database_url, autocommit=True) as connection:
            yield Watched(cluster, connection)
        cluster.run("qdel", "-W", "0", "all", user="")


@settings(KINDLY, max_examples=250)
@given(qsub_words, qsub_script)
def test_qsub(watched: Watched, argv: list[str], script: bytes) -> None:
    watched.run("qsub", *argv, stdin=script)


@settings(KINDLY, max_examples=130)
@given(qalter_words)
def test_qalter(watched: Watched, argv: list[str]) -> None:
    watched.run("qalter", *argv)


@settings(KINDLY, max_examples=120)
@given(qmgr_text)
def test_qmgr(watched: Watched, text: str) -> None:
    watched.run("qmgr", "-c", text)


def test_some_were_refused_and_some_were_not(watched: Watched) -> None:
    assert watched.done + watched.refused >= 500
    assert watched.done >= 20
    assert watched.refused >= 100
