"""Which real GPUs this machine has, asked in a process of its own: a sick card can block an NVML call for ever; and
which agent of an embedded cluster gets which.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from hpcmesos.errors import ConfigError

PROBE_TIMEOUT = 20.0
"""Seconds; the first NVML call on a machine without persistence mode takes several."""

PROGRAM = """
import json, pynvml
uuids, trouble = [], []
try:
    pynvml.nvmlInit()
    for index in range(pynvml.nvmlDeviceGetCount()):
        try:
            uuids.append(pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(index)))
        except pynvml.NVMLError as error:
            trouble.append(f"GPU {index}: {error}")
except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded):
    pass
except pynvml.NVMLError as error:
    trouble.append(str(error))
print(json.dumps({"uuids": uuids, "trouble": ", ".join(trouble)}))
"""


@dataclass(frozen=True, slots=True)
class Found:
    """``uuids``: in NVML's order; empty without a driver. ``trouble``: what does not answer as it should, or empty."""

    uuids: list[str] = field(default_factory=list)
    trouble: str = ""


def find_real_gpus() -> Found:
    """Asks NVML in a process of its own: on a broken machine it may hang, or end its caller."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=PROBE_TIMEOUT, check=True
        )
    except subprocess.TimeoutExpired:
        return Found(trouble=f"NVML does not answer within {PROBE_TIMEOUT:.0f} s")
    except subprocess.CalledProcessError as error:
        return Found(trouble=f"NVML's library ends its caller ({error.returncode})")
    return Found(**json.loads(done.stdout))


def deal(wanted: Mapping[str, int], settled: Mapping[str, str], found: Found) -> tuple[dict[str, str], str]:
    """The setting ``gpus`` of each new agent, and a line for the user where it is not what he may expect, or "".

    Real cards when there are enough that nobody has yet, else simulated ones: never some of each. ``wanted``: how many
    each new agent shall have. ``settled``: the setting of each agent that is there.

    Raises:
        ConfigError: the cluster has real cards, and too few are left.
    """
    taken = {uuid for text in settled.values() if text.startswith("uuid:") for uuid in text[5:].split(",")}
    left = [uuid for uuid in found.uuids if uuid not in taken]
    count = sum(wanted.values())
    if count > len(left):
        if taken:
            names = ", ".join(name for name, number in wanted.items() if number)
            raise ConfigError(
                f"{names}: {count} GPUs wanted, {len(left)} of this machine's are left, and no others go with them"
            )
        said = ""
        if found.uuids or found.trouble:
            trouble = f" ({found.trouble})" if found.trouble else ""
            said = f"{count} GPUs are more than this machine's {len(left)}{trouble}: they are SIMULATED"
        return {name: f"simulated:{number}" if number else "none" for name, number in wanted.items()}, said
    cards = iter(left)
    dealt = {name: [next(cards) for _ in range(number)] for name, number in wanted.items()}
    settings = {name: f"uuid:{','.join(mine)}" if mine else "none" for name, mine in dealt.items()}
    return settings, f"careful: {found.trouble}" if found.trouble else ""
