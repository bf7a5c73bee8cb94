"""What the examples share: scikit-learn's handwritten digits, and a loud word about the device."""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

BATCH = 32
GOOD = 0.9
"""Test accuracy below which an example ends with 1."""

Part = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


def digits() -> tuple[Part, Part]:
    """Images (N x 64, 0 to 1) and labels: four fifths to train on, every fifth to test."""
    images, labels = load_digits(return_X_y=True)
    images, labels = (images / 16).astype(np.float32), labels.astype(np.int64)
    tested = np.arange(len(labels)) % 5 == 0
    return (images[~tested], labels[~tested]), (images[tested], labels[tested])


def share(part: Part, index: int, size: int) -> Part:
    """What one of ``size`` processes trains on."""
    return part[0][index::size], part[1][index::size]


def say(line: str) -> None:
    """A line in one write: torchrun's workers of a node share one pipe, and `print` writes the line's end by itself."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def say_device(who: str, seen: list[Any]) -> str:
    """Says what this process computes on and answers its first GPU's UUID. Ends it when a granted GPU is missing.

    ``seen``: the GPUs that the framework has found.
    """
    granted = [uuid for uuid in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if uuid]
    where = f"{who} on {os.environ.get('HPCMESOS_NODE', 'this machine')}"
    if any(uuid.startswith("GPU-") for uuid in granted) and not seen:
        sys.exit(f"{where}: {', '.join(granted)} was granted, and the framework sees no GPU")
    if granted and not seen:
        say(f"{where}: GPU {granted[0]} is SIMULATED, this computes on the CPU")
    else:
        say(f"{where}: {f'GPU {granted[0]}' if granted else 'no GPU was asked for: the CPU'}")
    return granted[0] if granted else ""
