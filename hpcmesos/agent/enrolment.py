"""Joining the cluster: key and request made here, certificate from any API for a one-time token.

``python -m hpcmesos.agent.enrolment`` runs it in a process of its own (settings as JSON on standard input), for the
``cryptography`` package is large and needed only once. Exit 75: worth another try.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import socket
import ssl
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from hpcmesos.agent import api
from hpcmesos.errors import ConfigError, HpcmesosError, MasterUnreachable, Unauthenticated

RETRY = 75  # EX_TEMPFAIL
_DATED_BACK = timedelta(days=1)  # by the authority, for clocks that differ


def join(node: str, address: str, master: str, state: Path, token_file: Path, role: str = "agent") -> None:
    """Leaves ``agent.key``, ``agent.pem``, ``ca.pem`` and ``cluster`` in ``state``. ``role``: or "gateway".

    Over https the server has to show a certificate chain whose authority has the fingerprint that the token names,
    before the token's secret is sent.

    Raises:
        ConfigError: no token. Unauthenticated: the fingerprint differs. MasterUnreachable and the API's own errors.
    """
    try:
        token = token_file.read_text().strip()
    except OSError as error:
        raise ConfigError(f"cannot read the join token: {error}") from error
    fingerprint = token.partition(".")[0]
    context = None
    if master.startswith("https://"):
        context = _trust_only(_authority(master, fingerprint))
    request = _request(_key(state / "agent.key"), node, address)
    body = {"token": token, "node": node, "csr": request, "role": role}
    answer = api.call(master, "POST", "/v1/nodes/join", body, context)
    _write(state / "ca.pem", answer["ca"])
    _write(state / "cluster", answer["cluster"])
    _write(state / "agent.pem", answer["certificate"])  # last: its presence says that the node is enrolled


def renew(node: str, address: str, master: str, state: Path) -> float:
    """Fetches the next certificate when a third of this one's time is left, or the authorities are others than before.

    The key stays. Answers the seconds until the next look.

    What is trusted is there before its digest is told: the old authority goes when all nodes have told it.

    Raises:
        MasterUnreachable and the API's own errors.
    """
    context = None
    if master.startswith("https://"):
        context = _trust_only((state / "ca.pem").read_text())
        context.load_cert_chain(state / "agent.pem", state / "agent.key")
    trusted = api.call(master, "GET", "/v1/ca", None, context)["ca"]
    if trusted != (state / "ca.pem").read_text():
        _write(state / "ca.pem", trusted)
    if (left := _until_due(state / "agent.pem")) > 0 and not _is_newer(state / "ca.pem", state / "agent.pem"):
        return left
    digest = hashlib.sha256(trusted.encode()).hexdigest()
    body = {"csr": _request(_key(state / "agent.key"), node, address), "node": node, "trusts": digest}
    answer = api.call(master, "POST", "/v1/certificates/renew", body, context)
    _write(state / "agent.pem", answer["certificate"])
    return _until_due(state / "agent.pem")


def _is_newer(one: Path, other: Path) -> bool:
    """Authorities that are newer than the certificate have not been told of yet."""
    return one.stat().st_mtime_ns > other.stat().st_mtime_ns


def _until_due(path: Path) -> float:
    """Seconds until a third of the certificate's time is left."""
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    issued = certificate.not_valid_before_utc + _DATED_BACK
    end = certificate.not_valid_after_utc
    return (end - (end - issued) / 3 - datetime.now(UTC)).total_seconds()


def main() -> int:
    """One attempt to join, or to renew; the reason of a failure goes to standard error in one line."""
    words: dict[str, Any] = json.load(sys.stdin)
    if "token_file" not in words:
        return _renew_somewhere(words)
    state, token_file = Path(words["state"]), Path(words["token_file"])
    for master in (masters := api.several(words["master"])):
        try:
            join(words["node"], words["address"], master, state, token_file, words.get("role", "agent"))
            return 0
        except HpcmesosError as error:
            if error.transient and master != masters[-1]:
                continue
            print(error, file=sys.stderr)
            return RETRY if error.transient else error.exit_code
    print(f"'{words['master']}' names no master", file=sys.stderr)
    return ConfigError.exit_code


def _renew_somewhere(words: dict[str, Any]) -> int:
    """At the first master that does; prints the seconds until the next look."""
    for master in (masters := api.several(words["master"])):
        try:
            print(renew(words["node"], words["address"], master, Path(words["state"])))
            return 0
        except HpcmesosError as error:
            if master == masters[-1]:
                print(error, file=sys.stderr)
    return RETRY


def _authority(master: str, fingerprint: str) -> bytes:
    """The certificate (DER) in the server's chain that has the token's fingerprint."""
    unsure = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unsure.check_hostname = False
    unsure.verify_mode = ssl.CERT_NONE  # nothing is sent: the chain is only looked at
    host, port = api.host_and_port(master)
    try:
        with socket.create_connection((host, port), api.TIMEOUT) as plain, unsure.wrap_socket(plain) as tls:
            chain = _chain(tls)
    except OSError as error:
        raise MasterUnreachable(f"cannot reach {master}: {error}") from error
    for certificate in chain:
        if hashlib.sha256(certificate).hexdigest() == fingerprint:
            return certificate
    raise Unauthenticated(
        f"{master} is not of the cluster that the join token is for (its CA has another fingerprint)"
    )


def _chain(tls: ssl.SSLSocket) -> list[bytes]:
    """What the server sent, each certificate as DER."""
    if hasattr(tls, "get_unverified_chain"):  # Python 3.13
        return list(tls.get_unverified_chain())
    inner: Any = tls._sslobj  # type: ignore[attr-defined]  # there is no public way before 3.13
    return [ssl.PEM_cert_to_DER_cert(c.public_bytes()) for c in inner.get_unverified_chain()]


def _trust_only(authority: bytes | str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = (
        False  # the cluster's own CA signs masters and agents only; O is compared instead
    )
    context.verify_flags |= (
        ssl.VERIFY_X509_PARTIAL_CHAIN
    )  # a site's own is below others, which count for nothing
    context.load_verify_locations(cadata=authority)
    return context


def _key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The key of an earlier try, or a new one."""
    if path.exists():
        key = serialization.load_pem_private_key(path.read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return key
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _write(path, pem.decode(), 0o600)
    return key


def _request(key: ec.EllipticCurvePrivateKey, node: str, address: str) -> str:
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "agent"),
            x509.NameAttribute(NameOID.COMMON_NAME, node),
        ]
    )
    try:
        san: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(address))
    except ValueError:
        san = x509.DNSName(address)
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    builder = builder.add_extension(x509.SubjectAlternativeName([san]), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f".{path.name}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(descriptor)
    temporary.replace(path)


if __name__ == "__main__":
    raise SystemExit(main())
