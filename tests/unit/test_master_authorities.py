"""Replacing the certificate authority: what a step waits for, and what TLS contexts make of new files."""

from __future__ import annotations

import socket
import ssl
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from hpcmesos.errors import InvalidValue
from hpcmesos.launch.peers import Peers
from hpcmesos.launch.settings import Config
from hpcmesos.master import peers, pki
from hpcmesos.master.identity import Identity
from hpcmesos.master.services.authorities import SETTLED, Standing, lacking, settled
from hpcmesos.queue.records import AuthorityRecord, CertificateRecord

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LATE = NOW + timedelta(days=1)


def record(name: str, **changes: datetime | None) -> AuthorityRecord:
    base = AuthorityRecord(name, f"{name}\n", b"", NOW, NOW)
    return replace(base, **changes)  # type: ignore[arg-type]  # of all types


A = record("a", signs_since=NOW)
B = record("b", made_at=LATE)
SIGNING_B = replace(B, signs_since=LATE)


def certificate(node: str, standing: Standing, **changes: object) -> CertificateRecord:
    digest = peers.digest(standing.trusted)
    base = CertificateRecord("1", node, LATE, LATE, "", None, None, standing.signs.fingerprint, digest)
    return replace(base, **changes)  # type: ignore[arg-type]  # of all types


def test_the_three_steps() -> None:
    assert Standing.of([]) is None
    first, second = Standing.of([A, B]), Standing.of([A, SIGNING_B])
    third = Standing.of([replace(A, dropped_at=LATE), SIGNING_B])
    assert first == Standing(A, next=B) and first.trusted == "a\nb\n"
    assert second == Standing(SIGNING_B, old=A) and second.trusted == "b\na\n"
    assert third == Standing(SIGNING_B) and third.trusted == "b\n"


def test_a_step_waits_for_nodes_that_could_come_back() -> None:
    standing, earlier = Standing(SIGNING_B, old=A), Standing(A, next=B)
    known = [
        certificate("done", earlier),
        certificate("done", standing),
        certificate("trusts", standing, authority="a"),
        certificate("behind", earlier),
        certificate("revoked", earlier, revoked_at=LATE),
    ]
    known.append(certificate("done", earlier, role="gateway"))
    nodes = [(name, "agent") for name in ("done", "trusts", "behind", "revoked", "ran out")]
    assert lacking(standing, nodes, known) == ["trusts", "behind"]
    assert lacking(standing, [*nodes, ("done", "gateway")], known) == ["trusts", "behind", "done"]


def test_a_step_waits_until_what_is_new_is_used_everywhere() -> None:
    standing = Standing(A, next=B)
    wait = timedelta(seconds=SETTLED)
    assert not settled(standing, [], LATE + wait - timedelta(seconds=1))
    assert settled(standing, [], LATE + wait)
    late = certificate("n", standing, issued_at=LATE + timedelta(seconds=9))
    assert not settled(standing, [late], LATE + wait)


# --- contexts


def holder(ca: pki.Ca, place: Path) -> tuple[Path, Path, Path]:
    """Certificate, key and authorities of somebody, in files."""
    certificate, key = pki.ensure_certificate(ca, place, "node1", "agent", ["127.0.0.1"])
    (place / "ca.pem").write_text(ca.trusted)
    return certificate, key, place / "ca.pem"


def meet(server: ssl.SSLContext, client: ssl.SSLContext) -> bool:
    """Whether both take each other."""
    left, right = socket.socketpair()
    taken: list[bytes] = []

    def serve() -> None:
        try:
            with server.wrap_socket(right, server_side=True) as tls:
                tls.sendall(b"x")
                taken.append(tls.recv(1))
        except OSError:
            right.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(left) as tls:
            tls.recv(1)
            tls.sendall(b"y")
    except OSError:
        left.close()
    thread.join()
    return taken == [b"y"]


@pytest.fixture
def cas(tmp_path: Path) -> tuple[pki.Ca, pki.Ca]:
    return pki.ensure_ca(tmp_path / "one"), pki.ensure_ca(tmp_path / "two")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_listener_follows_the_files(
    cas: tuple[pki.Ca, pki.Ca], tmp_path: Path, version: ssl.TLSVersion
) -> None:
    one, two = cas
    files = holder(one, tmp_path / "mine")
    identity = Identity(*files)
    listener = identity.server(require_client=True)
    clients = [
        peers.client_context(ca.path, *holder(ca, tmp_path / ca.directory.parent.name)[:2]) for ca in cas
    ]
    for client in clients:
        client.maximum_version = version
    assert not identity.look()
    assert [meet(listener, client) for client in clients] == [True, False]
    both = replace(one, trusted=one.trusted + two.trusted)
    files[2].write_text(both.trusted)
    assert identity.look()
    mixed = peers.client_context(one.path, *holder(two, tmp_path / "mixed")[:2])
    assert meet(listener, mixed), "the new one is trusted beside the old one, which signs"
    holder(two, tmp_path / "mine")
    assert identity.look()
    assert [meet(listener, client) for client in clients] == [False, True], "the old one counts no more"
    assert identity.trusts == peers.digest(two.trusted)


def test_a_shepherd_follows_the_files(cas: tuple[pki.Ca, pki.Ca], tmp_path: Path) -> None:
    one, two = cas
    certificate, key, ca = holder(one, tmp_path / "mine")
    config = Config.__new__(Config)
    for name, value in (("certificate", certificate), ("key", key), ("ca", ca)):
        object.__setattr__(config, name, str(value))
    server, client = Peers(config)._contexts()
    assert meet(server, client)
    holder(two, tmp_path / "mine")
    newer, _ = Peers(config)._contexts()
    assert not meet(newer, client)


# --- what a site gives


def test_what_a_site_gives_is_looked_at(cas: tuple[pki.Ca, pki.Ca], tmp_path: Path) -> None:
    one, two = cas
    key = (one.directory / "ca.key").read_text()
    assert pki.check_ca(one.pem, key) == one.certificate
    leaf, leaf_key, _ = holder(one, tmp_path / "mine")
    for pem, private, word in (
        (one.pem, (two.directory / "ca.key").read_text(), "not that of"),
        (leaf.read_text(), leaf_key.read_text(), "CA:TRUE"),
        ("nonsense", key, "no certificate authority"),
        (one.pem, "", "no certificate authority"),
    ):
        with pytest.raises(InvalidValue, match=word):
            pki.check_ca(pem, private)


def test_key_and_certificate_are_read_together(cas: tuple[pki.Ca, pki.Ca], tmp_path: Path) -> None:
    """Whoever reads while they are replaced gets the one pair or the other."""
    pairs = [(ca.trusted, (ca.directory / "ca.key").read_text()) for ca in cas]
    state = tmp_path / "one"
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            for pair in pairs:
                pki.install(state, *pair)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for _ in range(10):
            ca = pki.ensure_ca(state)
            assert ca.certificate.public_key() == ca.key.public_key()
    finally:
        stop.set()
        thread.join()
