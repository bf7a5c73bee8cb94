"""Who changed what: for managers everything, for others what they changed themselves."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from hpcmesos.api_schema import AuditStatus
from hpcmesos.errors import Unauthorized
from hpcmesos.master.auth import Caller
from hpcmesos.master.services.lookup import parse_id
from hpcmesos.master.services.site import Site
from hpcmesos.model import JobId, Role

DAY = 86400.0
"""Seconds that one looks back who names no time."""


def changes(
    site: Site, caller: Caller, since: float | None, user: str | None, job: str | None, limit: int
) -> list[AuditStatus]:
    """The newest ``limit`` changes since then (None: since a day ago), oldest first.

    Raises:
        Unauthorized: another user's changes, by one who is no manager.
        UnknownJob: ``job`` is no job id.
    """
    if caller.role is not Role.MANAGER:
        if user not in (None, caller.user) or not caller.user:
            raise Unauthorized("only managers may see what others changed")
        user = caller.user
    seq = parse_id(site, job).seq if job is not None else None
    begin = datetime.fromtimestamp(time.time() - DAY if since is None else since, UTC)
    found = site.store.changes(begin, user=user, seq=seq, limit=limit)
    return [
        AuditStatus(
            at=change.at.timestamp(),
            action=change.action,
            job=None if change.seq is None else str(JobId(change.seq, site.settings.server, change.element)),
            user=change.user,
            via=change.via,
            details=change.details,
        )
        for change in found
    ]
