"""The cluster's own certificate authority: masters and agents get their certificates from it, and nothing else counts.

The key lies in ``STATE/ca/ca.key`` (0600). Certificates name their holder in CN and its kind in O: "master" or "agent".
"""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import logging
import os
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hpcmesos.errors import InvalidValue, StateError

log = logging.getLogger(__name__)

_DAY = datetime.timedelta(days=1)
_CA_DAYS = 3650
LIFETIME = 365 * _DAY
"""Of certificates of nodes and masters, unless the site says otherwise."""


@dataclass(frozen=True, slots=True)
class Ca:
    """The authority: its certificate, its key, and where both lie."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    directory: Path

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    @property
    def path(self) -> Path:
        return self.directory / "ca.pem"


def ensure_ca(state: Path) -> Ca:
    """The authority in ``state/ca``; made when it is not there.

    Raises:
        StateError: when the files are there but cannot be read.
    """
    directory = state / "ca"
    directory.mkdir(parents=True, exist_ok=True, mode=0o755)
    if not (directory / "ca.key").exists():
        _create_ca(directory)
    try:
        certificate = x509.load_pem_x509_certificate((directory / "ca.pem").read_bytes())
        return Ca(certificate, _load_key(directory / "ca.key"), directory)
    except (OSError, ValueError) as error:
        raise StateError(f"cannot use the certificate authority in {directory}: {error}") from error


def ensure_certificate(
    ca: Ca,
    directory: Path,
    common_name: str,
    organization: str,
    sans: Sequence[str],
    lifetime: datetime.timedelta = LIFETIME,
) -> tuple[Path, Path]:
    """Paths of certificate and key in ``directory``; made anew when a third of their time is left, and when they do not
    fit what is asked.

    The authority's certificate follows in the file, so that servers show it to newcomers, who know its fingerprint.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    certificate_path, key_path = directory / "certificate.pem", directory / "key.pem"
    if certificate_path.exists() and key_path.exists():
        present = x509.load_pem_x509_certificate(certificate_path.read_bytes())
        if _still_good(ca, present, common_name, organization, sans):
            return certificate_path, key_path
    # The key stays: a renewal is one file, so that whoever reads meanwhile never finds two that do not belong together.
    key = _load_key(key_path) if key_path.exists() else ec.generate_private_key(ec.SECP256R1())
    names = x509.SubjectAlternativeName([_general_name(san) for san in sans])
    certificate = _issue(ca, common_name, organization, key.public_key(), names if sans else None, lifetime)
    _write(key_path, _key_pem(key), 0o600)
    chain = certificate.public_bytes(serialization.Encoding.PEM) + ca.pem.encode()
    _write(certificate_path, chain, 0o644)
    return certificate_path, key_path


def sign_csr(
    ca: Ca, csr_pem: str, organization: str, node: str, lifetime: datetime.timedelta = LIFETIME
) -> str:
    """A certificate (PEM) for the key of a request whose common name is ``node``.

    Of what the request asks for, only the common name and the IP and DNS names are taken.

    Raises:
        InvalidValue: the text is no valid request, or names another node.
    """
    try:
        csr = x509.load_pem_x509_csr(csr_pem.encode())
        valid = csr.is_signature_valid
    except (ValueError, InvalidSignature) as error:
        raise InvalidValue("the certificate request cannot be read") from error
    if not valid:
        raise InvalidValue("the certificate request is not signed by its own key")
    named = common_name_of(csr.subject)
    if named != node:
        raise InvalidValue(f"the certificate request names '{named}', not '{node}'")
    names = _limited_names(csr)
    public_key = csr.public_key()
    if not isinstance(public_key, ec.EllipticCurvePublicKey):
        raise InvalidValue("the certificate request needs an elliptic curve key")
    certificate = _issue(ca, node, organization, public_key, names, lifetime)
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def create_csr(node: str, sans: Sequence[str] = ()) -> tuple[str, str]:
    """A new key and a request for ``node``, both PEM: what an agent sends when it joins."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(_subject(node, "agent"))
    if sans:
        names = x509.SubjectAlternativeName([_general_name(san) for san in sans])
        builder = builder.add_extension(names, critical=False)
    csr = builder.sign(key, hashes.SHA256())
    return _key_pem(key).decode(), csr.public_bytes(serialization.Encoding.PEM).decode()


def fingerprint(ca: Ca) -> str:
    """SHA-256 of the authority's certificate (DER) in hex: how a newcomer recognizes the cluster."""
    return ca.certificate.fingerprint(hashes.SHA256()).hex()


def server_context(certificate: Path, key: Path, ca: Path, *, require_client: bool) -> ssl.SSLContext:
    """TLS for a listener; a client's certificate is asked for, and refused unless our authority signed it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(ca)
    context.verify_mode = ssl.CERT_REQUIRED if require_client else ssl.CERT_OPTIONAL
    return context


def client_context(ca: Path, certificate: Path | None = None, key: Path | None = None) -> ssl.SSLContext:
    """TLS towards a server of the cluster; host names are not compared: the caller checks O and CN of the peer."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.load_verify_locations(ca)
    if certificate is not None:
        context.load_cert_chain(certificate, key)
    return context


