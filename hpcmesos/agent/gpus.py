"""The probe: ``python -m hpcmesos.agent.gpus`` answers what NVML says, one JSON line for each line that it is asked.

A process of its own, for a sick card can block an NVML call for ever. Question ``{"id": n}``; answer ``{"id": n,
"gpus": [...], "error": text}``, each GPU ``{uuid, index, model, memory, pci, numa, minor, links, lost, error,
processes: [[pid, user]], xids, figures}``; memory in bytes. ``xids``: errors of the driver since the last question.
``figures``: `health.FIGURES`, as far as this card has them. ``error`` beside an empty list: NVML cannot be used here.
Ends with its standard input.
"""

from __future__ import annotations

import json
import os
import pwd
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pynvml

_NVLINK_QUALITY = 10  # an NVLink counts more than any path over PCI
_PCI_QUALITY = {
    pynvml.NVML_TOPOLOGY_INTERNAL: 6,
    pynvml.NVML_TOPOLOGY_SINGLE: 5,
    pynvml.NVML_TOPOLOGY_MULTIPLE: 4,
    pynvml.NVML_TOPOLOGY_HOSTBRIDGE: 3,
    pynvml.NVML_TOPOLOGY_NODE: 2,
    pynvml.NVML_TOPOLOGY_SYSTEM: 1,
}
_MOST_EVENTS = 1000  # of one answer
_GONE = (pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_NOT_FOUND, pynvml.NVML_ERROR_RESET_REQUIRED)


class Probe:
    """NVML's GPUs; facts that do not change are read once."""

    def __init__(self) -> None:
        self._handles: list[Any] = []
        self._facts: list[dict[str, Any]] = []
        self._links: list[list[int]] = []  # of each card, its active NVLinks
        self._events: Any = None

    def start(self) -> None:
        """Raises pynvml.NVMLError when there is no NVML here. A card that cannot be opened is left out."""
        pynvml.nvmlInit()
        for index in range(pynvml.nvmlDeviceGetCount()):
            try:
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                facts = _facts(handle, index)
            except pynvml.NVMLError as error:
                print(f"GPU {index} is left out: {error}", file=sys.stderr, flush=True)
                continue
            self._handles.append(handle)
            self._facts.append(facts)
            self._links.append(_active_nvlinks(handle))
            self._register(handle)
        for a, facts in zip(self._handles, self._facts, strict=True):
            facts["links"] = [_quality(a, b) for b in self._handles]

    def look(self) -> list[dict[str, Any]]:
        """All GPUs with the processes that compute on them now."""
        xids = self._xids()
        return [
            facts | _now(handle, links) | {"xids": xids.get(facts["uuid"], [])}
            for handle, facts, links in zip(self._handles, self._facts, self._links, strict=True)
        ]

    def _register(self, handle: Any) -> None:
        """Asks for the card's XIDs; a card or driver that has none goes without."""
        try:
            if self._events is None:
                self._events = pynvml.nvmlEventSetCreate()
            pynvml.nvmlDeviceRegisterEvents(handle, pynvml.nvmlEventTypeXidCriticalError, self._events)
        except pynvml.NVMLError as error:
            print(f"no XIDs of a GPU: {error}", file=sys.stderr, flush=True)

    def _xids(self) -> dict[str, list[int]]:
        """Those that have come since the last call, by UUID."""
        found: dict[str, list[int]] = {}
        for _ in range(_MOST_EVENTS if self._events is not None else 0):
            try:
                event = pynvml.nvmlEventSetWait_v2(self._events, 0)
                uuid = _text(pynvml.nvmlDeviceGetUUID(event.device))
            except pynvml.NVMLError:  # a timeout: there is no more; or the card is lost, which is seen anyway
                break
            found.setdefault(uuid, []).append(int(event.eventData))
        return found


def main() -> int:
    """Answers until standard input ends."""
    probe, error = Probe(), ""
    try:
        probe.start()
    except pynvml.NVMLError as failure:
        error = str(failure)
    for line in sys.stdin:
        answer = {"id": json.loads(line)["id"], "gpus": probe.look(), "error": error}
        print(json.dumps(answer), flush=True)
    return 0


def _facts(handle: Any, index: int) -> dict[str, Any]:
    pci = _text(pynvml.nvmlDeviceGetPciInfo(handle).busId)
    return {
        "uuid": _text(pynvml.nvmlDeviceGetUUID(handle)),
        "index": index,
        "model": _text(pynvml.nvmlDeviceGetName(handle)),
        "memory": int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
        "pci": pci,
        "numa": _numa(pci),
        "minor": _minor(handle),
    }


def _minor(handle: Any) -> int | None:
    try:
        return int(pynvml.nvmlDeviceGetMinorNumber(handle))
    except pynvml.NVMLError:
        return None


