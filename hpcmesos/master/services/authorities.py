"""Replacing the cluster's certificate authority while everything runs.

All masters follow what the database says. First the new authority is trusted beside the old one. Once all nodes have
both, it signs, and all certificates are renewed. Once all nodes have theirs, the old one is dropped.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

from cryptography import x509

from hpcmesos.api_schema import AuthorityStatus, RotateRequest
from hpcmesos.errors import IllegalTransition, InvalidValue
from hpcmesos.master import auth, peers, pki, vault
from hpcmesos.master.auth import Caller
from hpcmesos.master.services import certificates
from hpcmesos.master.services.site import Site
from hpcmesos.queue.records import AuthorityRecord, CertificateRecord

log = logging.getLogger(__name__)

LOOK = 5.0
"""Seconds between two looks of an API process."""
SETTLED = 40.0
"""Seconds after which masters, agents and shepherds use what was put into their files: several of their looks."""
_LONGEST_WAIT = 90 * 86400.0
_VAULT = "ca"  # owner of the sealed keys; no user's, for secrets of users have names of their own


Holder: TypeAlias = tuple[str, str]
"""Name and role, "agent" or "gateway"."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a replacement stands. ``next``: it will sign; ``old``: it will be dropped; at most one of them."""

    signs: AuthorityRecord
    next: AuthorityRecord | None = None
    old: AuthorityRecord | None = None

    @classmethod
    def of(cls, records: Sequence[AuthorityRecord]) -> Standing | None:
        """None: there has been one authority only, which lies in the masters' files."""
        trusted = [one for one in records if one.dropped_at is None]
        signing = sorted(
            (one for one in trusted if one.signs_since), key=lambda one: one.signs_since or one.made_at
        )
        if not signing:
            return None
        coming = next((one for one in trusted if one.signs_since is None), None)
        return cls(signing[-1], coming, signing[0] if len(signing) > 1 else None)

    @property
    def trusted(self) -> str:
        """PEM: the one that signs first."""
        return "".join(one.certificate for one in (self.signs, self.next, self.old) if one is not None)

    @property
    def since(self) -> datetime:
        """Of this step."""
        return self.next.made_at if self.next is not None else self.signs.signs_since or self.signs.made_at


def lacking(standing: Standing, nodes: Sequence[Holder], known: Sequence[CertificateRecord]) -> list[str]:
    """The nodes that have not asked for a certificate yet since they have the authorities of this step; and gateways.

    One whose certificates have run out, or are revoked, is not waited for: it needs a join token anyway.
    """
    last = {(one.node, one.role): one for one in known if one.revoked_at is None}  # in the order of time
    wanted = peers.digest(standing.trusted), standing.signs.fingerprint
    return [one[0] for one in nodes if one in last and (last[one].trusts, last[one].authority) != wanted]


def _holders(site: Site) -> list[Holder]:
    nodes = [(node.name, "agent") for node in site.store.nodes()]
    return nodes + [(name, "gateway") for name in sorted(site.store.deliveries.gateways())]


def settled(standing: Standing, known: Sequence[CertificateRecord], now: datetime) -> bool:
    """Whether the last that came along has had the time to use what it has."""
    digest = peers.digest(standing.trusted)
    times = [standing.since, *(one.issued_at for one in known if one.trusts == digest)]
    return now - max(times) >= timedelta(seconds=SETTLED)


def rotate(site: Site, caller: Caller, request: RotateRequest) -> list[AuthorityStatus]:
    """Begins to replace the authority.

    Raises:
        Unauthorized: the caller is no manager. InvalidValue: what is given is no authority, or the wait too long.
        IllegalTransition: a replacement is under way.
    """
    auth.check_manager(caller, "replace the certificate authority")
    if not 0 <= request.wait <= _LONGEST_WAIT:
        raise InvalidValue(f"the wait is 0 to {_LONGEST_WAIT / 86400:.0f} days")
    certificate, key = request.certificate, request.key
    if not certificate and not key:
        certificate, key = pki.make_ca(f"hpcmesos CA {datetime.now(UTC):%Y-%m-%d}")
    new = pki.check_ca(certificate, key)
    present = certificates.authority(site)
    now = datetime.now(UTC)
    if pki.fingerprint_of(new) in {one.fingerprint for one in site.store.authorities()}:
        raise InvalidValue("this authority was the cluster's before")
    old_key = (present.directory / "ca.key").read_text()
    begun = site.store.begin_rotation(
        _record(site, present.certificate, old_key, now, signs_since=now),
        _record(site, new, key, now, not_before=now + timedelta(seconds=request.wait)),
        caller.user or "master",
        caller.via,
    )
    if not begun:
        raise IllegalTransition("another authority is being replaced: see hpcmesos certificate list")
    Keeper(site).look()
    return listing(site, caller)


