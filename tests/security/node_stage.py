"""A node as it is attacked: shepherds in processes of their own, in which guards can be switched off."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.integration import shepherd_kit as kit
from tests.security.cases import Switch, Told, Try

IS_ROOT = os.geteuid() == 0
OWNER = "nobody" if IS_ROOT else kit.ME
STRANGER = "daemon"
_code = {"of the shepherd": ""}
_UNGUARDED = str(Path(__file__).with_name("unguarded.py"))


def without(code: str) -> Switch:
    """``code`` runs in the shepherd before it begins."""
    return lambda patch: patch.setitem(_code, "of the shepherd", code)


@dataclass
class NodeStage:
    """Shepherds that are started anew for every try. ``home``: the owner's; ``root``: what he may only pass."""

    root: Path
    home: Path = field(init=False)

    def renew(self) -> None:
        for left in self.root.iterdir():
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink()
        self.home = self.root / "home"
        self.home.mkdir()
        (self.root / "private").mkdir(mode=0o700)
        (self.root / "private" / "secret").write_text("secret")
        if IS_ROOT:
            os.chown(self.home, pwd.getpwnam(OWNER).pw_uid, pwd.getpwnam(OWNER).pw_gid)

    def counts(self) -> Any:
        return sorted(str(path) for path in (self.root / "private").iterdir()), (
            self.root / "private" / "secret"
        ).read_text()

    @contextlib.contextmanager
    def nodes(
        self, count: int = 1, cgroups: bool = False, before: str = "", **settings: Any
    ) -> Iterator[list[kit.Node]]:
        """``before``: code that runs in each of them first, whatever is switched off."""

        def prefix(words: list[str]) -> list[str]:
            code = f"{before}\n{_code['of the shepherd']}"
            return [sys.executable, "-IS", _UNGUARDED, code, *words[3:]]

        names = [f"node{number + 1}" for number in range(count)]
        with kit.cluster(self.root, names, cgroups, prefix=prefix, **settings) as nodes:
            yield nodes

    def run(self, node: kit.Node, script: str, **changes: Any) -> kit.Run:
        given = {"owner": OWNER, "shell": "/bin/sh", **changes}
        return kit.Run([node], kit.spec([node], self.home, script, **given))


@pytest.fixture
def node() -> Iterator[NodeStage]:
    place = Path(tempfile.mkdtemp(prefix="hpcm-", dir="/tmp"))
    place.chmod(0o711)
    yield NodeStage(place)
    shutil.rmtree(place)


def by_job(script: str, wanted: Callable[[str], bool], **changes: Any) -> Try[NodeStage]:
    """A job that tries something, and writes what came of it."""

    def run(stage: NodeStage) -> Told:
        with stage.nodes() as [node]:
            words = script.replace("ROOT", str(stage.root))
            given = {name: _filled(value, stage) for name, value in changes.items()}
            run = stage.run(node, words, **given)
            ended = run.ended()
            said = run.tail("stdout")
            node.agent.send(op="forget", attempt=run.attempt)
            return Told(wanted(said), ended["undelivered"] or ended["message"])

    return run


def _filled(value: Any, stage: NodeStage) -> Any:
    if isinstance(value, dict):
        return {name: _filled(item, stage) for name, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, stage) for item in value]
    return value.replace("ROOT", str(stage.root)) if isinstance(value, str) else value


def wrote(path: str) -> Callable[[Try[NodeStage]], Try[NodeStage]]:
    """Judges by a file that is there afterwards, and not by what the job said."""

    def judged(action: Try[NodeStage]) -> Try[NodeStage]:
        def run(stage: NodeStage) -> Told:
            told = action(stage)
            return Told((stage.root / path).exists(), told.said)

        return run

    return judged


AS_ROOT = "from hpcmesos.launch import child; child._become = lambda owner: None"
"""Nobody becomes the owner."""