class Refresher:
    """TLS contexts whose certificate, key and authority are read again when their files change.

    Connections that are open go on; the next ones use the new files. What the authority's file names no more stays
    trusted by a context until its process starts again.
    """

    def __init__(self, contexts: Sequence[ssl.SSLContext], certificate: Path, key: Path, ca: Path) -> None:
        self._contexts, self._files = contexts, (certificate, key, ca)
        self._seen = self._stamps()

    def look(self) -> bool:
        """Whether there was something new. Raises OSError, ssl.SSLError: it cannot be used; the old goes on."""
        if (stamps := self._stamps()) == self._seen:
            return False
        certificate, key, ca = self._files
        for context in self._contexts:
            context.load_verify_locations(ca)
            context.load_cert_chain(certificate, key)
        self._seen = stamps
        return True

    def _stamps(self) -> list[tuple[int, int]]:
        found = [path.stat() for path in self._files]
        return [(status.st_mtime_ns, status.st_ino) for status in found]


async def keep_fresh(refresher: Refresher, pause: float = 10.0) -> None:
    """Looks every ``pause`` seconds, until cancelled."""
    while True:
        await asyncio.sleep(pause)
        try:
            if refresher.look():
                log.info("certificates are read again")
        except (OSError, ssl.SSLError) as error:
            log.error("cannot use the new certificates: %s", error)


def peer_name(certificate: object) -> tuple[str, str] | None:
    """(O, CN) of what ``getpeercert()`` returned; None: the peer showed no certificate."""
    if not isinstance(certificate, dict) or not certificate:
        return None
    fields = {key: value for rdn in certificate.get("subject", ()) for key, value in rdn}
    return fields.get("organizationName", ""), fields.get("commonName", "")


def serial(certificate: object) -> str:
    """The serial number, hex, of what ``getpeercert()`` returned; empty: the peer showed no certificate."""
    return str(certificate.get("serialNumber", "")).lower() if isinstance(certificate, dict) else ""


def common_name_of(subject: x509.Name) -> str:
    """The common name of a subject; empty when it has none."""
    values = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(values[0].value) if values else ""


def _create_ca(directory: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _subject("hpcmesos CA", "ca")
    now = datetime.datetime.now(datetime.UTC)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _DAY)
        .not_valid_after(now + _CA_DAYS * _DAY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(ca=True), critical=True)
        .add_extension(identifier, critical=False)
        .sign(key, hashes.SHA256())
    )
    _write(directory / "ca.pem", certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    _write(directory / "ca.key", _key_pem(key), 0o600)  # last: its presence says that the authority is whole


def _issue(
    ca: Ca,
    common_name: str,
    organization: str,
    public_key: ec.EllipticCurvePublicKey,
    names: x509.SubjectAlternativeName | None,
    lifetime: datetime.timedelta,
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    builder = (
        x509.CertificateBuilder()
        .subject_name(_subject(common_name, organization))
        .issuer_name(ca.certificate.subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _DAY)
        .not_valid_after(now + lifetime)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.key.public_key()), critical=False
        )
    )
    if names is not None:
        builder = builder.add_extension(names, critical=False)
    return builder.sign(ca.key, hashes.SHA256())


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _still_good(
    ca: Ca, certificate: x509.Certificate, common_name: str, organization: str, sans: Sequence[str]
) -> bool:
    try:
        certificate.verify_directly_issued_by(ca.certificate)
    except (ValueError, TypeError, InvalidSignature):
        return False
    wanted = {_general_name(san) for san in sans}
    return (
        not is_due(certificate)
        and certificate.subject == _subject(common_name, organization)
        and wanted <= set(_names(certificate.extensions))
    )


def is_due(certificate: x509.Certificate) -> bool:
    """Whether it is time for the next one: a third of its time is left, or less."""
    issued = certificate.not_valid_before_utc + _DAY  # dated back when it was made, for clocks that differ
    end = certificate.not_valid_after_utc
    return end - datetime.datetime.now(datetime.UTC) <= (end - issued) / 3


def _limited_names(csr: x509.CertificateSigningRequest) -> x509.SubjectAlternativeName | None:
    """The IP and DNS names of a request; None when it has none."""
    kept = [n for n in _names(csr.extensions) if isinstance(n, x509.DNSName | x509.IPAddress)]
    return x509.SubjectAlternativeName(kept) if kept else None


def _names(extensions: x509.Extensions) -> list[x509.GeneralName]:
    try:
        return list(extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return []


def _subject(common_name: str, organization: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _general_name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise StateError(f"{path} holds no elliptic curve key")
    return key


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, data: bytes, mode: int) -> None:
    """Whole or not at all, and never readable by others on the way."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
        file.write(data)
        file.flush()
        os.fsync(descriptor)
    temporary.replace(path)
