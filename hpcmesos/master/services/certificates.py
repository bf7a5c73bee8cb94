"""Certificates of nodes: issued for a join token, renewed for the one that runs out, revoked by managers."""

from __future__ import annotations

from datetime import timedelta

from cryptography import x509

from hpcmesos.api_schema import CertificateStatus, JoinReply, RenewRequest
from hpcmesos.errors import InvalidValue, StateError, Unauthenticated, Unauthorized
from hpcmesos.master import auth, pki
from hpcmesos.master.auth import Caller
from hpcmesos.master.services.site import Site
from hpcmesos.model import Role


def authority(site: Site) -> pki.Ca:
    """This master's certificate authority.

    Raises:
        StateError: this API process has none.
    """
    if site.ca_state is None:
        raise StateError("this master has no certificate authority")
    return pki.ensure_ca(site.ca_state)


def issue(site: Site, node: str, csr: str, via: str, trusts: str, role: str = "agent") -> JoinReply:
    """A certificate for the request of a node, or a gateway (``role``), on record before it has it.

    ``trusts``: see RenewRequest.

    Raises:
        InvalidValue: a malformed request, or another node's.
    """
    ca = authority(site)
    certificate = sign(site, ca, pki.read_csr(csr, node), role)
    record(site, ca, node, certificate, via, trusts, role)
    return JoinReply(certificate=certificate, ca=ca.trusted, cluster=site.settings.cluster)


def sign(site: Site, ca: pki.Ca, request: pki.Request, role: str) -> str:
    """As issue(), not on record yet."""
    return pki.sign(ca, request, role, timedelta(days=site.settings.certificate_days))


def record(
    site: Site, ca: pki.Ca, node: str, certificate: str, via: str, trusts: str, role: str = "agent"
) -> None:
    """Notes a certificate, so that it can be revoked. ``via``: how its holder came; ``trusts``: see `peers.digest`."""
    made = x509.load_pem_x509_certificate(certificate.encode())
    # As TLS shows it: an even number of digits.
    digits = f"{made.serial_number:x}"
    serial = digits.zfill(len(digits) + len(digits) % 2)
    site.store.note_certificate(
        serial, node, made.not_valid_after_utc, via, pki.fingerprint(ca), trusts, role
    )


def renew(site: Site, caller: Caller, request: RenewRequest) -> JoinReply:
    """The next certificate of the node that asks.

    Raises:
        Unauthorized: neither a node nor a manager on this host.
        Unauthenticated: the certificate shown was revoked just now.
        InvalidValue: a malformed request, or another node's.
    """
    node = caller.gateway or caller.node
    if node is None and caller.role is Role.MANAGER and caller.local:
        node = request.node
    if node is None:
        raise Unauthorized("only nodes and gateways renew their certificates")
    role = "gateway" if caller.gateway else "agent"
    reply = issue(site, node, request.csr, caller.via, request.trusts[:64], role)
    if (
        caller.serial in site.revoked.fresh()
    ):  # while it was being renewed: the next one must not outlive that
        site.store.revoke_certificates(node, "master", "renewed while it was being revoked")
        site.revoked.fresh()
        raise Unauthenticated(f"the certificate of node {node} is revoked")
    return reply


def listing(site: Site, caller: Caller) -> list[CertificateStatus]:
    """Those that have not run out. Raises Unauthorized."""
    auth.check_operator(caller, "list certificates")
    return [
        CertificateStatus(
            serial=one.serial,
            node=one.node,
            issued_at=one.issued_at.timestamp(),
            expires_at=one.expires_at.timestamp(),
            revoked_at=one.revoked_at.timestamp() if one.revoked_at else None,
            authority=one.authority,
            trusts=one.trusts,
        )
        for one in site.store.certificates()
    ]


def revoke(site: Site, caller: Caller, node: str) -> list[CertificateStatus]:
    """Ends all certificates of a node; the leader parts from it. Answers what is on record of the node.

    Raises:
        Unauthorized: the caller is no manager.
        InvalidValue: the node has none that is good.
    """
    auth.check_manager(caller, "revoke certificates")
    if not site.store.revoke_certificates(node, caller.user or "master", caller.via):
        raise InvalidValue(f"node '{ascii(node[:40])[1:-1]}' has no certificate that is good")
    site.store.deliveries.retire(node)
    site.revoked.fresh()
    return [one for one in listing(site, caller) if one.node == node]
