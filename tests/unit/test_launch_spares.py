"""Directories of attempts that are used again, with the script in them."""

from __future__ import annotations

import base64
import os
import resource
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hpcmesos.launch import files
from hpcmesos.launch.owners import Owner
from hpcmesos.launch.processes import Children
from hpcmesos.launch.settings import Config
from tests.e2e.cluster_kit import wait_until

OWNER = Owner("ann", os.getuid(), os.getgid(), (), "/", "/bin/sh", switch=False)


class Place:
    """The attempts of a shepherd; each is made with a script and removed again."""

    def __init__(self, path: Path) -> None:
        self._config = cast(
            "Config",
            SimpleNamespace(
                state=str(path), hosts=str(path / "hosts"), bin="/bin", sockets=str(path / "sockets")
            ),
        )
        (path / "attempts").mkdir()
        self.spares = path / "attempts"
        self.children = Children()
        self._directories = files.Directories(self._config, self.children)

    def make(self, attempt: str, script: str) -> Path:
        spec: dict[str, Any] = {
            "attempt": attempt,
            "me": 0,
            "argv": None,
            "shell": "/bin/sh",
            "script": base64.b64encode(script.encode()).decode(),
            "script_args": [],
            "job_path": [],
            "names_resolve": False,
            "members": [{"node": "n1", "address": "127.0.0.1", "slots": 1, "gpus": [], "ports": []}],
        }
        self._paths = files.job_paths(self._config, spec)
        self._directories.make(spec, self._paths, OWNER)
        return Path(self._paths.directory) / "script"

    def remove(self) -> Path:
        """What is kept."""
        self._directories.remove(self._paths, OWNER)
        [spare] = self.spares.glob(".spare.*")
        return spare / "script"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_the_elements_of_an_array_share_the_file_of_their_script(place: Place) -> None:
    first = place.make("1[0].h#1", "true\n").stat().st_ino
    kept = place.remove()
    again = place.make("1[1].h#1", "true\n")
    assert (again.stat().st_ino, again.read_text(), kept.exists()) == (first, "true\n", False)
    assert sorted(os.listdir(again.parent)) == ["script", "tmp"]


def test_another_script_is_written(place: Place) -> None:
    place.make("1.h#1", "true\n")
    place.remove()
    again = place.make("2.h#1", "false\n")
    assert (again.read_text(), again.stat().st_mode & 0o777) == ("false\n", 0o700)


def _changed(script: Path) -> None:
    script.write_text("evil\n")


def _linked(script: Path) -> None:
    target = script.parent.parent / "precious"
    target.write_text("true\n")
    target.chmod(0o700)
    script.unlink()
    script.symlink_to(target)


def _with_another_name(script: Path) -> None:
    os.link(script, script.parent.parent / "other")


def _with_another_mode(script: Path) -> None:
    script.chmod(0o777)


def _a_pipe(script: Path) -> None:
    script.unlink()
    os.mkfifo(script, 0o700)


@pytest.mark.parametrize("change", [_changed, _linked, _with_another_name, _with_another_mode, _a_pipe])
def test_what_its_owner_has_put_in_its_place_is_not_run(place: Place, change: Any) -> None:
    place.make("1.h#1", "true\n")
    change(place.remove())
    again = place.make("2.h#1", "true\n")
    assert (again.read_text(), again.is_symlink(), again.stat().st_nlink) == ("true\n", False, 1)
    assert again.stat().st_mode & 0o777 == 0o700
    if change is _linked:
        assert (place.spares / "precious").read_text() == "true\n"


def _made_large(script: Path) -> None:
    os.truncate(script, 64 * 1024 + 1)


@pytest.mark.parametrize("change", [_made_large, _linked, _a_pipe])
def test_what_a_job_has_made_of_its_script_does_not_outlive_it(place: Place, change: Any) -> None:
    change(place.make("1.h#1", "true\n"))
    kept = place.remove()
    assert os.listdir(kept.parent) == ["tmp"]
    again = place.make("2.h#1", "true\n")
    assert (again.read_text(), again.is_symlink()) == ("true\n", False)


def test_a_directory_in_its_place_is_removed_with_all_else(place: Place) -> None:
    place.make("1.h#1", "true\n")
    script = place.remove()
    script.unlink()
    (script / "deep").mkdir(parents=True)
    again = place.make("2.h#1", "true\n")
    assert again.read_text() == "true\n"

    def removed() -> bool:
        place.children.reap()
        return not list(place.spares.glob(".*"))

    wait_until(removed, "what was kept is gone")
    assert [path.name for path in place.spares.iterdir()] == ["2.h#1"]


def test_a_script_is_whole_or_not_there(place: Place) -> None:
    """As much of a file as there is room for is written without an error; here the room is a limit of the process."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            place.make("1.h#1", "true\n" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert place.make("2.h#1", "true\n" * 1000).read_text() == "true\n" * 1000
