"""An embedded cluster: what ``hpcmesos up`` writes down of it, and where everything lies.

``STATE/cluster.json`` is its identity; everything else can be made again. Sockets lie in a short directory of their
own, for the kernel allows 107 bytes for a unix socket's path.
"""

from __future__ import annotations

import json
import os
import pwd
import uuid
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from hpcmesos.errors import ConfigError, StateError

LOOPBACK_NETWORKS = 250
"""Nodes get 127.0.C.K; C in 1..250 is taken from the cluster's id, so that clusters side by side rarely share one."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """``gpus``: GPUs in all; ``cpus`` and ``memory`` (bytes) are declared for each agent."""

    state: Path
    identity: str
    agents: int
    gpus: int
    cpus: int
    memory: int
    sockets: Path  # the short directory of the unix sockets; as it was made, whoever asks
    server: str = "hpcm"
    user: str = ""
    masters: int = 1

    @classmethod
    def create(
        cls, state: Path, agents: int, gpus: int, cpus: int, memory: int, server: str, masters: int = 1
    ) -> Cluster:
        """A new one, described in ``state/cluster.json``. ``memory``: bytes. Raises OSError."""
        user = pwd.getpwuid(os.getuid()).pw_name
        identity = uuid.uuid4().hex[:8]
        cluster = cls(
            state, identity, agents, gpus, cpus, memory, _sockets_of(identity), server, user, masters
        )
        cluster.save()
        return cluster

    @classmethod
    def load(cls, state: Path) -> Cluster:
        """Raises StateError when there is no cluster in ``state``."""
        try:
            content = json.loads((state / "cluster.json").read_text())
        except FileNotFoundError:
            raise StateError(f"no cluster in {state}; start one: hpcmesos up --state {state}") from None
        except (OSError, ValueError) as error:
            raise StateError(f"cannot read {state / 'cluster.json'}: {error}") from error
        try:
            return cls(**content | {"state": state, "sockets": Path(content["sockets"])})
        except (KeyError, TypeError) as error:
            raise StateError(f"{state / 'cluster.json'} is of another version: {error}") from error

    def save(self) -> None:
        """Whole or not at all. Raises OSError."""
        content = asdict(self) | {"sockets": str(self.sockets)}
        del content["state"]
        target = self.state / "cluster.json"
        draft = target.with_suffix(".new")
        draft.write_text(json.dumps(content, indent=2) + "\n")
        draft.replace(target)

    def grown(self, agents: int | None, gpus: int | None, masters: int | None = None) -> Cluster:
        """The cluster with more agents or masters; the GPUs of a node that exists never change.

        Raises:
            ConfigError: fewer agents or masters, or another number of GPUs for each agent.
        """
        if masters is not None and masters < self.masters:
            raise ConfigError(
                f"{self.state} has {self.masters} masters, and a cluster only grows: for fewer take another --state"
            )
        if agents is not None and agents < self.agents:
            raise ConfigError(
                f"{self.state} has {self.agents} agents, and a cluster only grows: for fewer take another --state"
            )
        wanted = replace(self, agents=agents or self.agents, masters=masters or self.masters)
        wanted = replace(wanted, gpus=gpus if gpus is not None else self.gpus)
        if wanted.agents == self.agents and wanted.gpus != self.gpus:
            raise ConfigError(
                f"{self.state} has {self.gpus} GPUs; their number is set when a cluster is made"
            )
        return wanted

    @property
    def api_socket(self) -> Path:
        return self.api_sockets[0]

    @property
    def api_sockets(self) -> list[Path]:
        """One for each master, the first's first."""
        return [self.sockets / f"api{name.removeprefix('master')}.sock" for name in self.master_names]

    @property
    def submit_filter(self) -> Path:
        """A program that, if it is put there, sees every script before it is submitted."""
        return self.state / "submit_filter"

    @property
    def master_names(self) -> list[str]:
        """master, master2, master3...: also their directories below the state, and their logs."""
        return ["master", *(f"master{number}" for number in range(2, self.masters + 1))]

    @property
    def names(self) -> list[str]:
        return [f"node{number}" for number in range(1, self.agents + 1)]

    def address(self, name: str) -> str:
        network = 1 + int(self.identity, 16) % LOOPBACK_NETWORKS
        return f"127.0.{network}.{int(name.removeprefix('node'))}"

    def gpus_of(self, name: str) -> int:
        """GPUs dealt to one agent: as evenly as it goes, the first ones get the rest."""
        each, rest = divmod(self.gpus, self.agents)
        return each + (int(name.removeprefix("node")) <= rest)


def _sockets_of(identity: str) -> Path:
    if os.getuid() == 0:
        return Path("/run/hpcmesos") / identity
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime and Path(runtime).is_dir() and len(runtime) < 60:
        return Path(runtime) / f"hpcmesos-{identity}"
    return Path("/tmp") / f"hpcmesos-{os.getuid()}-{identity}"  # noqa: S108 - its owner is checked
