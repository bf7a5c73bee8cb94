"""TLS between the processes of a cluster: who may connect, and who is at the other end. See `pki` for certificates."""

from __future__ import annotations

import hashlib
import ssl
from pathlib import Path


def server_context(certificate: Path, key: Path, ca: Path, *, require_client: bool) -> ssl.SSLContext:
    """TLS for a listener; a client's certificate is asked for, and refused unless our authority signed it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(ca)
    context.verify_flags |= (
        ssl.VERIFY_X509_PARTIAL_CHAIN
    )  # a site's own is below others, which count for nothing
    context.options |= ssl.OP_NO_TICKET  # nobody comes back by a certificate that has been dropped meanwhile
    context.num_tickets = 0
    context.verify_mode = ssl.CERT_REQUIRED if require_client else ssl.CERT_OPTIONAL
    return context


def client_context(ca: Path, certificate: Path | None = None, key: Path | None = None) -> ssl.SSLContext:
    """TLS towards a server of the cluster; host names are not compared: the caller checks O and CN of the peer."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(ca)
    if certificate is not None:
        context.load_cert_chain(certificate, key)
    return context


def peer_name(certificate: object) -> tuple[str, str] | None:
    """(O, CN) of what ``getpeercert()`` returned; None: the peer showed no certificate."""
    if not isinstance(certificate, dict) or not certificate:
        return None
    fields = {key: value for rdn in certificate.get("subject", ()) for key, value in rdn}
    return fields.get("organizationName", ""), fields.get("commonName", "")


def serial(certificate: object) -> str:
    """The serial number, hex, of what ``getpeercert()`` returned; empty: the peer showed no certificate."""
    return str(certificate.get("serialNumber", "")).lower() if isinstance(certificate, dict) else ""


def digest(trusted: str) -> str:
    """SHA-256 in hex, by which masters and nodes tell each other which authorities they trust, and which signs."""
    return hashlib.sha256(trusted.encode()).hexdigest()
