"""The oldest waiting delivery of a channel is found at once, however many have been delivered."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_WAITING = sa.text("state = 'waiting'")


def upgrade() -> None:
    op.create_index("deliveries_heads", "deliveries", ["channel_id", "event_sequence", "id"], sqlite_where=_WAITING, postgresql_where=_WAITING)
