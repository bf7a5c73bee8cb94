"""Fixtures of the attacks: a PostgreSQL, and an API in this process."""

from tests.integration.database_kit import (
    database,
    leader,
    patient_leader,
    postgres_sockets,
    store,
)
from tests.security.api_stage import stage

__all__ = ["database", "leader", "patient_leader", "postgres_sockets", "stage", "store"]
