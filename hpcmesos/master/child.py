"""What the supervisor hands to its children: one JSON file each (mode 0600, for URLs may hold passwords)."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import logging
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcmesos.config import MasterSettings, load

API_CONFIG = "HPCMESOS_API_CONFIG"
LEADER_CONFIG = "HPCMESOS_LEADER_CONFIG"
"""Variables of a child that name its file."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """A child's configuration."""

    settings: MasterSettings
    certificate: Path
    key: Path
    ca: Path
    unix_fd: int | None = None
    tls_fd: int | None = None

    def write(self, path: Path) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(dataclasses.asdict(self), file, default=str)

    @classmethod
    def read(cls, path: Path) -> Child:
        """As `write` wrote it. Raises OSError, ValueError, KeyError, or ConfigError for a setting."""
        values: dict[str, Any] = json.loads(path.read_text())
        return cls(
            settings=load(MasterSettings, values["settings"], {}),
            certificate=Path(values["certificate"]),
            key=Path(values["key"]),
            ca=Path(values["ca"]),
            unix_fd=values["unix_fd"],
            tls_fd=values["tls_fd"],
        )


def die_with_parent(parent: int) -> None:
    """SIGKILL when the supervisor (its process id when it started us) dies."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the supervisor is gone already")


class LineFormatter(logging.Formatter):
    """One line a record, also with a traceback; times in UTC."""

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def format(self, record: logging.LogRecord) -> str:
        return super().format(record).replace("\n", " | ")


def log_to_stderr(level: str) -> None:
    """Sets up this process' log."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter("%(asctime)s %(levelname)s %(name)s[%(process)d] %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
