"""A site's own policy on a living cluster, and one that hangs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests.e2e.cluster_kit import LiveCluster, wait_until
from tests.e2e.conftest import running
from tests.integration.plugin_kit import install

SLEEP = "#!/bin/sh\nexec sleep 600\n"
TRUE = "#!/bin/sh\ntrue\n"


@pytest.fixture(scope="module")
def own() -> Iterator[LiveCluster]:
    """One node of four GPUs; its master sees the plug-ins of the tests."""
    cluster = LiveCluster(agents=1, gpus=4)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(install(cluster.root / "site"))
    try:
        with running(cluster):
            yield cluster
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


def qmgr(cluster: LiveCluster, directive: str) -> None:
    done = cluster.run("qmgr", "-c", directive, user="")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


def api(cluster: LiveCluster, path: str) -> Any:
    done = cluster.run(
        "curl", "-sf", "--unix-socket", str(cluster.described.api_sockets[0]), f"http://h{path}", user=""
    )
    return json.loads(done.stdout)


def places(cluster: LiveCluster, *jobs: str) -> list[int | None]:
    found = json.loads(cluster.run("qstat", "--why", "-F", "json", *jobs).stdout)
    return [one.get("place") for one in found]


def test_a_plugin_changes_the_order_and_a_hanging_one_holds_up_nothing(own: LiveCluster) -> None:
    holds = own.qsub(SLEEP, "-l", "nodes=1:gpus=4,walltime=1:00:00")
    own.wait_state(holds, "R")
    # By work the first would go before the second; by fewest GPUs it is the other way round.
    wide = own.qsub(TRUE, "-l", "nodes=1:gpus=2,walltime=0:01:00")
    slim = own.qsub(TRUE, "-l", "nodes=1:gpus=1,walltime=2:00:00")
    wait_until(lambda: places(own, wide, slim) == [1, 2], "the built-in order")
    qmgr(own, "set server order_plugin = fewest-gpus")
    wait_until(lambda: places(own, wide, slim) == [2, 1], "the order of the plug-in", 60)
    assert "plug-in's key" in own.run("qstat", "--why", "-f", slim).stdout
    # One that a busy machine has kept from answering in time is asked again.
    wait_until(lambda: api(own, "/v1/health")["plugins"] == [], "nothing is at fault", 60)

    qmgr(own, "set server order_plugin = hangs")
    text = "order plug-in hangs: no answer within 2 s; the built-in policy holds"
    wait_until(lambda: api(own, "/v1/health")["plugins"] == [text], text, 60)
    wait_until(lambda: places(own, wide, slim) == [1, 2], "the built-in order again")
    with psycopg.connect(own.database_url) as connection:
        told = connection.execute("SELECT payload FROM events WHERE kind = 'PLUGIN_FAULT'").fetchall()
    assert [payload for (payload,) in told if payload["plugin"] != "fewest-gpus"] == [
        {"kind": "order", "plugin": "hangs", "fault": "no answer within 2 s"}
    ]
    assert "order plug-in hangs: no answer" in own.hpcmesos("doctor", check=False).stdout
    own.run("qdel", holds)
    assert own.wait(wide)["Exit_status"] == own.wait(slim)["Exit_status"] == 0

    qmgr(own, "unset server order_plugin")
    wait_until(lambda: api(own, "/v1/health")["plugins"] == [], "nothing is at fault any more", 90)


def test_limits_of_a_plugin_hold(own: LiveCluster) -> None:
    qmgr(own, "set server limits_plugin = below")
    job = own.qsub(TRUE, "-l", "nodes=1:gpus=1")
    assert own.wait(job)["Exit_status"] == 0, "one at fault limits nothing"
    qmgr(own, "set server limits_plugin = none-at-all")
    try:
        wait_until(
            lambda: any("none-at-all" in text for text in api(own, "/v1/health")["plugins"]), "a note", 60
        )
    finally:
        qmgr(own, "unset server limits_plugin")
    refused = own.run("qmgr", "-c", "set server limits_plugin = ../x", user="")
    assert (refused.returncode != 0, refused.stdout) == (True, "")
