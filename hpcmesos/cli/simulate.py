"""``simulate``: replays a trace on a cluster of one's choice, through the live scheduler."""

from __future__ import annotations

import json
from datetime import datetime
from math import inf
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from hpcmesos.errors import InvalidValue
from hpcmesos.gang.policy import NAMED, Preempt
from hpcmesos.gang.simulate import Replay, Simulator, TraceJob
from hpcmesos.gang.snapshot import NodeView
from hpcmesos.traces import clusters, gpu_csv, pictures, queue_file, report, swf
from hpcmesos.traces.queue_file import QueueFile
from hpcmesos.traces.report import Summary
from hpcmesos.units import format_duration

FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.argument("trace", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--nodes", type=click.IntRange(1), help="So many equal nodes.")
@click.option("--gpus", type=click.IntRange(0), default=0, show_default=True, help="GPUs of each node.")
@click.option(
    "--cpus", type=click.IntRange(0), default=0, help="CPUs of each node; default 8 for each GPU, or 16."
)
@click.option("--cluster", type=FILE, help="The cluster as a TOML file, or as Alibaba's list of nodes (CSV).")
@click.option("--policy", default="default", show_default=True, help=f"One of {', '.join(NAMED)}.")
@click.option("--compare", default="", help="Several policies side by side, separated by commas.")
@click.option(
    "--add-nodes", type=click.IntRange(1), help="What if there were so many nodes more, like the last one?"
)
@click.option("--jobs", type=click.IntRange(1), help="Only the first so many jobs of the trace.")
@click.option("--known", is_flag=True, help="The scheduler knows true run times (the best case).")
@click.option("--json", "as_json", type=FILE, help="Write all figures to this file; - is stdout.")
@click.option("--csv", "as_csv", type=FILE, help="Write a line for each job to this file.")
@click.option("--gantt", type=FILE, help="Write a picture of jobs on nodes (SVG) to this file.")
@click.option("--utilisation", type=FILE, help="Write a picture of what was in use (SVG) to this file.")
def simulate(
    trace: Path,
    nodes: int | None,
    gpus: int,
    cpus: int,
    cluster: Path | None,
    policy: str,
    compare: str,
    add_nodes: int | None,
    jobs: int | None,
    known: bool,
    as_json: Path | None,
    as_csv: Path | None,
    gantt: Path | None,
    utilisation: Path | None,
) -> None:
    """Replay TRACE (SWF, or a CSV of GPU jobs; .gz or plain) and show waits, slowdown and utilisation.

    TRACE may be a file of `hpcmesos queue export` (.json): then the live queue goes on from there.

    Pictures and the CSV are those of the last policy.
    """
    names = [name.strip() for name in compare.split(",") if name.strip()] or [policy]
    if unknown := [name for name in names if name not in NAMED]:
        raise InvalidValue(f"there is no policy '{unknown[0]}'; there are {', '.join(NAMED)}")
    live = queue_file.load(trace) if trace.suffix == ".json" else None
    work, machine = (list(live.jobs(NAMED[names[0]])), list(live.nodes)) if live else _load(trace)
    if live and (cluster or nodes):
        raise InvalidValue(f"{trace} is a live queue with its own nodes; --add-nodes N adds to them")
    site = _cluster(cluster, nodes, gpus, cpus) or machine
    if not site:
        raise InvalidValue(
            f"{trace} does not say what cluster it is of: give --nodes N --gpus G, or --cluster FILE"
        )
    work = sorted(work, key=lambda job: (job.submitted_at, job.id))[:jobs]
    if not work and not live:
        raise InvalidValue(f"{trace} has no job that ran")
    sites = [(name, name, site) for name in names]
    if add_nodes:
        sites += [(f"{name} +{add_nodes} nodes", name, _more(site, add_nodes)) for name in names]
    summaries, replay = [], Replay()
    for label, name, views in sites:
        replay = _replay(label, name, views, work, known, live)
        summaries.append(report.summary(label, replay, views, live.now if live else None))
    _write(replay, sites[-1][2], as_csv, gantt, utilisation)
    if as_json:
        text = json.dumps([summary.as_json() for summary in summaries], indent=1)
        if str(as_json) == "-":
            click.echo(text)
            return
        as_json.write_text(text + "\n")
    _show(summaries)
    if live:
        _show_drain(summaries, live)


def _load(trace: Path) -> tuple[list[TraceJob], list[NodeView]]:
    """The jobs, and the machine that the trace itself names."""
    if ".csv" in trace.suffixes:
        return gpu_csv.read(trace), []
    log = swf.read(trace)
    return swf.trace_jobs(log), list(swf.machine(log.procs))


def _cluster(path: Path | None, nodes: int | None, gpus: int, cpus: int) -> list[NodeView]:
    if path is not None:
        return clusters.read_csv(path) if ".csv" in path.suffixes else clusters.load(path)
    return clusters.grid(nodes, gpus, cpus) if nodes else []


def _more(site: list[NodeView], count: int) -> list[NodeView]:
    last = site[-1]
    new = [
        clusters.node(f"added{at + 1}", len(last.gpus), last.cpus, last.mem, last.features, last.switch)
        for at in range(count)
    ]
    return [*site, *new]


def _show_drain(summaries: list[Summary], live: QueueFile) -> None:
    """When all that waits and runs would be over, if everything takes its walltime and nobody submits more."""
    console = Console()
    for entry in summaries:
        over = datetime.fromtimestamp(live.now + entry.makespan).astimezone()
        took = format_duration(entry.makespan)
        console.print(
            f"{entry.policy}: the queue drains in {took}, at {over:%Y-%m-%d %H:%M %Z}, at the latest"
        )
    if live.held:
        console.print(f"{live.held} jobs that are held or wait for a time are left out")


def _replay(
    label: str,
    name: str,
    site: list[NodeView],
    work: list[TraceJob],
    known: bool,
    live: QueueFile | None,
) -> Replay:
    console = Console(stderr=True)
    policy = NAMED[name]
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(label, total=len(work))
        return Simulator(
            site,
            work,
            policy,
            known=known or policy.preempt is Preempt.ORDER,
            progress=lambda done: progress.update(task, completed=done),
            start=live.now if live else -inf,
            running=live.running if live else (),
            facts=live.facts if live else None,
        ).run()


def _write(
    replay: Replay, site: list[NodeView], as_csv: Path | None, gantt: Path | None, utilisation: Path | None
) -> None:
    if as_csv:
        as_csv.write_text(report.per_job(replay))
    if gantt:
        gantt.write_text(pictures.gantt(replay.runs, site))
    if utilisation:
        gpus = sum(len(node.gpus) for node in site)
        capacity, what = (gpus, "GPUs") if gpus else (sum(node.cpus for node in site), "CPUs")
        utilisation.write_text(pictures.utilisation(replay.runs, capacity, what))


def _show(summaries: list[Summary]) -> None:
    table = Table()
    for name in (
        "policy",
        "jobs",
        "mean wait",
        "median",
        "95 %",
        "longest",
        "slowdown",
        "completion",
        "in use",
    ):
        table.add_column(name, justify="left" if name == "policy" else "right", no_wrap=True)
    for entry in summaries:
        times = (entry.wait.mean, entry.wait.median, entry.wait.p95, entry.wait.longest)
        table.add_row(
            entry.policy,
            f"{entry.jobs:,}",
            *(format_duration(time) for time in times),
            f"{entry.slowdown:,.2f}",
            format_duration(entry.completion),
            f"{entry.utilisation:.1%}",
        )
    console = Console()
    console.print(table)
    sizes = Table(title="mean wait by size (GPUs, or CPUs of jobs without)")
    sizes.add_column("policy", no_wrap=True)
    names = list(dict.fromkeys(name for entry in summaries for name in entry.by_size))
    for name in names:
        sizes.add_column(name, justify="right", no_wrap=True)
    for entry in summaries:
        waits = (entry.by_size.get(name) for name in names)
        sizes.add_row(entry.policy, *("" if wait is None else format_duration(wait.mean) for wait in waits))
    console.print(sizes)
    for entry in summaries:
        if entry.never:
            console.print(
                f"{entry.policy}: {entry.never} jobs ask for more than this cluster has, and never start"
            )
