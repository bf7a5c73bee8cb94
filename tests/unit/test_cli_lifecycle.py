"""What `up` accepts of what it finds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hpcmesos.cli import lifecycle
from hpcmesos.cli.embedded import Cluster
from hpcmesos.errors import ConfigError, StateError


def test_sockets_are_not_put_where_somebody_else_points(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    cluster = Cluster(tmp_path, "0", 1, 0, 1, 1, tmp_path / "link")
    with pytest.raises(StateError, match="remove it"):
        lifecycle._make_sockets(cluster)
    lifecycle._make_sockets(replace(cluster, sockets=tmp_path / "mine"))
    lifecycle._make_sockets(replace(cluster, sockets=tmp_path / "mine"))


def test_a_cluster_does_not_shrink(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, "0", 3, 0, 1, 1, tmp_path / "sockets", masters=2)
    for fewer in ({"agents": 2}, {"agents": None, "masters": 1}):
        with pytest.raises(ConfigError, match="only grows: for fewer take another --state"):
            cluster.grown(gpus=None, **fewer)  # type: ignore[arg-type]  # one of both
