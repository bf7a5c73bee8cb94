"""Alembic's entry: runs the migrations over the connection that ``migrate()`` hands in."""

from __future__ import annotations

from alembic import context

from hpcmesos.queue.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    compare_type=True,
    compare_server_default=True,
)
with context.begin_transaction():
    context.run_migrations()
