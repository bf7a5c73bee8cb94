"""The first tables, the partitions' functions, the roles: the files of ``migrations/first``.

Frozen: later changes are later revisions.
"""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0001"
down_revision = None

_FIRST = Path(__file__).parents[1] / "first"
_PARTS = ("nodes", "jobs", "history", "site", "schedules", "credentials", "deliveries", "roles")
"""In this order: a table comes after those that it refers to, and the roles' rights after all tables."""


def upgrade() -> None:
    driver = (
        op.get_bind().connection.driver_connection
    )  # takes several statements at once, and leaves % alone
    assert driver is not None
    for part in _PARTS:
        driver.execute((_FIRST / f"{part}.sql").read_text(encoding="utf-8"))
