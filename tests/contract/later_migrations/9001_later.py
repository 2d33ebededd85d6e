"""A migration of the future, for tests: a column filled from the data that is there."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from torpor.storage.tables import SCHEMA

revision = "9001"
down_revision = SCHEMA


def upgrade() -> None:
    op.add_column("users", sa.Column("shouted", sa.Text()))
    op.execute("UPDATE users SET shouted = upper(email)")
