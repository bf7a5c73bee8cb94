"""The probe: ``python -m hpcmesos.agent.gpus`` answers what NVML says, one JSON line for each line that it is asked.

A process of its own, for a sick card can block an NVML call for ever. Question ``{"id": n}``; answer ``{"id": n,
"gpus": [...], "error": text}``, each GPU ``{uuid, index, model, memory, pci, numa, minor, parent, profile, instance,
links, lost, error, processes: [[pid, user]], xids, figures}``; memory in bytes. ``xids``: errors of the driver since
the last question. ``figures``: `health.FIGURES`, as far as this card has them. ``error`` beside an empty list: NVML
cannot be used here. A card in MIG mode is not told itself, but each of its instances is; what befalls the card befalls
them. Ends with its standard input.
"""

from __future__ import annotations

import json
import os
import pwd
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pynvml

from hpcmesos.model import NVLINK_QUALITY

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


@dataclass(frozen=True, slots=True)
class _Device:
    """What is given out: a card, or a MIG instance of ``card``. ``links``: active NVLinks of the card."""

    handle: Any
    card: Any
    facts: dict[str, Any]
    links: list[int]

    @property
    def cut(self) -> bool:
        return bool(self.facts["parent"])

    @property
    def card_uuid(self) -> str:
        return str(self.facts["parent"] or self.facts["uuid"])


class Probe:
    """NVML's GPUs; facts that do not change are read once."""

    def __init__(self) -> None:
        self._devices: list[_Device] = []
        self._events: Any = None

    def start(self) -> None:
        """Raises pynvml.NVMLError when there is no NVML here. A card that cannot be opened is left out."""
        pynvml.nvmlInit()
        for index in range(pynvml.nvmlDeviceGetCount()):
            try:
                card = pynvml.nvmlDeviceGetHandleByIndex(index)
                found = list(_devices(card))
            except pynvml.NVMLError as error:
                print(f"GPU {index} is left out: {error}", file=sys.stderr, flush=True)
                continue
            self._devices += found
            self._register(card)
        for place, device in enumerate(self._devices):
            device.facts["index"] = place if any(d.cut for d in self._devices) else device.facts["index"]
            device.facts["links"] = [_quality(device.card, other.card) for other in self._devices]

    def look(self) -> list[dict[str, Any]]:
        """All GPUs with the processes that compute on them now."""
        xids = self._xids()
        return [d.facts | _now(d) | {"xids": xids.get(d.card_uuid, [])} for d in self._devices]

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


def _devices(card: Any) -> Iterator[_Device]:
    """The card, or in MIG mode its instances: a card that is cut up is of no use itself."""
    links = _active_nvlinks(card)
    if not _mig(card):
        yield _Device(card, card, _facts(card, card), links)
        return
    for place in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(card)):
        with suppress(pynvml.NVMLError_NotFound):
            part = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(card, place)
            yield _Device(part, card, _facts(part, card) | _facts_of_part(part, card), links)


def _mig(card: Any) -> bool:
    """Whether the card is in MIG mode. Raises pynvml.NVMLError for a card that does not answer."""
    try:
        return bool(pynvml.nvmlDeviceGetMigMode(card)[0] == pynvml.NVML_DEVICE_MIG_ENABLE)
    except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound):
        return False


def _facts(handle: Any, card: Any) -> dict[str, Any]:
    pci = _text(pynvml.nvmlDeviceGetPciInfo(card).busId)
    return {
        "uuid": _text(pynvml.nvmlDeviceGetUUID(handle)),
        "index": int(pynvml.nvmlDeviceGetIndex(card)),
        "model": _text(pynvml.nvmlDeviceGetName(handle)),
        "memory": int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
        "pci": pci,
        "numa": _numa(pci),
        "minor": _minor(card),
        "parent": "",
    }


def _facts_of_part(part: Any, card: Any) -> dict[str, Any]:
    """NVML names instances "NVIDIA H100 80GB HBM3 MIG 1g.10gb"; a + in a profile would not go into ``-l nodes=``."""
    profile = _text(pynvml.nvmlDeviceGetName(part)).rpartition("MIG ")[2].replace("+", ".")
    ids = pynvml.nvmlDeviceGetGpuInstanceId(part), pynvml.nvmlDeviceGetComputeInstanceId(part)
    return {"parent": _text(pynvml.nvmlDeviceGetUUID(card)), "profile": profile, "instance": list(ids)}


def _minor(handle: Any) -> int | None:
    try:
        return int(pynvml.nvmlDeviceGetMinorNumber(handle))
    except pynvml.NVMLError:
        return None


def _now(device: _Device) -> dict[str, Any]:
    nothing: dict[str, Any] = {"processes": [], "figures": {}}
    try:
        if _mig(device.card) is not device.cut:
            return nothing | {"lost": True, "error": "MIG was switched on or off: restart the agent"}
        pids = {p.pid for p in pynvml.nvmlDeviceGetComputeRunningProcesses(device.handle)}
    except pynvml.NVMLError as error:
        gone = error.value in _GONE or (device.cut and error.value == pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return nothing | {"lost": gone, "error": str(error)}
    processes = [[pid, _user(pid)] for pid in sorted(pids)]
    return {"lost": False, "error": "", "processes": processes, "figures": _figures(device)}


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


_OF_THE_CARD = frozenset({"temperature", "ecc_errors", "rows_failed"})
"""Figures that an instance has from its card. Power and energy would be counted several times."""
_OF_A_PART = _OF_THE_CARD | {"memory_used"}


def _figures(device: _Device) -> dict[str, float]:
    found = {}
    if device.links:
        with suppress(pynvml.NVMLError):
            found["nvlink_errors"] = _nvlink_errors(device.card, device.links)
    for name, ask in _FIGURES.items():
        if device.cut and name not in _OF_A_PART:
            continue
        try:
            found[name] = float(ask(device.card if name in _OF_THE_CARD else device.handle))
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
        return NVLINK_QUALITY + links
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
