"""The first schema."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None

DUE = (
    "CASE WHEN operation_deadline IS NOT NULL THEN operation_deadline"
    " WHEN state = 'running' THEN"
    " CASE WHEN idle_timeout > 0 AND (deadline IS NULL OR last_active_at + idle_timeout < deadline) THEN last_active_at + idle_timeout ELSE deadline END"
    " WHEN state = 'paused' AND on_timeout = 'kill' THEN deadline END"
)
LIVE = "CASE WHEN state IN ('stopped', 'error') THEN 0 ELSE 1 END"


def text(name: str, null: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=null)


def number(name: str, null: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.BigInteger(), nullable=null)


def time(name: str, null: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.Double(), nullable=null)


def flag(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.Boolean(), nullable=False)


def json(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=False)


def index(name: str, table: str, *columns: str, unique: bool = False, where: str = "") -> None:
    only = sa.text(where) if where else None
    op.create_index(name, table, list(columns), unique=unique, sqlite_where=only, postgresql_where=only)


def upgrade() -> None:
    is_postgres = op.get_bind().dialect.name == "postgresql"

    op.create_table(
        "sandboxes",
        text("id"),
        text("team_id"),
        text("state"),
        number("generation"),
        text("template_id"),
        text("template"),
        number("shape_vcpus"),
        number("shape_memory_mib"),
        number("shape_disk_mib"),
        text("network"),
        time("created_at"),
        time("updated_at"),
        time("last_active_at"),
        text("host_id"),
        text("machine_id"),
        time("started_at", null=True),
        time("deadline", null=True),
        time("idle_timeout"),
        text("on_timeout"),
        flag("auto_resume"),
        json("labels"),
        json("env"),
        text("operation_id", null=True),
        text("operation_kind", null=True),
        time("operation_started_at", null=True),
        time("operation_deadline", null=True),
        text("operation_target", null=True),
        text("operation_cause", null=True),
        text("operation_leads_to", null=True),
        number("stored_bytes"),
        text("end_reason", null=True),
        text("end_note"),
        time("ended_at", null=True),
        text("dialect"),
        text("created_by"),
        sa.Column("due_at", sa.Double(), sa.Computed(DUE, persisted=True)),
        sa.Column("live", sa.BigInteger(), sa.Computed(LIVE, persisted=True)),
        sa.PrimaryKeyConstraint("id", name="sandboxes_key"),
    )
    index("sandboxes_by_age", "sandboxes", "created_at", "id")
    index("sandboxes_by_state", "sandboxes", "state")
    index("sandboxes_due", "sandboxes", "due_at", where="due_at IS NOT NULL")
    index("sandboxes_ended", "sandboxes", "ended_at", where="ended_at IS NOT NULL")
    if is_postgres:
        op.create_index("sandboxes_labels", "sandboxes", ["labels"], postgresql_using="gin", postgresql_ops={"labels": "jsonb_path_ops"})
    index("sandboxes_live_of_team", "sandboxes", "team_id", "live", "created_at", "id")
    index("sandboxes_live_of_template", "sandboxes", "template_id", "live")
    index("sandboxes_live_on_host", "sandboxes", "host_id", "live", "id")
    index("sandboxes_of_team", "sandboxes", "team_id", "created_at", "id")
    op.create_table(
        "templates",
        text("id"),
        text("team_id"),
        text("name"),
        text("kind"),
        text("state"),
        text("source"),
        time("created_at"),
        text("host_id"),
        number("shape_vcpus", null=True),
        number("shape_memory_mib", null=True),
        number("shape_disk_mib", null=True),
        number("size_bytes"),
        text("default_user"),
        text("home"),
        text("replaces"),
        text("sandbox_id"),
        json("metadata"),
        sa.PrimaryKeyConstraint("id", name="templates_key"),
    )
    index("templates_creating", "templates", "team_id", "name", unique=True, where="state = 'creating'")
    index("templates_of_team", "templates", "team_id", "created_at", "id")
    index("templates_ready", "templates", "team_id", "name", unique=True, where="state = 'ready'")
    op.create_table(
        "teams",
        text("id"),
        text("name"),
        text("slug"),
        time("created_at"),
        time("deleted_at", null=True),
        number("limits_sandboxes", null=True),
        number("limits_vcpus", null=True),
        number("limits_memory_mib", null=True),
        number("limits_storage_bytes", null=True),
        sa.PrimaryKeyConstraint("id", name="teams_key"),
    )
    index("teams_by_age", "teams", "created_at", "id")
    index("teams_slug", "teams", "slug", unique=True)
    op.create_table(
        "users",
        text("id"),
        text("email"),
        text("name"),
        text("password"),
        text("status"),
        flag("is_admin"),
        time("created_at"),
        number("version"),
        time("deleted_at", null=True),
        text("email_key"),
        sa.PrimaryKeyConstraint("id", name="users_key"),
    )
    index("users_by_age", "users", "created_at", "id")
    index("users_email", "users", "email_key", unique=True)
    op.create_table(
        "members",
        text("team_id"),
        text("user_id"),
        text("role"),
        time("joined_at"),
        flag("is_default"),
        sa.PrimaryKeyConstraint("team_id", "user_id", name="members_key"),
    )
    index("members_of_user", "members", "user_id")
    op.create_table(
        "api_keys",
        text("id"),
        text("team_id"),
        text("name"),
        text("digest"),
        text("prefix"),
        time("created_at"),
        text("created_by"),
        json("scopes"),
        time("expires_at", null=True),
        time("last_used_at", null=True),
        time("revoked_at", null=True),
        sa.PrimaryKeyConstraint("id", name="api_keys_key"),
    )
    index("api_keys_digest", "api_keys", "digest", unique=True)
    index("api_keys_of_team", "api_keys", "team_id", "created_at")
    index("api_keys_of_user", "api_keys", "created_by")
    op.create_table(
        "sessions",
        text("digest"),
        text("user_id"),
        text("team_id"),
        text("csrf"),
        time("created_at"),
        time("expires_at"),
        number("user_version"),
        sa.PrimaryKeyConstraint("digest", name="sessions_key"),
    )
    index("sessions_expiry", "sessions", "expires_at")
    index("sessions_of_team", "sessions", "team_id")
    index("sessions_of_user", "sessions", "user_id")
    op.create_table(
        "tokens",
        text("digest"),
        text("purpose"),
        text("subject"),
        time("expires_at"),
        json("data"),
        sa.PrimaryKeyConstraint("digest", "purpose", name="tokens_key"),
    )
    index("tokens_expiry", "tokens", "expires_at")
    op.create_table(
        "sequences",
        text("team_id"),
        number("audit"),
        number("events"),
        sa.PrimaryKeyConstraint("team_id", name="sequences_key"),
    )
    op.create_table(
        "audit",
        text("team_id"),
        time("at"),
        text("actor_kind"),
        text("actor_id"),
        text("actor_name"),
        text("resource_type"),
        text("resource_id"),
        text("action"),
        text("status"),
        text("scope"),
        json("metadata"),
        text("request_id"),
        number("sequence"),
        sa.PrimaryKeyConstraint("team_id", "sequence", name="audit_key"),
    )
    op.create_table(
        "events",
        text("team_id"),
        time("at"),
        text("name"),
        text("resource_type"),
        text("resource_id"),
        text("actor_kind"),
        text("actor_id"),
        text("actor_name"),
        json("data"),
        number("sequence"),
        sa.PrimaryKeyConstraint("team_id", "sequence", name="events_key"),
    )
    index("events_by_age", "events", "at")
    index("events_of_resource", "events", "resource_id", "sequence")
    op.create_table(
        "channels",
        text("id"),
        text("team_id"),
        text("name"),
        text("provider"),
        text("config"),
        json("events"),
        time("created_at"),
        time("updated_at"),
        sa.PrimaryKeyConstraint("id", name="channels_key"),
    )
    index("channels_name", "channels", "team_id", "name", unique=True)
    op.create_table(
        "deliveries",
        text("id"),
        text("channel_id"),
        text("team_id"),
        number("event_sequence"),
        text("state"),
        number("attempts"),
        time("due_at"),
        time("claimed_until"),
        text("error"),
        sa.PrimaryKeyConstraint("id", name="deliveries_key"),
    )
    index("deliveries_of_channel", "deliveries", "channel_id", "event_sequence", "id")
    index("deliveries_waiting", "deliveries", "due_at", where="state = 'waiting'")
    op.create_table(
        "metric_points",
        text("sandbox_id"),
        text("tier"),
        time("at"),
        time("cpu_percent"),
        number("memory_bytes"),
        number("disk_bytes"),
        sa.PrimaryKeyConstraint("sandbox_id", "tier", "at", name="metric_points_key"),
    )
    index("metric_points_by_age", "metric_points", "at")
    op.create_table(
        "team_samples",
        text("team_id"),
        time("at"),
        number("running"),
        number("vcpus"),
        number("memory_mib"),
        sa.PrimaryKeyConstraint("team_id", "at", name="team_samples_key"),
    )
    index("team_samples_by_age", "team_samples", "at")
    op.create_table(
        "usage_days",
        text("team_id"),
        text("day"),
        time("cpu_minutes"),
        time("memory_mib_minutes"),
        sa.PrimaryKeyConstraint("team_id", "day", name="usage_days_key"),
    )
    op.create_table(
        "remembered",
        text("team_id"),
        text("key"),
        text("request"),
        text("result"),
        time("created_at"),
        sa.PrimaryKeyConstraint("team_id", "key", name="remembered_key"),
    )
    index("remembered_by_age", "remembered", "created_at")
    op.create_table(
        "installation",
        text("name"),
        text("value"),
        sa.PrimaryKeyConstraint("name", name="installation_key"),
    )
