"""What an attempt has used of its GPUs on all nodes, from what each node says. Pure."""

from __future__ import annotations

from collections.abc import Mapping

_PREFIX = "gpu_"


def with_gpus(
    usage: Mapping[str, float], head: str, uses: Mapping[str, Mapping[str, float]]
) -> dict[str, float]:
    """``usage`` of the head's end report with figures of all GPUs, if any was sampled: ``gpu_percent`` (mean over the
    samples), ``gpu_percent_max``, ``gpu_memory`` (bytes, the most of one GPU), ``gpu_energy`` (J). MIG instances have
    memory only.

    ``uses``: by node, see `wire.GpuFigures`; the head's own is in its report, as ``gpu_NAME``.
    """
    own = {name.removeprefix(_PREFIX): usage[name] for name in usage if name.startswith(_PREFIX)}
    parts = [*(use for node, use in uses.items() if node != head or not own), *([own] if own else [])]
    found = {name: value for name, value in usage.items() if not name.startswith(_PREFIX)}
    samples = sum(part.get("samples", 0.0) for part in parts)
    if not samples:
        return found
    found["gpu_memory"] = max(part.get("memory_max", 0.0) for part in parts)
    if busy := sum(part.get("busy", part.get("samples", 0.0)) for part in parts):
        found["gpu_percent"] = sum(part.get("busy_sum", 0.0) for part in parts) / busy
        found["gpu_percent_max"] = max(part.get("busy_max", 0.0) for part in parts)
    if energy := sum(part.get("energy", 0.0) for part in parts):
        found["gpu_energy"] = energy
    return found
