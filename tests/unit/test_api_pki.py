"""The embedded authority, and the TLS that its certificates make."""

from __future__ import annotations

import socket
import ssl
import threading
from pathlib import Path

import pytest
from cryptography import x509

from hpcmesos.errors import InvalidValue, StateError
from hpcmesos.master import peers, pki


def test_the_authority_is_made_once_and_its_key_is_private(tmp_path: Path) -> None:
    first, second = pki.ensure_ca(tmp_path), pki.ensure_ca(tmp_path)
    assert pki.fingerprint(first) == pki.fingerprint(second)
    assert len(pki.fingerprint(first)) == 64
    assert (tmp_path / "ca" / "ca.key").stat().st_mode & 0o777 == 0o600


def test_a_broken_authority_is_said_in_one_line(tmp_path: Path) -> None:
    ca = pki.ensure_ca(tmp_path)
    ca.path.write_text("nonsense")
    with pytest.raises(StateError, match="ca"):
        pki.ensure_ca(tmp_path)


def test_a_certificate_is_kept_until_it_does_not_fit(tmp_path: Path) -> None:
    ca = pki.ensure_ca(tmp_path)
    place = tmp_path / "tls"

    def content(name: str = "m1", sans: tuple[str, ...] = ("127.0.0.1", "localhost")) -> bytes:
        return pki.ensure_certificate(ca, place, name, "master", sans)[0].read_bytes()

    first = content()
    assert content() == first
    assert content(sans=("localhost",)) == first
    assert content(sans=("10.0.0.1",)) != first
    renamed = content("m2")
    assert pki.common_name_of(x509.load_pem_x509_certificate(renamed).subject) == "m2"
    ca = pki.ensure_ca(tmp_path / "other")
    assert content("m2") != renamed


def test_requests_get_only_what_they_may(tmp_path: Path) -> None:
    ca = pki.ensure_ca(tmp_path)
    _, csr = pki.create_csr("node1", ["127.0.1.1", "node1.site"])
    certificate = x509.load_pem_x509_certificate(pki.sign(ca, pki.read_csr(csr, "node1"), "agent").encode())
    certificate.verify_directly_issued_by(ca.certificate)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["node1.site"]
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert 360 < (certificate.not_valid_after_utc - certificate.not_valid_before_utc).days < 370
    for text, node in ((csr, "node2"), ("nonsense", "node1"), ("", "node1")):
        with pytest.raises(InvalidValue):
            pki.read_csr(text, node)


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[tuple[str, str] | None, object]:
    """What the server learns of the client, or the error it meets."""
    left, right = socket.socketpair()
    outcome: list[object] = []

    def serve() -> None:
        try:
            with server.wrap_socket(left, server_side=True) as tls:
                outcome.append(peers.peer_name(tls.getpeercert()))
        except OSError as error:
            outcome.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(right) as tls:
            tls.recv(1)
    except OSError:
        pass
    thread.join(timeout=10)
    left.close()
    right.close()
    return outcome[0] if isinstance(outcome[0], tuple) else None, outcome[0]


def test_only_our_own_certificates_count(tmp_path: Path) -> None:
    ours, theirs = pki.ensure_ca(tmp_path / "a"), pki.ensure_ca(tmp_path / "b")
    certificate, key = pki.ensure_certificate(ours, tmp_path / "m", "m1", "master", ["127.0.0.1"])
    server = peers.server_context(certificate, key, ours.path, require_client=False)
    agent = pki.ensure_certificate(ours, tmp_path / "n", "node1", "agent", [])
    known = peers.client_context(ours.path, *agent)
    assert shake_hands(server, known)[0] == ("agent", "node1")
    assert shake_hands(server, peers.client_context(ours.path))[1] is None
    foreign = pki.ensure_certificate(theirs, tmp_path / "f", "node1", "agent", [])
    assert isinstance(shake_hands(server, peers.client_context(ours.path, *foreign))[1], OSError)
