"""Sandboxes know how their life is measured out, operations how much of it they give; tags of templates."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"


def text(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=False)


def upgrade() -> None:
    op.add_column("sandboxes", sa.Column("terms", sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=False, server_default="{}"))
    op.add_column("sandboxes", sa.Column("operation_span", sa.Double(), nullable=True))
    op.create_table(
        "template_tags",
        text("id"),
        text("team_id"),
        text("name"),
        text("tag"),
        text("template_id"),
        sa.Column("assigned_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="template_tags_key"),
    )
    op.create_index("template_tags_names", "template_tags", ["team_id", "name", "tag"], unique=True)
    op.create_index("template_tags_of_template", "template_tags", ["template_id"])
