"""The disk of the shepherd's state is full: its jobs end all the same, and nothing of a job is cut off in silence."""

from __future__ import annotations

from pathlib import Path

import pytest

from . import shepherd_kit as kit


def with_full_log(words: list[str]) -> list[str]:
    """Each line that it writes into its log fails with ENOSPC."""
    return ["sh", "-c", 'exec "$@" 2>/dev/full', "sh", *words]


@pytest.mark.parametrize("cgroups", [True, False], ids=["cgroups", "tree"])
def test_an_end_needs_no_room_in_the_log(tmp_path: Path, cgroups: bool) -> None:
    """That a file could not be moved is a line of the log."""
    if cgroups and not kit.UNIFIED:
        pytest.skip("needs a writable cgroup v2 hierarchy")
    lost = {"local": str(tmp_path / "result"), "host": None, "remote": str(tmp_path / "missing" / "result")}
    with kit.cluster(tmp_path, ["node1"], cgroups, prefix=with_full_log) as [node]:
        run = kit.Run([node], kit.spec([node], tmp_path, "exit 7\n", stageout=[lost]))
        ended = run.ended(timeout=10)
    assert (ended["cause"], ended["code"]) == ("APP", 7)
    assert "stageout of" in ended["message"]
