"""Which real GPUs this machine has, asked in a process of its own: a sick card can block an NVML call for ever."""

from __future__ import annotations

import json
import subprocess
import sys

PROBE_TIMEOUT = 20.0
"""Seconds; the first NVML call on a machine without persistence mode takes several."""

PROGRAM = """
import json, pynvml
try:
    pynvml.nvmlInit()
    handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
    print(json.dumps([pynvml.nvmlDeviceGetUUID(handle) for handle in handles]))
except pynvml.NVMLError:
    print("[]")
"""


def find_real_gpus() -> list[str]:
    """UUIDs in NVML's order; empty without a driver, and when NVML does not answer in time."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=PROBE_TIMEOUT, check=True
        )
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError):
        return []
    uuids: list[str] = json.loads(done.stdout)
    return uuids
