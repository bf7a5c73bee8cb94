"""How long scopes are kept, with a stand-in for systemd-run that makes directories and starts what it is told to."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hpcmesos.agent import isolation
from hpcmesos.launch.processes import Children
from hpcmesos.launch.scopes import HOLDER, Scopes
from hpcmesos.launch.settings import Config
from tests.integration import shepherd_kit as kit

SYSTEMD = """#!/bin/sh
for word; do case $word in --unit=*) name=${{word#--unit=}} ;; esac; done
mkdir -p {place}/$name/holder
printf '%s\\n' "$*" >{place}/$name/words
: >{place}/$name/cgroup.controllers
: >{place}/$name/cgroup.subtree_control
echo {place}/$name
cat >/dev/null
rm -r {place}/$name
"""
OLD = "Character devices:\n  1 mem\n195 nvidia\n195 nvidiactl\n\nBlock devices:\n"
NEW = OLD.replace("\n\nBlock", "\n511 nvidia-uvm\n\nBlock")
MODPROBE = """#!/bin/sh
case " $* " in *" -u "*) echo '511 nvidia-uvm' >>{devices} ;; esac
"""
MOST = 64


@pytest.fixture
def within(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs something with scopes on a host whose devices are told by a file, and where they lie."""
    (tmp_path / "bin").mkdir()
    place = tmp_path / "scopes"
    place.mkdir()
    program = tmp_path / "bin" / "systemd-run"
    program.write_text(SYSTEMD.format(place=place))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    devices = tmp_path / "devices"
    devices.write_text(OLD)
    limits = {"scopes": {"slice": "x.slice", "root": "", "directory": str(place)}, "devices": [195]}
    config = cast("Config", SimpleNamespace(limits=limits))

    def run(work: Callable[[Scopes, Path], Awaitable[Any]]) -> None:
        async def whole() -> None:
            scopes = Scopes(config, Children(), str(devices))
            try:
                await work(scopes, devices)
            finally:
                for scope in scopes._made.values():
                    os.close(scope.keeping)

        asyncio.run(whole())
        kit.wait_until(lambda: not list(place.iterdir()), "all are gone")

    return run


def test_a_module_that_comes_later_is_allowed_from_then_on(within: Callable[..., None]) -> None:
    async def work(scopes: Scopes, devices: Path) -> None:
        first = await scopes.make(((195, 0),))
        assert await scopes.make(((195, 0),)) == first == scopes.known(((195, 0),))
        assert "nvidia-uvm" not in (Path(first) / "words").read_text()
        devices.write_text(NEW)
        assert scopes.known(((195, 0),)) is None
        second = await scopes.make(((195, 0),))
        assert "DeviceAllow=char-nvidia-uvm rwm" in (Path(second) / "words").read_text()
        assert scopes.known(((195, 0),)) == second
        without = await scopes.make(())
        assert "nvidia" not in (Path(without) / "words").read_text(), "the agent began before that module"

    within(work)


def test_idle_scopes_go_where_there_are_many(within: Callable[..., None]) -> None:
    async def work(scopes: Scopes, devices: Path) -> None:
        made = [await scopes.make(((195, minor),)) for minor in range(MOST)]
        assert all(map(os.path.isdir, made))
        (Path(made[0]) / "1.hpcm#1").mkdir()  # it has an attempt
        scopes.known(((195, 1),))  # the one that was used last
        await scopes.make(((195, MOST),))
        kit.wait_until(lambda: not os.path.isdir(made[2]), "the one that was unused for longest is gone")
        assert [path for path in made if not os.path.isdir(path)] == [made[2]]
        assert scopes.known(((195, 2),)) is None
        again = await scopes.make(((195, 2),))
        assert again != made[2]
        kit.wait_until(lambda: not os.path.isdir(made[3]), "and then the next one")
        assert sorted(os.listdir(made[0]))[0] == "1.hpcm#1"
        assert HOLDER in os.listdir(made[0])

    within(work)


@pytest.mark.parametrize(("drivers", "majors"), [("195 nvidia\n", [195, 511]), ("1 mem\n", [])])
def test_the_agent_loads_cuda_s_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drivers: str, majors: list[int]
) -> None:
    """Where NVIDIA's driver is."""
    program, devices = tmp_path / "nvidia-modprobe", tmp_path / "devices"
    program.write_text(MODPROBE.format(devices=devices))
    program.chmod(0o755)
    devices.write_text("Character devices:\n" + drivers)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for _ in range(2):
        isolation._load_unified_memory(tmp_path)
        assert isolation.gpu_majors(tmp_path) == majors
    assert devices.read_text().count("nvidia-uvm") == bool(majors)
