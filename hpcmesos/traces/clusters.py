"""Clusters to simulate: equal nodes, a TOML file, Alibaba's node lists."""

from __future__ import annotations

import csv
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpcmesos.errors import InvalidValue
from hpcmesos.gang.snapshot import GpuView, NodeView
from hpcmesos.model import GpuUuid, NodeName
from hpcmesos.traces.swf import lines
from hpcmesos.units import parse_size

_MIB = 1 << 20
_KEYS = {"count", "name", "gpus", "cpus", "mem", "features", "switch", "nodes_per_switch"}


def node(
    name: str, gpus: int, cpus: int, mem: int = 0, features: frozenset[str] = frozenset(), switch: str = ""
) -> NodeView:
    """A node that is up and empty."""
    views = tuple(GpuView(GpuUuid(f"{name}-{at}"), at, True) for at in range(gpus))
    return NodeView(NodeName(name), True, cpus, cpus, mem, mem, views, features, switch=switch)


def grid(count: int, gpus: int, cpus: int = 0, mem: int = 0) -> list[NodeView]:
    """``count`` equal nodes; ``cpus`` 0: 8 for each GPU, 16 without."""
    return [node(f"node{at + 1}", gpus, cpus or (gpus * 8 or 16), mem) for at in range(count)]


def load(path: Path) -> list[NodeView]:
    """A cluster file: ``[[nodes]]`` tables of count, name, gpus, cpus, mem, features, switch, nodes_per_switch.

    ``switch``: the place in the switch tree, as "core/row1"; with ``nodes_per_switch`` leaves are numbered below it.

    Raises:
        InvalidValue: the file cannot be read, or says what no cluster file may say.
    """
    try:
        table = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise InvalidValue(f"cannot read {path}: {error}") from error
    groups = table.get("nodes", [])
    if not groups or set(table) != {"nodes"}:
        raise InvalidValue(f"{path}: a cluster file has [[nodes]] tables and nothing else")
    views = [view for number, group in enumerate(groups) for view in _group(path, number, group)]
    names = [view.name for view in views]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidValue(f"{path}: two nodes are called {twice}; give each group a name of its own")
    return views


def _group(path: Path, number: int, group: Mapping[str, Any]) -> list[NodeView]:
    if unknown := sorted(set(group) - _KEYS):
        raise InvalidValue(f"{path}: nodes table {number + 1} has an unknown key '{unknown[0]}'")
    try:
        count, gpus, each = (int(group.get(key, default)) for key, default in _NUMBERS)
        cpus = int(group.get("cpus", gpus * 8 or 16))
        mem = parse_size(str(group.get("mem", "0b")))
    except (TypeError, ValueError) as error:
        raise InvalidValue(f"{path}: nodes table {number + 1}: {error}") from error
    prefix, features = str(group.get("name", "node")), frozenset(map(str, group.get("features", ())))
    switch = str(group.get("switch", ""))
    return [
        node(
            f"{prefix}{at + 1}",
            gpus,
            cpus,
            mem,
            features,
            f"{switch}/leaf{at // each + 1}" if each else switch,
        )
        for at in range(count)
    ]


_NUMBERS = (("count", 1), ("gpus", 0), ("nodes_per_switch", 0))


def read_csv(path: Path, gpus: int = 8) -> list[NodeView]:
    """Alibaba's openb node list, or Lingjun's switch tree (whose hosts have ``gpus`` GPUs each).

    Raises:
        InvalidValue: another header, or a line that does not fit it.
    """
    rows = csv.DictReader(lines(path))
    columns = set(rows.fieldnames or ())
    try:
        if columns >= {"sn", "cpu_milli", "memory_mib", "gpu", "model"}:
            return [
                node(
                    row["sn"],
                    int(row["gpu"]),
                    int(row["cpu_milli"]) // 1000,
                    int(row["memory_mib"]) * _MIB,
                    frozenset({row["model"]}),
                )
                for row in rows
            ]
        if columns >= {"ip", "DSW", "PSW", "ASW"}:
            return [
                node(f"host{at + 1}", gpus, gpus * 8, switch=f"{row['DSW']}/{row['PSW']}/{row['ASW']}")
                for at, row in enumerate(rows)
            ]
    except (ValueError, TypeError) as error:
        raise InvalidValue(f"{path}:{rows.line_num}: {error}") from error
    raise InvalidValue(
        f"{path}: no node list that is known; its columns are {', '.join(sorted(columns)[:6])}"
    )
