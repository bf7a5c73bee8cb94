"""Programs of others that drive a PBS, installed apart from hpcmesos, at work on a cluster of ours."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.e2e.cluster_kit import LiveCluster

ROOT = Path(__file__).parents[2]
PLACE = ROOT / ".cache" / "clients"
PROGRAMS = ROOT / "tests" / "clients"


def install() -> str:
    """Makes their environment; why it is missing, or nothing."""
    program = f"source {ROOT}/scripts/lib.sh\ninstall_clients {PLACE}\n"
    done = subprocess.run(["bash", "-c", program, "tests"], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return ""
    assert "could not" in done.stderr, done.stderr
    return f"no PBS clients: {done.stderr.splitlines()[-1]}"


class Clients:
    """Runs them as an ordinary user, with the q-commands of one personality first in PATH."""

    def __init__(self, cluster: LiveCluster) -> None:
        self.cluster = cluster

    def directory(self, name: str) -> Path:
        """A new directory of the user's, where programs put what they make."""
        place = self.cluster.work() / name
        self.cluster.run("mkdir", str(place), check=True)
        return place

    def run(
        self,
        personality: str,
        *command: str,
        timeout: float = 60,
        check: bool = True,
        environ: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        path = f"{self.cluster.state}/bin/{personality}:{PLACE}/bin:/usr/bin:/bin"
        return self.cluster.run(
            *command, environ={"PATH": path, **(environ or {})}, timeout=timeout, check=check
        )

    def program(self, personality: str, name: str, *arguments: object) -> Any:
        """What a program of tests/clients prints as JSON in its last line."""
        done = self.run(personality, "python", str(PROGRAMS / name), *map(str, arguments))
        return json.loads(done.stdout.splitlines()[-1])
