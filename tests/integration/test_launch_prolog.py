"""The site's prolog, before anything of a job runs on a node."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration import shepherd_kit as kit
from tests.integration.shepherd_kit import Node, wait_until


@pytest.fixture
def prolog(tmp_path: Path) -> Path:
    return tmp_path / "prolog"


def write(path: Path, text: str) -> None:
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)


@pytest.fixture
def nodes(request: pytest.FixtureRequest, tmp_path: Path, prolog: Path) -> Iterator[list[Node]]:
    """Two nodes with the same prolog; a test may say how long that may take."""
    limit = getattr(request, "param", kit.PATIENCE)
    settings = {"prolog": str(prolog), "prolog_timeout": limit}
    with kit.cluster(tmp_path, ["n1", "n2"], cgroups=False, **settings) as found:
        kit.give_gpus(found, 1)
        yield found


def test_it_runs_on_every_node_before_the_script(nodes: list[Node], prolog: Path, tmp_path: Path) -> None:
    write(prolog, f'echo "$HPCMESOS_NODE $PBS_JOBID $HPCMESOS_OWNER $HPCMESOS_GPUS" >>{tmp_path}/seen\n')
    with kit.runs(nodes, tmp_path) as start:
        run = start(f"#!/bin/sh\nsort {tmp_path}/seen\n")
        assert run.ended()["code"] == 0
        lines = [f"{node.name} {run.spec['job']} {kit.ME} SIM-{node.name}-0" for node in nodes]
        assert run.tail("stdout").splitlines() == lines


@pytest.mark.parametrize(
    ("nodes", "text", "why"),
    [
        (
            kit.PATIENCE,
            "echo checking\necho the scratch disk is full >&2\nexit 3\n",
            "exited with 3: the scratch disk is full",
        ),
        (kit.PATIENCE, "kill -9 $$\n", "was killed by signal 9"),
        (1, "sleep 60\n", "has not ended within 1 s"),
        (kit.PATIENCE, None, "cannot be started: No such file or directory"),
    ],
    indirect=["nodes"],
)
def test_a_node_where_it_fails_is_not_fit(
    nodes: list[Node], prolog: Path, tmp_path: Path, text: str | None, why: str
) -> None:
    if text is not None:
        write(prolog, text)
    value = kit.spec(nodes[:1], tmp_path, "true\n", attempt="9.hpcm#1", go=True)
    nodes[0].agent.send(op="prepare", spec=value)
    refused = nodes[0].agent.wait("refused", "9.hpcm#1")
    assert refused["culprit"] == "n1"
    if text is not None:
        assert refused["reason"] == f"the prolog {why}"
    else:
        assert "prolog" in refused["reason"]
    wait_until(lambda: not (nodes[0].state / "attempts" / "9.hpcm#1").exists(), "nothing of it is left")


def test_a_job_that_is_deleted_meanwhile_never_starts(
    nodes: list[Node], prolog: Path, tmp_path: Path
) -> None:
    write(prolog, f"touch {tmp_path}/begun\nwhile [ ! -e {tmp_path}/go ]; do sleep 0.05; done\n")
    value = kit.spec(nodes[:1], tmp_path, f"touch {tmp_path}/ran\n", attempt="8.hpcm#1", go=True)
    agent = nodes[0].agent
    agent.send(op="prepare", spec=value)
    wait_until((tmp_path / "begun").exists, "the prolog runs")
    agent.send(op="end", attempt="8.hpcm#1", cause="DELETED", kill_delay=0, message="")
    assert agent.wait("ended", "8.hpcm#1")["cause"] == "DELETED"
    (tmp_path / "go").touch()
    agent.send(op="forget", attempt="8.hpcm#1")
    write(prolog, "exit 0\n")
    with kit.runs(nodes[:1], tmp_path) as start:
        assert start("#!/bin/sh\nexit 0\n", attempt="10.hpcm#1").ended()["code"] == 0
    assert not (tmp_path / "ran").exists()
