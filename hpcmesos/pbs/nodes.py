"""``pbsnodes`` of both families (T:src/cmds/pbsnodes.c; OpenPBS 23.06 as observed)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime

from hpcmesos.pbs.facts import GpuFacts, NodeFacts
from hpcmesos.pbs.personalities import Personality
from hpcmesos.pbs.render_json import document
from hpcmesos.pbs.render_xml import data, element

_UNUSABLE = frozenset({"down", "offline", "state-unknown"})
_TORQUE_GPU_STATES = {"free": "Unallocated", "allocated": "Exclusive"}
_PBSPRO_STATES = {"busy": "job-busy", "job-sharing": "job-busy"}


def nodes_text(nodes: Iterable[NodeFacts], personality: Personality = Personality.TORQUE) -> str:
    """``pbsnodes -a``: the node's name, its attributes, an empty line."""
    attributes = _torque_attributes if personality is Personality.TORQUE else _pbspro_attributes
    blocks = (
        "\n".join((node.name, *(f"     {name} = {text}" for name, text in attributes(node))))
        for node in nodes
    )
    return "".join(f"{block}\n\n" for block in blocks)


def nodes_list(
    nodes: Iterable[NodeFacts], states: frozenset[str] = frozenset(), *, with_notes: bool = False
) -> str:
    """``pbsnodes -l [state]``: names and states; without a state the unusable nodes."""
    lines: list[str] = []
    for node in nodes:
        if not is_listed(node, states):
            continue
        text = state_text(node)
        if with_notes:
            lines.append(f"{node.name:<20.20} {text:<26.26} {_note(node)}".rstrip())
        else:
            lines.append(f"{node.name:<20.20} {text}")
    return "".join(f"{line}\n" for line in lines)


def nodes_xml(nodes: Iterable[NodeFacts]) -> str:
    """``pbsnodes -x`` of Torque."""
    return data(f"<Node>{element('name', node.name)}{_xml_attributes(node)}</Node>" for node in nodes)


def nodes_json(nodes: Iterable[NodeFacts], *, now: datetime, version: str, server: str) -> str:
    """``pbsnodes -a -F json``: OpenPBS' fields of ``-a`` and of ``-aSj`` in one object for each node, and the GPUs."""
    return document(
        "nodes", {node.name: _json(node) for node in nodes}, now=now, version=version, server=server
    )


def nodes_dsv(nodes: Iterable[NodeFacts], delimiter: str = "|") -> str:
    """``pbsnodes -a -F dsv`` of OpenPBS: a line for each node; delimiters inside values are escaped."""
    lines = []
    for node in nodes:
        jobs = ",".join(f"{job_id}/{slot}" for slot, job_id in node.jobs)
        attributes = [(name, jobs if name == "jobs" else text) for name, text in _pbspro_attributes(node)]
        fields = [("Name", node.name), *attributes]
        words = (f"{name}={text.replace(delimiter, chr(92) + delimiter)}" for name, text in fields)
        lines.append(delimiter.join(words) + "\n")
    return "".join(lines)


def is_listed(node: NodeFacts, states: frozenset[str]) -> bool:
    """Whether ``pbsnodes -l STATES`` lists the node; ``active``: has jobs, ``up``: usable, none: unusable."""
    usable = _UNUSABLE.isdisjoint(node.state)
    if not states:
        return not usable
    return (
        "all" in states
        or not states.isdisjoint(node.state)
        or ("up" in states and usable)
        or ("active" in states and bool(node.jobs))
    )


def state_text(node: NodeFacts) -> str:
    """The states joined by commas, ``down`` first, then in alphabetical order."""
    return ",".join(sorted(node.state, key=lambda word: (word != "down", word))) or "free"


def _torque_attributes(node: NodeFacts) -> Iterator[tuple[str, str]]:
    yield "state", state_text(node)
    yield "power_state", "Running"
    yield "np", str(node.np)
    if node.features:
        yield "properties", ",".join(node.features)
    yield "ntype", "cluster"
    if node.jobs:
        yield "jobs", ",".join(f"{slot}/{job_id}" for slot, job_id in node.jobs)
    if node.rectime is not None:
        yield "status", _status(node, node.rectime)
    if node.note:
        yield "note", _note(node)
    yield "gpus", str(len(node.gpus))
    if node.gpus:
        yield "gpu_status", ",".join(f"gpu[{gpu.index}]={_gpu_status(gpu)}" for gpu in node.gpus)


def _status(node: NodeFacts, rectime: datetime) -> str:
    fields = {
        "rectime": str(int(rectime.timestamp())),
        "state": "free" if _UNUSABLE.isdisjoint(node.state) else "down",
        "loadave": None if node.load_average is None else f"{node.load_average:.2f}",
        "ncpus": str(node.np),
        "physmem": _kilobytes(node.physical_memory or node.memory_total),
        "availmem": _kilobytes(node.memory_available),
        "totmem": _kilobytes(node.memory_total),
        "uname": node.uname.replace(",", " ") or None,
        "isolation": node.isolation or None,
        "opsys": node.os_name,
        "declared": "true" if node.declared else None,
    }
    return ",".join(f"{name}={value}" for name, value in fields.items() if value is not None)