def _now(handle: Any, links: list[int]) -> dict[str, Any]:
    try:
        pids = {p.pid for p in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)}
    except pynvml.NVMLError as error:
        return {"lost": error.value in _GONE, "error": str(error), "processes": [], "figures": {}}
    processes = [[pid, _user(pid)] for pid in sorted(pids)]
    return {"lost": False, "error": "", "processes": processes, "figures": _figures(handle, links)}


_FIGURES: dict[str, Callable[[Any], float]] = {
    "utilization": lambda h: pynvml.nvmlDeviceGetUtilizationRates(h).gpu,
    "memory_used": lambda h: pynvml.nvmlDeviceGetMemoryInfo(h).used,
    "temperature": lambda h: pynvml.nvmlDeviceGetTemperature(h, pynvml.NVML_TEMPERATURE_GPU),
    "power": lambda h: pynvml.nvmlDeviceGetPowerUsage(h) / 1000,
    "energy": lambda h: pynvml.nvmlDeviceGetTotalEnergyConsumption(h) / 1000,
    "ecc_errors": lambda h: pynvml.nvmlDeviceGetTotalEccErrors(
        h, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC
    ),
    "rows_failed": lambda h: pynvml.nvmlDeviceGetRemappedRows(h)[3],
}


_NVLINK_ERRORS = (
    pynvml.NVML_NVLINK_ERROR_DL_REPLAY,
    pynvml.NVML_NVLINK_ERROR_DL_RECOVERY,
    pynvml.NVML_NVLINK_ERROR_DL_CRC_FLIT,
    pynvml.NVML_NVLINK_ERROR_DL_CRC_DATA,
)


def _figures(handle: Any, links: list[int]) -> dict[str, float]:
    found = {}
    if links:
        with suppress(pynvml.NVMLError):
            found["nvlink_errors"] = _nvlink_errors(handle, links)
    for name, ask in _FIGURES.items():
        try:
            found[name] = float(ask(handle))
        except pynvml.NVMLError:  # not every card has every figure
            continue
    return found


def _nvlink_errors(handle: Any, links: list[int]) -> float:
    """Raises pynvml.NVMLError when the card counts none."""
    ask = pynvml.nvmlDeviceGetNvLinkErrorCounter
    return float(sum(ask(handle, link, counter) for link in links for counter in _NVLINK_ERRORS))


def _quality(a: Any, b: Any) -> int:
    """How good the path between two GPUs is; higher is better, 0 to itself and when NVML cannot say."""
    if a is b:
        return 0
    links = _nvlinks(a, b)
    if links:
        return _NVLINK_QUALITY + links
    try:
        return _PCI_QUALITY.get(pynvml.nvmlDeviceGetTopologyCommonAncestor(a, b), 0)
    except pynvml.NVMLError:
        return 0


def _nvlinks(a: Any, b: Any) -> int:
    """Active NVLinks from ``a`` to ``b``, or to a switch that joins both."""
    to_b, to_switch = 0, 0
    try:
        other = _text(pynvml.nvmlDeviceGetPciInfo(b).busId)
    except pynvml.NVMLError:
        return 0
    for link in range(pynvml.NVML_NVLINK_MAX_LINKS):
        try:
            if not pynvml.nvmlDeviceGetNvLinkState(a, link):
                continue
            remote = _text(pynvml.nvmlDeviceGetNvLinkRemotePciInfo(a, link).busId)
            if remote == other:
                to_b += 1
            elif pynvml.nvmlDeviceGetNvLinkRemoteDeviceType(a, link) == pynvml.NVML_NVLINK_DEVICE_TYPE_SWITCH:
                to_switch += 1
        except pynvml.NVMLError:
            continue
    return to_b or to_switch


def _active_nvlinks(handle: Any) -> list[int]:
    found = []
    for link in range(pynvml.NVML_NVLINK_MAX_LINKS):
        with suppress(pynvml.NVMLError):
            if pynvml.nvmlDeviceGetNvLinkState(handle, link):
                found.append(link)
    return found


def _numa(pci: str) -> int | None:
    """The NUMA node of a PCI address as NVML writes it (domain of eight digits); None: not known."""
    domain, _, rest = pci.lower().partition(":")
    try:
        with open(f"/sys/bus/pci/devices/{domain[-4:]}:{rest}/numa_node") as file:  # noqa: PTH123  (sysfs)
            node = int(file.read())
    except (OSError, ValueError):
        return None
    return node if node >= 0 else None


def _user(pid: int) -> str:
    try:
        uid = os.stat(f"/proc/{pid}").st_uid  # noqa: PTH116  (procfs)
    except OSError:
        return ""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


if __name__ == "__main__":
    raise SystemExit(main())
