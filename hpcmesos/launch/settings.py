"""The shepherd's configuration file, and why it refuses an attempt."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

from hpcmesos.launch import programs


class Refusal(Exception):
    """PREPARE cannot be done. ``culprit``: the node at fault; empty: this one."""

    def __init__(self, reason: str, culprit: str = "") -> None:
        super().__init__(reason)
        self.culprit = culprit

    @classmethod
    def of(cls, error: Exception) -> Refusal:
        """What came in the way of PREPARE, in words."""
        if isinstance(error, cls):
            return error
        said = (
            f"{error.filename}: {error.strerror}"
            if isinstance(error, OSError) and error.filename
            else repr(error)
        )
        return cls(f"cannot prepare: {said}")


@dataclass(frozen=True, slots=True)
class Config:
    """What the agent wrote; see docs/architecture.md. Durations in seconds."""

    configuration: str  # names all of this and the release
    node: str
    address: str
    peer_port: int  # 0: any free one
    state: str
    sockets: str
    certificate: str  # PEM files
    key: str
    ca: str
    cgroup: str | None  # v2 directory under which attempts' cgroups are made; None: no cgroups
    limits: dict[str, Any]  # memory, cpu: bool; pids: number; devices: majors; v1: controller -> directory
    private_tmp: bool  # each attempt has a /tmp and /var/tmp of its own
    prolog: str  # program that runs before each attempt; empty: none
    prolog_timeout: float
    gang_silence: float
    gang_ping: float
    boot_id: str
    proxy_patience: float  # seconds that a launch may go on after the first of Hydra's proxies has ended
    ring_patience: float  # seconds within which a ring has to close, besides those for each rank
    site_scripts: str  # directory of prologue, epilogue and their kin; empty: none
    site_script_timeout: float
    python: str  # interpreter of the programs inside jobs
    starter: str  # program that forks for the shepherd, see processes.Children.use_starter
    containers: (
        dict[str, Any] | None
    )  # command of the helper, docker: URL, paths: seen inside, pull; None: not served
    docker_proxy: dict[str, Any] | None
    """What serves jobs' Docker sockets: command, engine: path of its own, cgroups: root of v2; None: they have none."""

    @classmethod
    def load(cls, path: str) -> Config:
        """Reads CONFIG.json. Raises OSError, ValueError or KeyError."""
        with open(path, encoding="utf-8") as file:
            values: dict[str, Any] = json.load(file)
        tls = values["tls"]
        return cls(
            configuration=values.get("configuration", ""),
            node=values["node"],
            address=values["address"],
            peer_port=int(values.get("peer_port", 0)),
            state=values["state"],
            sockets=values["sockets"],
            certificate=tls["certificate"],
            key=tls["key"],
            ca=tls["ca"],
            cgroup=values.get("cgroup"),
            limits=values.get("limits") or {},
            private_tmp=bool(values.get("private_tmp")),
            prolog=values.get("prolog") or "",
            prolog_timeout=float(values.get("prolog_timeout", 20.0)),
            gang_silence=float(values.get("gang_silence", 20.0)),
            gang_ping=float(values.get("gang_ping", 2.0)),
            boot_id=values.get("boot_id", ""),
            proxy_patience=float(values.get("proxy_patience", 60.0)),
            ring_patience=float(values.get("ring_patience", 20.0)),
            site_scripts=values.get("site_scripts", ""),
            site_script_timeout=float(values.get("site_script_timeout", 300.0)),
            python=values["python"],
            starter=values.get("starter", programs.STARTER),
            containers=values.get("containers"),
            docker_proxy=values.get("docker_proxy"),
        )

    @property
    def ranks_socket(self) -> str:
        return os.path.join(self.sockets, "ranks.sock")

    @property
    def control_socket(self) -> str:
        return os.path.join(self.sockets, "control.sock")

    @property
    def bin(self) -> str:
        return os.path.join(self.state, "bin")

    @property
    def container_bin(self) -> str:
        """What containers see as ``bin``: the same commands, for an interpreter of the image."""
        return os.path.join(self.state, "container-bin")

    @property
    def hosts(self) -> str:
        return os.path.join(self.state, "hosts")
