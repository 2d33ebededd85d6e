"""Logins can be told apart and listed; counted tries; chores."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"


def text(name: str, default: str | None = None) -> sa.Column[Any]:
    return sa.Column(name, sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=False, server_default=default)


def time(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.Double(), nullable=False)


def upgrade() -> None:
    for name in ("id", "address", "agent"):
        op.add_column("sessions", text(name, default=""))
    op.execute("UPDATE sessions SET id = '0' || substr(digest, 1, 24)")  # 25 base-36 digits, as every id
    op.create_index("tokens_of_subject", "tokens", ["purpose", "subject"])
    op.create_table(
        "tries",
        text("subject"),
        sa.Column("count", sa.BigInteger(), nullable=False),
        time("last_at"),
        time("blocked_until"),
        sa.PrimaryKeyConstraint("subject", name="tries_key"),
    )
    op.create_index("tries_by_age", "tries", ["last_at"])
    op.create_table(
        "chores",
        text("id"),
        text("kind"),
        text("subject"),
        time("created_at"),
        sa.Column("data", sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=False),
        sa.PrimaryKeyConstraint("id", name="chores_key"),
    )
    op.create_index("chores_subject", "chores", ["kind", "subject"], unique=True)
