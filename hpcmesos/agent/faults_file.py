"""Why GPUs are kept out of use, as a file: an agent that restarts still knows."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from hpcmesos.agent.health import Fault

log = logging.getLogger(__name__)


def read(path: Path) -> dict[str, Fault]:
    """By UUID. A file that cannot be read is as good as none: NVML says again what is still wrong."""
    try:
        return {uuid: Fault(str(known["text"]), bool(known["clears"])) for uuid, known in _load(path).items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        log.warning("%s is passed over: %s", path, error)
        return {}


def _load(path: Path) -> dict[str, dict[str, object]]:
    try:
        found: dict[str, dict[str, object]] = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    return found


def write(path: Path, faults: Mapping[str, Fault]) -> None:
    """Whole or not at all. Raises OSError."""
    draft = path.with_suffix(".new")
    draft.write_text(json.dumps({uuid: asdict(fault) for uuid, fault in faults.items()}))
    draft.replace(path)
