"""Fixtures of the attacks: a PostgreSQL, an API in this process, and a node."""

from tests.integration.database_kit import (
    database,
    leader,
    patient_leader,
    postgres_sockets,
    store,
)
from tests.security.api_stage import stage
from tests.security.node_stage import node

__all__ = ["database", "leader", "node", "patient_leader", "postgres_sockets", "stage", "store"]