def _gpu_status(gpu: GpuFacts) -> str:
    fields = {
        "gpu_id": gpu.uuid,
        "gpu_mig_profile": gpu.profile or None,
        "gpu_mig_card": gpu.parent or None,
        "gpu_product_name": gpu.model.replace(",", " ").replace(";", " "),
        "gpu_state": _TORQUE_GPU_STATES.get(gpu.state, gpu.state),
        "job": gpu.job_id,
        "gpu_numa_node": None if gpu.numa is None else str(gpu.numa),
        "gpu_nvlink_island": None if gpu.nvlink_island is None else str(gpu.nvlink_island),
        **_gpu_figures(gpu),
        "simulated": "true" if gpu.simulated else None,
        "note": gpu.note.replace(",", " ").replace(";", " ") or None,
    }
    return ";".join(f"{name}={value}" for name, value in fields.items() if value is not None)


_GPU_FIGURES = {
    "gpu_memory_used": ("memory_used", "{:.0f}MB", 1 << 20),
    "gpu_utilization": ("utilization", "{:.0f}%", 1),
    "gpu_temperature": ("temperature", "{:.0f}C", 1),
    "gpu_power": ("power", "{:.0f}W", 1),
    "gpu_ecc_errors": ("ecc_errors", "{:.0f}", 1),
    "gpu_nvlink_errors": ("nvlink_errors", "{:.0f}", 1),
}
"""Torque's names where it has them: of which figure, how it is written, in which unit."""


def _gpu_figures(gpu: GpuFacts) -> dict[str, str]:
    total = {"gpu_memory_total": f"{gpu.memory >> 20}MB"} if gpu.memory else {}
    return total | {
        name: form.format(gpu.figures[figure] / unit)
        for name, (figure, form, unit) in _GPU_FIGURES.items()
        if figure in gpu.figures
    }


def _xml_attributes(node: NodeFacts) -> str:
    return "".join(element(name, text) for name, text in _torque_attributes(node))


def _pbspro_attributes(node: NodeFacts) -> Iterator[tuple[str, str]]:
    yield "Mom", node.name
    yield "ntype", "PBS"
    yield "state", _pbspro_state(node)
    yield "pcpus", str(node.np)
    if node.jobs:
        yield "jobs", ", ".join(f"{job_id}/{slot}" for slot, job_id in node.jobs)
    for group, values in (("available", _available(node)), ("assigned", _assigned(node))):
        yield from ((f"resources_{group}.{name}", str(value)) for name, value in values.items())
    yield "resv_enable", "True"
    yield "sharing", "default_shared"
    if node.note:
        yield "comment", _note(node)
    for gpu in node.gpus:
        yield f"gpu_{gpu.index}", _gpu_status(gpu)


def _pbspro_state(node: NodeFacts) -> str:
    return ",".join(sorted({_PBSPRO_STATES.get(word, word) for word in node.state})) or "free"


def _available(node: NodeFacts) -> dict[str, str | int]:
    return {
        "arch": node.os_name,
        "host": node.name,
        "mem": _kilobytes(node.memory_total),
        "ncpus": node.np,
        "ngpus": len(node.gpus),
        "vnode": node.name,
    }


def _assigned(node: NodeFacts) -> dict[str, str | int]:
    used = max(0, node.memory_total - node.memory_available)
    return {"mem": _kilobytes(used), "ncpus": len(node.jobs), "ngpus": _gpus_used(node)}


def _json(node: NodeFacts) -> dict[str, object]:
    jobs = list(dict.fromkeys(job_id for _, job_id in node.jobs))
    free_gpus = sum(gpu.state == "free" for gpu in node.gpus)
    memory = f"{_kilobytes(node.memory_available)}/{_kilobytes(node.memory_total)}"
    found: dict[str, object] = {
        "Mom": node.name,
        "ntype": "PBS",
        "state": _pbspro_state(node),
        "State": _pbspro_state(node),
        "pcpus": node.np,
        "jobs": jobs,
        "resources_available": _available(node),
        "resources_assigned": _assigned(node),
        "properties": list(node.features),
        "Total Jobs": len(jobs),
        "Running Jobs": len(jobs),
        "Suspended Jobs": 0,
        "mem f/t": memory,
        "ncpus f/t": f"{max(0, node.np - len(node.jobs))}/{node.np}",
        "nmics f/t": "0/0",
        "ngpus f/t": f"{free_gpus}/{len(node.gpus)}",
        "gpus": [_json_gpu(gpu) for gpu in node.gpus],
        "declared": node.declared,
    }
    if node.note:
        found["comment"] = node.note
    if node.rectime is not None:
        found["last_report"] = int(node.rectime.timestamp())
    return found


def _json_gpu(gpu: GpuFacts) -> dict[str, object]:
    return {
        "index": gpu.index,
        "uuid": gpu.uuid,
        "model": gpu.model,
        "state": gpu.state,
        "simulated": gpu.simulated,
        "job": gpu.job_id,
        **({"note": gpu.note} if gpu.note else {}),
        **({"profile": gpu.profile, "card": gpu.parent} if gpu.parent else {}),
        **({} if gpu.numa is None else {"numa_node": gpu.numa}),
        **({} if gpu.nvlink_island is None else {"nvlink_island": gpu.nvlink_island}),
    }


def _gpus_used(node: NodeFacts) -> int:
    return sum(gpu.state != "free" for gpu in node.gpus)


def _kilobytes(size: int) -> str:
    return f"{size // 1024}kb"


def _note(node: NodeFacts) -> str:
    return " ".join((node.note or "").split())
