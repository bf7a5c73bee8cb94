"""Fixtures of the attacks: a PostgreSQL, and an API in this process."""

import pytest

_KITS = ("database_kit", "api_kit", "leader_kit", "shepherd_kit", "agent_kit")
pytest.register_assert_rewrite(*(f"tests.integration.{kit}" for kit in _KITS))

from tests.integration.database_kit import (  # noqa: E402  # see above
    database,
    leader,
    patient_leader,
    postgres_sockets,
    store,
)
from tests.security.api_stage import stage  # noqa: E402  # see above

__all__ = ["database", "leader", "patient_leader", "postgres_sockets", "stage", "store"]
