"""Where somebody is, as entries of access lists judge it."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from hpcmesos.errors import QueueDenied
from hpcmesos.master.auth import Caller
from hpcmesos.master.services import hosts
from hpcmesos.master.services.admission import Applicant, _check_access
from hpcmesos.master.services.hosts import Whereabouts, peer_of
from hpcmesos.model import Role
from tests.integration.name_kit import naming, settle

FOREIGN = "login1.10.9.9.9.nip.io"
FORWARD = {
    "login1": "10.0.0.1",
    "login1.site.org": "10.0.0.1",
    "login2": "10.0.0.2",
    FOREIGN: "10.9.9.9",
    "liar.site.org": "10.0.0.3",
}
REVERSE = {
    "10.0.0.1": "login1.site.org",
    "10.9.9.9": FOREIGN,
    "10.9.9.8": "liar.site.org",
    "10.9.9.7": "plain.elsewhere.org",
}


@pytest.mark.parametrize(
    ("peer", "entry", "fits"),
    [
        ("10.0.0.1", "login1", True),
        ("10.0.0.1", "LOGIN1.site.org", True),
        ("::ffff:10.0.0.1", "login1", True),
        ("10.0.0.1", "10.0.0.1", True),
        ("10.0.0.1", "10.0.0.*", True),
        ("10.0.0.1", "login2", False),
        ("10.0.0.1", "*.site.org", True),
        ("10.0.0.1", "login*", True),
        ("10.0.0.1", "login?.site.org", True),
        ("10.0.0.1", "*.elsewhere.org", False),
        ("10.9.9.9", "login1", False),  # a name of his own domain begins like it
        ("10.9.9.9", "login*", False),
        ("10.9.9.9", FOREIGN, True),
        ("10.9.9.8", "*.site.org", False),  # his address says so, the name does not
        ("10.9.9.8", "liar.site.org", False),
        ("10.9.9.7", "*", True),
        ("gateway1", "gateway1", True),
        ("gateway1.site.org", "gateway1", True),  # its certificate says so
        ("gateway1.site.org", "*.site.org", True),
        ("gateway1", "gateway2", False),
        (socket.gethostname(), socket.gethostname(), True),
        (socket.gethostname(), "localhost", True),
        (socket.gethostname(), socket.getfqdn(), True),
    ],
)
def test_entries(peer: str, entry: str, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    naming(monkeypatch, FORWARD, REVERSE)
    monkeypatch.setattr(hosts, "_PATIENCE", 30.0)
    assert Whereabouts(peer).fits(entry) is fits


def test_a_silent_name_service_is_waited_for_once_and_a_moment_only(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = threading.Event()
    asked = naming(monkeypatch, FORWARD, REVERSE, wait=lambda name: answer.wait(60))
    monkeypatch.setattr(hosts, "_PATIENCE", 0.2)
    place = Whereabouts("10.0.0.1")
    begun = time.monotonic()
    try:
        assert not any(place.fits(entry) for entry in ("login1", "login2", "*.site.org") * 10)
        assert place.fits("login1", bars=True)
        assert not Whereabouts("10.0.0.1").fits("login1"), "known to be silent"
        assert time.monotonic() - begun < 10
        assert sorted(asked) == ["10.0.0.1", "login1", "login2"], "each is asked for once"
    finally:
        answer.set()
        settle()


def test_answers_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = naming(monkeypatch, FORWARD, REVERSE)
    monkeypatch.setattr(hosts, "_PATIENCE", 30.0)
    assert [Whereabouts("10.0.0.1").fits("login1") for _ in range(3)] == [True] * 3
    assert asked == ["login1"]


def test_who_is_barred_stays_out_where_nobody_knows_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = threading.Event()
    naming(monkeypatch, FORWARD, REVERSE, wait=lambda name: answer.wait(60))
    monkeypatch.setattr(hosts, "_PATIENCE", 0.1)
    try:
        assert not lets_in("-ann@login2,ann", "10.0.0.2")
        assert not lets_in("ann@login2", "10.0.0.2")
        assert lets_in("-bob@login2,ann", "10.0.0.2")
    finally:
        answer.set()
        settle()


def test_each_list_has_its_own_time_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """The users' has used up its second: a host that the name service knows is let in all the same."""
    answer = threading.Event()
    naming(monkeypatch, FORWARD, REVERSE, wait=lambda name: name == "login2" and answer.wait(60))
    monkeypatch.setattr(hosts, "_PATIENCE", 1.0)
    lists = {"acl_user_enable": "True", "acl_users": "ann@login2,ann"}
    lists |= {"acl_host_enable": "True", "acl_hosts": "login1"}
    try:
        _check_access("queue q", lists, Applicant(user="ann", peer="10.0.0.1", resources={}))
    finally:
        answer.set()
        settle()


def lets_in(entries: str, peer: str, of: str = "user") -> bool:
    """Whether a queue with this list is open to ann."""
    attributes = {f"acl_{of}_enable": "True", f"acl_{of}s": entries}
    try:
        _check_access("queue q", attributes, Applicant(user="ann", peer=peer, resources={}))
    except QueueDenied:
        return False
    return True


@pytest.mark.parametrize(
    ("peer", "barred", "enters"),
    [
        ("10.9.9.9", "*.nip.io", False),
        ("10.9.9.8", "*.site.org", False),  # he has given his address a name that has another
        ("10.9.9.7", "*.nip.io", False),  # he may have had that name a minute ago
        ("10.9.9.6", "login*", False),  # no name at all
        ("10.9.9.7", "10.0.*", True),
        ("10.9.9.7", "10.9.*", False),
        ("10.9.9.7", "10.[0-8a]*", True),
        ("10.9.9.7", "10.[9a]*", False),
        ("10.9.9.7", "fd00:*", True),
        ("10.9.9.7", "login2", True),
        ("gateway1", "*.site.org", True),  # by its certificate
        ("gateway1.site.org", "*.site.org", False),
    ],
)
def test_what_bars_does_not_ask_how_an_address_is_called(
    peer: str, barred: str, enters: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its owner names it as he likes."""
    naming(monkeypatch, FORWARD, REVERSE)
    monkeypatch.setattr(hosts, "_PATIENCE", 30.0)
    assert lets_in(f"-ann@{barred},ann", peer) is enters
    assert lets_in(f"-{barred},*", peer, "host") is enters


def test_the_first_entry_that_fits_decides() -> None:
    assert lets_in("+10.0.0.1,-10.0.*,*", "10.0.0.1", "host")
    assert not lets_in("-10.0.*,+10.0.0.1,*", "10.0.0.1", "host")
    assert not lets_in("-10.0.*", "10.9.9.9", "host"), "nobody is let in but those that are named"


def test_what_is_certain() -> None:
    caller = Caller("ann", Role.USER, address="10.0.0.1")
    assert peer_of(caller) == "10.0.0.1"
    assert peer_of(Caller("ann", Role.USER, local=True)) == socket.gethostname()
    assert peer_of(Caller("ann", Role.USER, host="gateway1", address="10.0.0.1")) == "gateway1"