def force(site: Site, caller: Caller) -> list[AuthorityStatus]:
    """Takes the next step now; nodes that lack what it needs have to join again, with a new token.

    Raises:
        Unauthorized: the caller is no manager. IllegalTransition: no replacement is under way.
    """
    auth.check_manager(caller, "replace the certificate authority")
    standing = Standing.of(site.store.authorities())
    if standing is None or not _advance(site, standing, caller.via):
        raise IllegalTransition("no authority is being replaced")
    Keeper(site).look()
    return listing(site, caller)


def listing(site: Site, caller: Caller) -> list[AuthorityStatus]:
    """Those that are trusted. Raises Unauthorized."""
    auth.check_operator(caller, "list certificate authorities")
    standing = Standing.of(site.store.authorities())
    if standing is None:
        present = certificates.authority(site).certificate
        return [_status(present, "signs")]
    behind = lacking(standing, _holders(site), site.store.certificates())
    found = [
        _status(
            _load(standing.signs), "signs", standing.signs, [] if standing.next or standing.old else behind
        )
    ]
    if standing.next is not None:
        found.append(_status(_load(standing.next), "next", standing.next, behind))
    if standing.old is not None:
        found.append(_status(_load(standing.old), "old", None, behind))
    return found


class Keeper:
    """Has the files of this master follow the database, and takes the next step when it is time."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def look(self) -> None:
        """Raises StateError: the keys were sealed by a master with another ``ca/secrets.key``, or the disk is full."""
        standing = Standing.of(self._site.store.authorities())
        state = self._site.ca_state
        if standing is None or state is None:
            return
        # As the files are: they need not fit, where a crash or a full disk cut off those who replaced them.
        if not pki.is_installed(state, standing.trusted):
            sealed = standing.signs.sealed_key or b""
            key = vault.unseal(state, _VAULT, standing.signs.fingerprint, sealed)
            pki.install(state, standing.trusted, key.decode())
            log.info("certificate authorities: %s signs", standing.signs.fingerprint[:16])
        if self._is_time(standing):
            _advance(self._site, standing, "")

    def _is_time(self, standing: Standing) -> bool:
        if standing.next is None and standing.old is None:
            return False
        now = datetime.now(UTC)
        if standing.next is not None and now < standing.next.not_before:
            return False
        known = self._site.store.certificates()
        return settled(standing, known, now) and not lacking(standing, _holders(self._site), known)


def _advance(site: Site, standing: Standing, forced_via: str) -> bool:
    """False: there is no next step."""
    if standing.next is not None:
        site.store.let_sign(standing.next.fingerprint, forced_via)
    elif standing.old is not None:
        site.store.drop_authority(standing.old.fingerprint, forced_via)
    else:
        return False
    return True


def _record(
    site: Site,
    certificate: x509.Certificate,
    key: str,
    now: datetime,
    *,
    not_before: datetime | None = None,
    signs_since: datetime | None = None,
) -> AuthorityRecord:
    assert site.ca_state is not None  # certificates.authority() has looked
    fingerprint = pki.fingerprint_of(certificate)
    sealed = vault.seal(site.ca_state, _VAULT, fingerprint, key.encode())
    pem = pki.to_pem(certificate)
    return AuthorityRecord(fingerprint, pem, sealed, now, not_before or now, signs_since)


def _load(record: AuthorityRecord) -> x509.Certificate:
    return x509.load_pem_x509_certificate(record.certificate.encode())


def _status(
    certificate: x509.Certificate,
    state: str,
    record: AuthorityRecord | None = None,
    behind: list[str] | None = None,
) -> AuthorityStatus:
    start = None if record is None else record.signs_since or record.not_before
    return AuthorityStatus(
        fingerprint=pki.fingerprint_of(certificate),
        state=state,
        expires_at=certificate.not_valid_after_utc.timestamp(),
        signs_from=None if start is None else start.timestamp(),
        lacking=behind or [],
    )
