"""All tables, as the latest migration leaves them. A change here needs a migration in migrations/versions and a new SCHEMA; a test compares the two.

Times are seconds since the epoch. Text compares byte by byte on both databases, so that a cursor means the same everywhere. There are no foreign keys: what
belongs to a team is removed by name in one transaction, and an ended sandbox may outlive everything it refers to.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, Boolean, Column, Computed, Double, Index, MetaData, PrimaryKeyConstraint, String, Table, text
from sqlalchemy.dialects.postgresql import JSONB, TEXT
from sqlalchemy.types import TypeEngine

SCHEMA = "0005"
"""The newest migration: what this program reads and writes."""

metadata = MetaData()

_TEXT: TypeEngine[str] = String().with_variant(TEXT(collation="C"), "postgresql")
_JSON: TypeEngine[Any] = JSON().with_variant(JSONB(), "postgresql")

LIVE = "CASE WHEN state IN ('stopped', 'error') THEN 0 ELSE 1 END"
"""Whether a sandbox is not final, kept by the database itself. In the indexes: what ended and is only remembered costs the others nothing."""

DUE = (
    "CASE WHEN operation_deadline IS NOT NULL THEN operation_deadline"
    " WHEN state = 'running' THEN"
    " CASE WHEN idle_timeout > 0 AND (deadline IS NULL OR last_active_at + idle_timeout < deadline) THEN last_active_at + idle_timeout ELSE deadline END"
    " WHEN state = 'paused' AND on_timeout = 'kill' THEN deadline END"
)
"""The moment at which a sandbox wants attention, kept by the database itself: an operation's deadline, else the end of the idle time or of the life."""


def _text(name: str, *, null: bool = False) -> Column[Any]:
    return Column(name, _TEXT, nullable=null)


def _number(name: str, *, null: bool = False) -> Column[Any]:
    return Column(name, BigInteger, nullable=null)


def _time(name: str, *, null: bool = False) -> Column[Any]:
    return Column(name, Double, nullable=null)


def _flag(name: str) -> Column[Any]:
    return Column(name, Boolean, nullable=False)


def _json(name: str) -> Column[Any]:
    return Column(name, _JSON, nullable=False)


def _actor() -> list[Column[Any]]:
    return [_text("actor_kind"), _text("actor_id"), _text("actor_name")]


sandboxes = Table(
    "sandboxes",
    metadata,
    _text("id"),
    _text("team_id"),
    _text("state"),
    _number("generation"),
    _text("template_id"),
    _text("template"),
    _number("shape_vcpus"),
    _number("shape_memory_mib"),
    _number("shape_disk_mib"),
    _text("network"),
    _time("created_at"),
    _time("updated_at"),
    _time("last_active_at"),
    _text("host_id"),
    _text("machine_id"),
    _time("started_at", null=True),
    _time("deadline", null=True),
    _time("idle_timeout"),
    _text("on_timeout"),
    _flag("auto_resume"),
    _json("labels"),
    _json("env"),
    _text("operation_id", null=True),
    _text("operation_kind", null=True),
    _time("operation_started_at", null=True),
    _time("operation_deadline", null=True),
    _text("operation_target", null=True),
    _text("operation_cause", null=True),
    _text("operation_leads_to", null=True),
    _time("operation_span", null=True),
    _number("stored_bytes"),
    _text("end_reason", null=True),
    _text("end_note"),
    _time("ended_at", null=True),
    _text("dialect"),
    _text("created_by"),
    _json("exposure"),
    _json("egress"),
    _json("terms"),
    Column("due_at", Double, Computed(DUE, persisted=True)),
    Column("live", BigInteger, Computed(LIVE, persisted=True)),
    PrimaryKeyConstraint("id", name="sandboxes_key"),
)
Index("sandboxes_of_team", sandboxes.c.team_id, sandboxes.c.created_at, sandboxes.c.id)
Index("sandboxes_by_age", sandboxes.c.created_at, sandboxes.c.id)
Index("sandboxes_by_state", sandboxes.c.state)
Index("sandboxes_live_of_team", sandboxes.c.team_id, sandboxes.c.live, sandboxes.c.created_at, sandboxes.c.id)
Index("sandboxes_live_on_host", sandboxes.c.host_id, sandboxes.c.live, sandboxes.c.id)
Index("sandboxes_live_of_template", sandboxes.c.template_id, sandboxes.c.live)
Index("sandboxes_due", sandboxes.c.due_at, sqlite_where=text("due_at IS NOT NULL"), postgresql_where=text("due_at IS NOT NULL"))
Index("sandboxes_ended", sandboxes.c.ended_at, sqlite_where=text("ended_at IS NOT NULL"), postgresql_where=text("ended_at IS NOT NULL"))
Index("sandboxes_labels", sandboxes.c.labels, postgresql_using="gin", postgresql_ops={"labels": "jsonb_path_ops"}).ddl_if(dialect="postgresql")

