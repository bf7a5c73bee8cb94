"""The authority's files, cut off while they are replaced: the master starts, and makes good what is missing."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hpcmesos.config import MasterSettings
from hpcmesos.errors import StateError
from hpcmesos.master import pki, vault
from hpcmesos.master.services.authorities import Keeper, _record
from hpcmesos.master.services.site import Site
from hpcmesos.queue.store import Store

if TYPE_CHECKING:
    from .database_kit import Database

pytest_plugins = ["tests.integration.database_kit"]

KILLED = """
import os, signal, sys
from pathlib import Path
from typing import TYPE_CHECKING
from hpcmesos.master import pki
after, real, done = int(sys.argv[1]), Path.replace, 0
def replace(self, target):
    global done
    if done == after:
        os.kill(os.getpid(), signal.SIGKILL)
    done += 1
    return real(self, target)
Path.replace = replace
pki.install(Path(sys.argv[2]), *(Path(name).read_text() for name in sys.argv[3:]))
"""


@pytest.fixture
def site(database: Database, tmp_path: Path) -> Iterator[Site]:
    """Of a master with an authority of its own."""
    state = tmp_path / "state"
    state.mkdir()
    pki.ensure_ca(state)
    vault.ensure_key(state)
    store = Store(database.api)
    made = Site.open(MasterSettings(database_url=database.api, state=state, socket=state / "api.sock"), store)
    yield made
    made.close()
    store.close()


def let_sign(site: Site) -> tuple[str, str]:
    """In the database another authority signs now, which the files only trust; what they are to hold."""
    old = pki.ensure_ca(site.settings.state)
    certificate, key = pki.make_ca("the next")
    now = datetime.now(UTC)
    new = pki.check_ca(certificate, key)
    assert site.store.begin_rotation(
        _record(site, old.certificate, (old.directory / "ca.key").read_text(), now, signs_since=now),
        _record(site, new, key, now),
        "ann",
        "",
    )
    Keeper(site).look()
    assert pki.is_installed(site.settings.state, old.pem + certificate)
    site.store.let_sign(pki.fingerprint_of(new))
    return certificate + old.pem, key


def killed(state: Path, renames: int, trusted: str, key: str) -> None:
    """Somebody who installs these is killed (SIGKILL) after so many renames."""
    files = [state / "trusted", state / "key"]
    for file, text in zip(files, (trusted, key), strict=True):
        file.write_text(text)
    words = [str(renames), str(state), *map(str, files)]
    done = subprocess.run([sys.executable, "-c", KILLED, *words], check=False)
    assert done.returncode in (-9, 0), "killed, or it took fewer renames"


@pytest.mark.parametrize("step", ["trusted", "signs", "dropped", "signs and dropped"])
def test_killed_between_two_files_a_master_can_start(tmp_path: Path, step: str) -> None:
    old, (next_pem, next_key) = pki.ensure_ca(tmp_path), pki.make_ca("the next")
    old_key = (tmp_path / "ca" / "ca.key").read_text()
    one, both, turned, two = (
        (old.pem, old_key),
        (old.pem + next_pem, old_key),
        (next_pem + old.pem, next_key),
        (next_pem, next_key),
    )
    before, after = {
        "trusted": (one, both),
        "signs": (both, turned),
        "dropped": (turned, two),
        "signs and dropped": (both, two),  # of a master that was down for long
    }[step]
    for renames in range(4):
        pki.install(tmp_path, *before)
        killed(tmp_path, renames, *after)
        ca = pki.ensure_ca(tmp_path)  # as a master does first when it starts
        assert ca.certificate.public_key() == ca.key.public_key()
        certificate, _ = pki.ensure_certificate(ca, tmp_path / "tls", "master1", "master", [])
        assert ca.pem in certificate.read_text(), "whoever dials it can check its certificate"
    assert pki.is_installed(tmp_path, after[0])


@pytest.mark.parametrize("renames", [0, 1])
def test_killed_between_two_files_a_master_goes_on(site: Site, renames: int) -> None:
    trusted, key = let_sign(site)
    killed(site.settings.state, renames, trusted, key)
    assert not pki.is_installed(site.settings.state, trusted)
    Keeper(site).look()
    assert pki.is_installed(site.settings.state, trusted)
    assert trusted.startswith(pki.ensure_ca(site.settings.state).pem)


def test_a_full_disk_is_made_good_when_there_is_room(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    trusted, key = let_sign(site)
    real = pki._write

    def write(path: Path, data: bytes, mode: int) -> None:
        if path.name == "ca.key":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(path, data, mode)

    with monkeypatch.context() as full:
        full.setattr(pki, "_write", write)
        for _ in range(2):
            with pytest.raises(StateError, match="No space left"):
                Keeper(site).look()
            assert not trusted.startswith(pki.ensure_ca(site.settings.state).pem), "the old one signs on"
    Keeper(site).look()
    assert pki.is_installed(site.settings.state, trusted)
    assert (site.settings.state / "ca" / "ca.key").read_text() == key


def test_files_that_do_not_fit_at_all_are_made_good(site: Site) -> None:
    """As an admin's mistake leaves them: what would repair them must not need them."""
    trusted, _ = let_sign(site)
    (site.settings.state / "ca" / "ca.key").write_text(pki.make_ca()[1])
    with pytest.raises(StateError, match="not the key of"):
        pki.ensure_ca(site.settings.state)
    Keeper(site).look()
    assert pki.is_installed(site.settings.state, trusted)
