"""Run by alembic, from torpor.storage.schema, which has opened the transaction and will close it."""

from __future__ import annotations

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=context.config.attributes.get("metadata"),
    version_table="schema_version",
    transactional_ddl=True,
)
context.run_migrations()
