"""Finds the API for a command: ``--state`` or HPCMESOS_STATE names an embedded cluster, else the settings do."""

from __future__ import annotations

import os
from pathlib import Path

import click

from hpcmesos.cli.embedded import Cluster
from hpcmesos.client import Client
from hpcmesos.config import ClientSettings, load
from hpcmesos.launch import submit_filter

STATE = click.option(
    "--state", type=click.Path(path_type=Path), help="State directory of an embedded cluster."
)
"""The option of every command that calls `connect`."""


def connect(state: Path | None = None) -> Client:
    """A client for the cluster that the flags, the environment or /etc/hpcmesos/config.toml name.

    Raises:
        ConfigError: when a setting is malformed.
    """
    settings = _settings(state)
    if settings.state and (state or "HPCMESOS_SOCKET" not in os.environ):
        return Client(socket=Cluster.load(settings.state).api_sockets, timeout=settings.timeout)
    if settings.url:
        return Client(
            url=settings.url,
            token_file=settings.token_file,
            ca=settings.ca_file,
            munge=settings.munge,
            munge_socket=settings.munge_socket,
            timeout=settings.timeout,
        )
    return Client(socket=settings.socket, timeout=settings.timeout)


def filter_of_site() -> str | None:
    """The site's submit filter on this host; None: there is none. Raises ConfigError."""
    settings = _settings(None)
    path = settings.submit_filter if settings.state is None else Cluster.load(settings.state).submit_filter
    return str(path) if submit_filter.present(str(path)) else None


def _settings(state: Path | None) -> ClientSettings:
    site = Path("/etc/hpcmesos/client.toml")
    return load(ClientSettings, {"state": state}, os.environ, site if site.is_file() else None)
