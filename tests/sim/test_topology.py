"""Gangs on the switch tree of a real cluster (Alibaba Lingjun 2023: 847 hosts, 119 leaf switches, 3 above them)."""

from __future__ import annotations

import random

from hpcmesos.gang.policy import Policy
from hpcmesos.gang.simulate import Replay, TraceJob, simulate
from hpcmesos.gang.snapshot import NodeView
from hpcmesos.model import Chunk, JobId, Request
from hpcmesos.traces import clusters
from hpcmesos.traces.report import summary
from tests.sim.trace_files import trace

GANG = 16


def workload(count: int = 700) -> list[TraceJob]:
    """Busy enough that holes are scattered: gangs of 16 whole nodes among smaller jobs."""
    rng = random.Random(5)
    jobs = []
    for number in range(count):
        nodes = rng.choice((1, 1, 1, 2, 4, 8, GANG))
        runtime = rng.uniform(1000, 20_000)
        request = Request((Chunk(nodes, gpus=8, cpus=8),))
        jobs.append(
            TraceJob(
                id=JobId(number, "t"),
                submitted_at=number * 45.0,
                runtime=runtime,
                request=request,
                walltime=runtime,
            )
        )
    return jobs


def leaves(replay: Replay, nodes: list[NodeView]) -> float:
    """How many leaf switches a gang of 16 spans, on average."""
    leaf = {node.name: node.switch for node in nodes}
    spans = [len({leaf[name] for name in run.nodes}) for run in replay.runs if len(run.nodes) == GANG]
    assert len(spans) > 50
    return sum(spans) / len(spans)


def test_gangs_span_fewer_switches_than_first_fit_at_no_loss_of_utilisation() -> None:
    nodes = clusters.read_csv(trace("lingjun2023_topo.csv.gz"))
    ours = simulate(nodes, workload(), Policy())
    first = simulate(nodes, workload(), Policy(first_fit=True))
    assert leaves(ours, nodes) < 0.5 * leaves(first, nodes)
    figures = [summary("", replay, nodes) for replay in (ours, first)]
    assert figures[0].utilisation >= figures[1].utilisation - 1e-9
