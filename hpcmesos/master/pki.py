"""The cluster's own certificate authority: masters and agents get their certificates from it, and nothing else counts.

The key lies in ``STATE/ca/ca.key`` (0600); ``STATE/ca/ca.pem`` holds what is trusted: the authority that signs, and,
while one replaces the other, both. Certificates name their holder in CN and its kind in O: "master" or "agent".
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import ipaddress
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hpcmesos.errors import InvalidValue, StateError

Key: TypeAlias = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

_DAY = datetime.timedelta(days=1)
_CA_DAYS = 3650
_SWAP = 2.0  # seconds within which whoever replaces key and certificate has done both
LIFETIME = 365 * _DAY
"""Of certificates of nodes and masters, unless the site says otherwise."""


@dataclass(frozen=True, slots=True)
class Ca:
    """The authority that signs: certificate, key, and where both lie. ``trusted``: PEM of all that are trusted."""

    certificate: x509.Certificate
    key: Key
    directory: Path
    trusted: str

    @property
    def pem(self) -> str:
        """Of the one that signs."""
        return to_pem(self.certificate)

    @property
    def path(self) -> Path:
        return self.directory / "ca.pem"


@dataclass(frozen=True, slots=True)
class Request:
    """A certificate request: ``names`` are IP and DNS names. Nothing else that it asks for counts."""

    node: str
    public_key: ec.EllipticCurvePublicKey
    names: x509.SubjectAlternativeName | None


def ensure_ca(state: Path) -> Ca:
    """The authority in ``state/ca``; made when it is not there.

    The one whose key is there signs: where `install` was cut off, that need not be the first one in ``ca.pem``.

    Raises:
        StateError: when the files are there but cannot be read.
    """
    directory = state / "ca"
    directory.mkdir(parents=True, exist_ok=True, mode=0o755)
    if not (directory / "ca.key").exists():
        install(state, *make_ca())
    end = time.monotonic() + _SWAP
    while True:
        try:
            ca = _read_ca(directory)
        except (OSError, ValueError) as error:
            raise StateError(f"cannot use the certificate authority in {directory}: {error}") from error
        if ca is not None:
            return ca
        if time.monotonic() > end:
            raise StateError(f"{directory}/ca.key is not the key of a certificate in ca.pem")
        time.sleep(_SWAP / 100)  # the one is new, the other not yet


def _read_ca(directory: Path) -> Ca | None:
    """None: the key fits none of the certificates. Raises OSError, ValueError or StateError: they cannot be read."""
    trusted = (directory / "ca.pem").read_text()
    key = _load_ca_key(directory)
    for certificate in x509.load_pem_x509_certificates(trusted.encode()):
        if certificate.public_key() == key.public_key():
            return Ca(certificate, key, directory, trusted)
    return None


def make_ca(name: str = "hpcmesos CA") -> tuple[str, str]:
    """Certificate and key, PEM, of a new authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _subject(name, "ca")
    now = datetime.datetime.now(datetime.UTC)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _DAY)
        .not_valid_after(now + _CA_DAYS * _DAY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(ca=True), critical=True)
        .add_extension(identifier, critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode(), _key_pem(key).decode()


def check_ca(certificate_pem: str, key_pem: str) -> x509.Certificate:
    """The certificate of an authority that a site has made for the cluster.

    Raises:
        InvalidValue: it is none, it has run out, or the key is not its own.
    """
    try:
        certificate = x509.load_pem_x509_certificate(certificate_pem.encode())
        key = serialization.load_pem_private_key(key_pem.encode(), None)
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (ValueError, TypeError, x509.ExtensionNotFound) as error:
        raise InvalidValue(
            f"no certificate authority with its key, both PEM and the key without password: {error}"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise InvalidValue("the authority's key is neither RSA nor of an elliptic curve")
    if certificate.public_key() != key.public_key():
        raise InvalidValue("the key is not that of the authority's certificate")
    if not constraints.ca:
        raise InvalidValue("the certificate is not an authority's (CA:TRUE is missing)")
    if certificate.not_valid_after_utc < datetime.datetime.now(datetime.UTC):
        raise InvalidValue("the authority's certificate has run out")
    return certificate


def install(state: Path, trusted: str, key_pem: str) -> None:
    """Puts the authorities of ``trusted`` (PEM), the one that signs first, and its key in place of what is there.

    Cut off anywhere, it leaves a key that fits a certificate in ``ca.pem``: the one that signed until now stays there
    until its key is replaced.

    Raises:
        StateError: the files cannot be written, for instance on a full disk.
    """
    directory = state / "ca"
    try:
        with _alone(directory):
            present = _signing(directory)
            _write(
                directory / "ca.pem", (trusted if present in trusted else trusted + present).encode(), 0o644
            )
            # After ca.pem: the first time its presence says that the authority is whole.
            _write(directory / "ca.key", key_pem.encode(), 0o600)
            if present not in trusted:
                _write(directory / "ca.pem", trusted.encode(), 0o644)
    except OSError as error:
        raise StateError(f"cannot replace the certificate authority in {directory}: {error}") from error


def is_installed(state: Path, trusted: str) -> bool:
    """Whether ``ca.pem`` is ``trusted`` and ``ca.key`` the key of the first one in it."""
    try:
        ca = _read_ca(state / "ca")
    except (OSError, ValueError, StateError):
        return False
    return ca is not None and ca.trusted == trusted and trusted.startswith(ca.pem)


def _signing(directory: Path) -> str:
    """PEM of the authority whose key is there; empty: none."""
    try:
        ca = _read_ca(directory)
    except (OSError, ValueError, StateError):
        return ""
    return "" if ca is None else ca.pem


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


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

    The trusted authorities follow in the file, so that servers show them to newcomers, who know a fingerprint.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    certificate_path, key_path = directory / "certificate.pem", directory / "key.pem"
    if certificate_path.exists() and key_path.exists():
        present = x509.load_pem_x509_certificate(certificate_path.read_bytes())
        if _still_good(ca, present, common_name, organization, sans):
            return certificate_path, key_path
    # The key stays: a renewal is one file, so that whoever reads meanwhile never finds two that do not belong together.
    key = _load_key(key_path.read_bytes()) if key_path.exists() else ec.generate_private_key(ec.SECP256R1())
    names = x509.SubjectAlternativeName([_general_name(san) for san in sans])
    certificate = _issue(ca, common_name, organization, key.public_key(), names if sans else None, lifetime)
    _write(key_path, _key_pem(key), 0o600)
    chain = certificate.public_bytes(serialization.Encoding.PEM) + ca.trusted.encode()
    _write(certificate_path, chain, 0o644)
    return certificate_path, key_path


def read_csr(csr_pem: str, node: str) -> Request:
    """What is taken of a certificate request whose common name has to be ``node``.

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
    return Request(node, public_key, names)


def sign(ca: Ca, request: Request, organization: str, lifetime: datetime.timedelta = LIFETIME) -> str:
    """A certificate (PEM) for the key of a request."""
    certificate = _issue(ca, request.node, organization, request.public_key, request.names, lifetime)
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
    return fingerprint_of(ca.certificate)


def to_pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def fingerprint_of(certificate: x509.Certificate) -> str:
    """SHA-256 of its DER in hex."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def common_name_of(subject: x509.Name) -> str:
    """The common name of a subject; empty when it has none."""
    values = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(values[0].value) if values else ""


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
        .not_valid_after(min(now + lifetime, ca.certificate.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(_identifier_of(ca), critical=False)
    )
    if names is not None:
        builder = builder.add_extension(names, critical=False)
    return builder.sign(ca.key, hashes.SHA256())


def _identifier_of(ca: Ca) -> x509.AuthorityKeyIdentifier:
    """As the authority's certificate has it: a site's may have another than we would give."""
    try:
        known = ca.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(known)
    except x509.ExtensionNotFound:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.key.public_key())


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


def _load_ca_key(directory: Path) -> Key:
    key = serialization.load_pem_private_key((directory / "ca.key").read_bytes(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise StateError(f"{directory}/ca.key is neither an RSA nor an elliptic curve key")
    return key


def _load_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pem, None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise StateError("a master's key is no elliptic curve key")
    return key


def _key_pem(key: Key) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, data: bytes, mode: int) -> None:
    """Whole or not at all, there before whatever is written next, and never readable by others on the way."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
