"""What an attempt has on this node: journal, directory, secrets, container, and the enclosure of its processes."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from hpcmesos.launch import enclosure, files, limits, ports, tasks
from hpcmesos.launch.container import Container, PrivateTmp, View
from hpcmesos.launch.docker_sockets import DockerSocket
from hpcmesos.launch.journal import Entry
from hpcmesos.launch.owners import Owner
from hpcmesos.launch.services import Services


class Workspace:
    """Of one attempt. ``enclosure`` and ``journal`` are there once it is made."""

    def __init__(self, services: Services, spec: dict[str, Any], owner: Owner) -> None:
        """Makes nothing yet. Raises Refusal for an attempt's name that is no plain file name."""
        self.services = services
        self.spec = spec
        self.owner = owner
        self.id: str = spec["attempt"]
        self.head: bool = spec["me"] == 0
        self.paths = files.job_paths(services.config, spec)
        self.tasks: dict[str, Any] = {}  # of a framework, on this node
        self.container: Container | None = None  # of a job with an image, once it is ready
        self.docker: DockerSocket | None = None  # where the site gives one
        self.enclosure: enclosure.Enclosure
        self.journal: Entry

    def make(self, secrets: Mapping[str, str | None]) -> None:
        """All but the container. Whatever it raises (OSError, mostly), nothing of it is left then.

        ``secrets``: the job's own, in base64; None: one that nobody could unseal.
        """
        services = self.services
        begun = {"spec": self.spec, "boot_id": services.config.boot_id, "at": time.time()}
        self.journal = services.journal.create(self.id, begun)
        try:
            ports.check(self.spec["members"][self.spec["me"]])
            if self.spec.get("framework"):
                self.tasks = tasks.of_node(self.spec)
            services.directories.make(self.spec, self.paths, self.owner, self.tasks)
            services.secrets.make(self.id, self.owner, secrets)
            if services.config.cgroup:
                self.enclosure = self._cgroup(services.scopes.known(self.devices) or services.config.cgroup)
            else:
                self.enclosure = enclosure.Tree(services.trees, self.id, self.owner.uid)
            self.docker = services.docker.open(self)
        except BaseException:
            self.discard()
            raise

    def _cgroup(self, parent: str) -> enclosure.Cgroup:
        config = self.services.config
        wanted = limits.wanted(config.limits, self.spec)
        shared = bool(config.docker_proxy)
        return enclosure.Cgroup(parent, self.id, config.limits.get("v1", {}), wanted, shared=shared)

    @property
    def devices(self) -> tuple[limits.Device, ...]:
        """Those of the granted GPUs here."""
        return limits.granted(self.services.config.limits, self.spec)

    def hold_below(self, scope: str) -> None:
        """Its cgroup shall be there; nothing of it runs yet. Raises OSError."""
        held = self.enclosure
        if isinstance(held, enclosure.Cgroup) and os.path.dirname(held.directory) != scope:
            held.remove()
            self.enclosure = self._cgroup(scope)

    @property
    def view(self) -> View | None:
        """What its processes see of the file system, where it is not simply the host's."""
        return self.container or self.private_tmp

    @property
    def private_tmp(self) -> PrivateTmp | None:
        """Laid over what the job sees, where the site wants it."""
        return PrivateTmp(self.paths.tmpdir) if self.services.config.private_tmp else None

    def leave_container(self) -> None:
        """Whatever there is of it, or is still being made, is to go."""
        if self.container:
            self.container.close()
        if self.spec.get("image") or (self.docker and self.docker.used):
            self.services.uncontain(self.id)

    def discard(self) -> None:
        """Nothing was started: leaves no trace."""
        if self.docker:
            self.docker.discard()
        if hasattr(self, "enclosure"):
            self.enclosure.remove()
        self.leave_container()
        self.services.directories.remove(self.paths, self.owner)
        self.services.secrets.remove(self.id)
        self.services.journal.remove(self.id)

    def leave(self) -> None:
        """All processes are over. Its directory and its journal stay until its end is acknowledged."""
        self.enclosure.remove()
        self.services.secrets.remove(self.id)
        self.leave_container()

    def forget(self) -> None:
        """Its end is acknowledged."""
        self.enclosure.remove()  # again: what could not be killed may have gone
        self.services.directories.remove(self.paths, self.owner)
        self.services.journal.remove(self.id)