templates = Table(
    "templates",
    metadata,
    _text("id"),
    _text("team_id"),
    _text("name"),
    _text("kind"),
    _text("state"),
    _text("source"),
    _time("created_at"),
    _text("host_id"),
    _number("shape_vcpus", null=True),
    _number("shape_memory_mib", null=True),
    _number("shape_disk_mib", null=True),
    _number("size_bytes"),
    _text("default_user"),
    _text("home"),
    _text("replaces"),
    _text("sandbox_id"),
    _json("metadata"),
    PrimaryKeyConstraint("id", name="templates_key"),
)
for _state in ("ready", "creating"):
    Index(
        f"templates_{_state}",
        templates.c.team_id,
        templates.c.name,
        unique=True,
        sqlite_where=text(f"state = '{_state}'"),
        postgresql_where=text(f"state = '{_state}'"),
    )
Index("templates_of_team", templates.c.team_id, templates.c.created_at, templates.c.id)

template_tags = Table(
    "template_tags",
    metadata,
    _text("id"),
    _text("team_id"),
    _text("name"),
    _text("tag"),
    _text("template_id"),
    _time("assigned_at"),
    PrimaryKeyConstraint("id", name="template_tags_key"),
)
Index("template_tags_names", template_tags.c.team_id, template_tags.c.name, template_tags.c.tag, unique=True)
Index("template_tags_of_template", template_tags.c.template_id)

teams = Table(
    "teams",
    metadata,
    _text("id"),
    _text("name"),
    _text("slug"),
    _time("created_at"),
    _time("deleted_at", null=True),
    _number("limits_sandboxes", null=True),
    _number("limits_vcpus", null=True),
    _number("limits_memory_mib", null=True),
    _number("limits_storage_bytes", null=True),
    PrimaryKeyConstraint("id", name="teams_key"),
)
Index("teams_slug", teams.c.slug, unique=True)
Index("teams_by_age", teams.c.created_at, teams.c.id)

users = Table(
    "users",
    metadata,
    _text("id"),
    _text("email"),
    _text("name"),
    _text("password"),
    _text("status"),
    _flag("is_admin"),
    _time("created_at"),
    _number("version"),
    _time("deleted_at", null=True),
    _text("email_key"),
    PrimaryKeyConstraint("id", name="users_key"),
)
Index("users_email", users.c.email_key, unique=True)
Index("users_by_age", users.c.created_at, users.c.id)

members = Table(
    "members",
    metadata,
    _text("team_id"),
    _text("user_id"),
    _text("role"),
    _time("joined_at"),
    _flag("is_default"),
    PrimaryKeyConstraint("team_id", "user_id", name="members_key"),
)
Index("members_of_user", members.c.user_id)

api_keys = Table(
    "api_keys",
    metadata,
    _text("id"),
    _text("team_id"),
    _text("name"),
    _text("digest"),
    _text("prefix"),
    _time("created_at"),
    _text("created_by"),
    _json("scopes"),
    _time("expires_at", null=True),
    _time("last_used_at", null=True),
    _time("revoked_at", null=True),
    PrimaryKeyConstraint("id", name="api_keys_key"),
)
Index("api_keys_digest", api_keys.c.digest, unique=True)
Index("api_keys_of_team", api_keys.c.team_id, api_keys.c.created_at)
Index("api_keys_of_user", api_keys.c.created_by)

sessions = Table(
    "sessions",
    metadata,
    _text("digest"),
    _text("user_id"),
    _text("team_id"),
    _text("csrf"),
    _time("created_at"),
    _time("expires_at"),
    _number("user_version"),
    _text("id"),
    _text("address"),
    _text("agent"),
    PrimaryKeyConstraint("digest", name="sessions_key"),
)
Index("sessions_of_user", sessions.c.user_id)
Index("sessions_of_team", sessions.c.team_id)
Index("sessions_expiry", sessions.c.expires_at)

