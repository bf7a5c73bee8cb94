"""The `fake_nvml` fixture: a machine's cards as NVML would tell of them, without a card."""

import os
import shutil
import subprocess
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).with_name("fake_nvml.c")
FLAGS = ["-shared", "-fPIC", "-O1", "-std=c11", "-D_DEFAULT_SOURCE", "-Wall", "-Wextra", "-Werror"]

Environment = dict[str, str]
FakeNvml = Callable[..., Environment]


@pytest.fixture(scope="session")
def fake_nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the fake library, compiled once."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("nvml")
    library = folder / "libnvidia-ml.so.1"
    subprocess.run([compiler, *FLAGS, "-o", library, SOURCE], check=True, timeout=60)
    return folder


@pytest.fixture
def fake_nvml(fake_nvml_library: Path, tmp_path: Path) -> FakeNvml:
    """The cards of one test: `machine_of`."""
    return machine_of(fake_nvml_library, tmp_path)


def machine_of(fake_nvml_library: Path, place: Path) -> FakeNvml:
    """Give it the cards, get the variables that a program needs to see them; call it again to change the cards.

    Each card is a dictionary of what differs from the default: uuid, name, memory, used, bus, minor, numa, switch,
    utilization, temperature, power (mW), energy (mJ), ecc, nvlink_errors (of each
    link), `xids=[N, ...]` (grows: what is new is an event),
    `mig=[{profile, memory, used, uuid, gpu, compute, processes}, ...]` (all with defaults; MIG is on),
    `rows_failed=True`, `processes={pid: bytes}`, `nvlinks=[uuid, ...]`, `lost=True`. `hang=[FUNCTION, ...]` names
    functions of the library that never return. A program sees the change at its next call.
    """
    facts = place / "nvml.facts"

    def machine(
        gpus: Sequence[dict[str, Any]], *, hang: Sequence[str] = (), driver: str = "550.54.15"
    ) -> Environment:
        lines = [f"driver {driver}", *(f"hang {function}" for function in hang)]
        for index, changes in enumerate(gpus):
            lines += describe(index, dict(changes))
        fresh = facts.with_suffix(".new")
        fresh.write_text("\n".join(lines) + "\n")
        fresh.rename(facts)
        path = [str(fake_nvml_library), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
        return {"LD_LIBRARY_PATH": ":".join(path), "FAKE_NVML_FILE": str(facts)}

    return machine


def default_uuid(index: int) -> str:
    """Of this process's tests alone: a card belongs to one agent of the host."""
    return f"GPU-{uuid.uuid5(uuid.NAMESPACE_OID, f'fake {os.getpid()} {index}')}"


def describe(index: int, changes: dict[str, Any]) -> list[str]:
    lines = [f"gpu {changes.pop('uuid', default_uuid(index))}"]
    parts = changes.pop("mig", None)
    lines += [f"process {pid} {memory}" for pid, memory in changes.pop("processes", {}).items()]
    lines += [f"nvlink {peer}" for peer in changes.pop("nvlinks", [])]
    lines += [f"xid {number}" for number in changes.pop("xids", [])]
    lines += [flag for flag in ("lost", "rows_failed") if changes.pop(flag, False)]
    values = {
        "name": "Fake GPU 80GB",
        "memory": 80 << 30,
        "used": 0,
        "bus": f"00000000:{index + 1:02X}:00.0",
        "minor": index,
        "numa": 0,
        "switch": 0,
        "utilization": 0,
        "temperature": 30,
        "power": 60_000,
        "energy": 0,
        "ecc": 0,
        "nvlink_errors": 0,
    }
    unknown = changes.keys() - values.keys()
    if unknown:
        raise ValueError(f"a card has no {', '.join(sorted(unknown))}")
    lines += [f"{key} {value}" for key, value in {**values, **changes}.items()]
    lines += [] if parts is None else ["mig_mode"]
    for place, part in enumerate(parts or ()):
        lines += describe_part(index, place, dict(part))
    return lines


def default_part(index: int, place: int) -> str:
    return f"MIG-{uuid.uuid5(uuid.NAMESPACE_OID, f'fake {os.getpid()} {index} {place}')}"


def describe_part(index: int, place: int, changes: dict[str, Any]) -> list[str]:
    processes = changes.pop("processes", {})
    values = {"uuid": default_part(index, place), "gpu": 7 + place, "compute": 0}
    values |= {"memory": 10 << 30, "used": 0, "profile": "1g.10gb"}
    if unknown := changes.keys() - values.keys():
        raise ValueError(f"an instance has no {', '.join(sorted(unknown))}")
    line = " ".join(str(value) for value in {**values, **changes}.values())
    return [f"mig {line}", *(f"process {pid} {memory}" for pid, memory in processes.items())]
