"""Fair share: who has used how much of what is due to them, as a factor between 0 and 1.

Shares form a tree of two levels, projects and their users. An account's usage also carries a part of what the rest of
its project used, as in Slurm's classic fair-tree formula: effective = own + (project's - own) * own share / project's
share. The factor is 2 ** -(effective usage / share): 1 without use, 1/2 at exactly what is due, towards 0 beyond.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hpcmesos.gang.snapshot import Account
from hpcmesos.model import HALF_LIFE


@dataclass(frozen=True, slots=True)
class Standing:
    """One account's: ``usage`` and ``share`` as parts of the whole (0 to 1), ``factor`` for the order."""

    usage: float
    share: float
    factor: float


def standings(
    accounts: Sequence[Account], project_shares: Mapping[str, float]
) -> dict[tuple[str, str], Standing]:
    """By (project, user)."""
    total = sum(account.usage for account in accounts)
    used: defaultdict[str, float] = defaultdict(float)
    users: defaultdict[str, float] = defaultdict(float)
    for account in accounts:
        used[account.project] += account.usage
        users[account.project] += account.shares
    projects = sum(project_shares.get(project, 1.0) for project in used)
    found = {}
    for account in accounts:
        project = project_shares.get(account.project, 1.0) / projects if projects else 0.0
        share = project * account.shares / users[account.project] if users[account.project] else 0.0
        own = account.usage / total if total else 0.0
        rest = used[account.project] / total - own if total else 0.0
        if not account.project:
            rest = 0.0  # users of no project answer for themselves alone
        effective = own + (rest * share / project if project else 0.0)
        factor = 2.0 ** -(effective / share) if share else 0.0
        found[account.project, account.user] = Standing(own, share, factor)
    return found


def decayed(usage: float, seconds: float, half_life: float = HALF_LIFE) -> float:
    """What is left of some use after a time."""
    decays: float = usage * 0.5 ** (seconds / half_life)
    return decays