tokens = Table(
    "tokens",
    metadata,
    _text("digest"),
    _text("purpose"),
    _text("subject"),
    _time("expires_at"),
    _json("data"),
    PrimaryKeyConstraint("digest", "purpose", name="tokens_key"),
)
Index("tokens_expiry", tokens.c.expires_at)
Index("tokens_of_subject", tokens.c.purpose, tokens.c.subject)

tries = Table(
    "tries",
    metadata,
    _text("subject"),
    _number("count"),
    _time("last_at"),
    _time("blocked_until"),
    PrimaryKeyConstraint("subject", name="tries_key"),
)
Index("tries_by_age", tries.c.last_at)

chores = Table(
    "chores",
    metadata,
    _text("id"),
    _text("kind"),
    _text("subject"),
    _time("created_at"),
    _json("data"),
    PrimaryKeyConstraint("id", name="chores_key"),
)
Index("chores_subject", chores.c.kind, chores.c.subject, unique=True)

sequences = Table(
    "sequences",
    metadata,
    _text("team_id"),
    _number("audit"),
    _number("events"),
    PrimaryKeyConstraint("team_id", name="sequences_key"),
)

audit = Table(
    "audit",
    metadata,
    _text("team_id"),
    _time("at"),
    *_actor(),
    _text("resource_type"),
    _text("resource_id"),
    _text("action"),
    _text("status"),
    _text("scope"),
    _json("metadata"),
    _text("request_id"),
    _number("sequence"),
    PrimaryKeyConstraint("team_id", "sequence", name="audit_key"),
)

events = Table(
    "events",
    metadata,
    _text("team_id"),
    _time("at"),
    _text("name"),
    _text("resource_type"),
    _text("resource_id"),
    *_actor(),
    _json("data"),
    _number("sequence"),
    PrimaryKeyConstraint("team_id", "sequence", name="events_key"),
)
Index("events_of_resource", events.c.resource_id, events.c.sequence)
Index("events_by_age", events.c.at)

channels = Table(
    "channels",
    metadata,
    _text("id"),
    _text("team_id"),
    _text("name"),
    _text("provider"),
    _text("config"),
    _json("events"),
    _time("created_at"),
    _time("updated_at"),
    PrimaryKeyConstraint("id", name="channels_key"),
)
Index("channels_name", channels.c.team_id, channels.c.name, unique=True)

deliveries = Table(
    "deliveries",
    metadata,
    _text("id"),
    _text("channel_id"),
    _text("team_id"),
    _number("event_sequence"),
    _text("state"),
    _number("attempts"),
    _time("due_at"),
    _time("claimed_until"),
    _text("error"),
    PrimaryKeyConstraint("id", name="deliveries_key"),
)
Index("deliveries_waiting", deliveries.c.due_at, sqlite_where=text("state = 'waiting'"), postgresql_where=text("state = 'waiting'"))
Index(
    "deliveries_heads",
    deliveries.c.channel_id,
    deliveries.c.event_sequence,
    deliveries.c.id,
    sqlite_where=text("state = 'waiting'"),
    postgresql_where=text("state = 'waiting'"),
)
Index("deliveries_of_channel", deliveries.c.channel_id, deliveries.c.event_sequence, deliveries.c.id)

metric_points = Table(
    "metric_points",
    metadata,
    _text("sandbox_id"),
    _text("tier"),
    _time("at"),
    _time("cpu_percent"),
    _number("memory_bytes"),
    _number("disk_bytes"),
    PrimaryKeyConstraint("sandbox_id", "tier", "at", name="metric_points_key"),
)
Index("metric_points_by_age", metric_points.c.at)

team_samples = Table(
    "team_samples",
    metadata,
    _text("team_id"),
    _time("at"),
    _number("running"),
    _number("vcpus"),
    _number("memory_mib"),
    PrimaryKeyConstraint("team_id", "at", name="team_samples_key"),
)
Index("team_samples_by_age", team_samples.c.at)

usage_days = Table(
    "usage_days",
    metadata,
    _text("team_id"),
    _text("day"),
    _time("cpu_minutes"),
    _time("memory_mib_minutes"),
    PrimaryKeyConstraint("team_id", "day", name="usage_days_key"),
)

remembered = Table(
    "remembered",
    metadata,
    _text("team_id"),
    _text("key"),
    _text("request"),
    _text("result"),
    _time("created_at"),
    PrimaryKeyConstraint("team_id", "key", name="remembered_key"),
)
Index("remembered_by_age", remembered.c.created_at)

values = Table("installation", metadata, _text("name"), _text("value"), PrimaryKeyConstraint("name", name="installation_key"))
