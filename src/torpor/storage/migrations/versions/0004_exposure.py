"""Sandboxes know who reaches them from outside, and where they may go."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    for name in ("exposure", "egress"):
        op.add_column("sandboxes", sa.Column(name, sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=False, server_default="{}"))
