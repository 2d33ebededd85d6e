"""How each record lies in its table. See codec for what happens when a record gains a field."""

from __future__ import annotations

from torpor.model.records import (
    Actor,
    ActorKind,
    ApiKey,
    AuditEntry,
    AuditStatus,
    Channel,
    Chore,
    ChoreKind,
    Delivery,
    DeliveryState,
    Event,
    Exposure,
    Limits,
    Member,
    MetricPoint,
    Operation,
    OperationKind,
    Remembered,
    Role,
    Sandbox,
    SandboxState,
    Session,
    Team,
    TeamSample,
    Template,
    TemplateKind,
    TemplateState,
    TemplateTag,
    Terms,
    TimeoutAction,
    Token,
    Tries,
    UsageDay,
    User,
    UserStatus,
)
from torpor.model.sandbox import Egress, EndReason, NetworkMode
from torpor.model.shapes import Shape
from torpor.storage import tables
from torpor.storage.codec import MAPPING, NAMES, PLAIN, Codec, choice, document, nested

_ACTOR = nested(Actor, kind=choice(ActorKind), id=PLAIN, name=PLAIN)

SANDBOX = Codec(
    Sandbox,
    tables.sandboxes,
    id=PLAIN,
    team_id=PLAIN,
    state=choice(SandboxState),
    generation=PLAIN,
    template_id=PLAIN,
    template=PLAIN,
    shape=nested(Shape, vcpus=PLAIN, memory_mib=PLAIN, disk_mib=PLAIN),
    network=choice(NetworkMode),
    created_at=PLAIN,
    updated_at=PLAIN,
    last_active_at=PLAIN,
    host_id=PLAIN,
    machine_id=PLAIN,
    started_at=PLAIN,
    deadline=PLAIN,
    idle_timeout=PLAIN,
    on_timeout=choice(TimeoutAction),
    auto_resume=PLAIN,
    labels=MAPPING,
    env=MAPPING,
    operation=nested(
        Operation,
        optional=True,
        id=PLAIN,
        kind=choice(OperationKind),
        started_at=PLAIN,
        deadline=PLAIN,
        target=PLAIN,
        cause=PLAIN,
        leads_to=choice(SandboxState),
        span=PLAIN,
    ),
    stored_bytes=PLAIN,
    end_reason=choice(EndReason),
    end_note=PLAIN,
    ended_at=PLAIN,
    dialect=PLAIN,
    created_by=PLAIN,
    exposure=document(Exposure),
    egress=document(Egress),
    terms=document(Terms),
)

TEMPLATE = Codec(
    Template,
    tables.templates,
    id=PLAIN,
    team_id=PLAIN,
    name=PLAIN,
    kind=choice(TemplateKind),
    state=choice(TemplateState),
    source=PLAIN,
    created_at=PLAIN,
    host_id=PLAIN,
    shape=nested(Shape, optional=True, vcpus=PLAIN, memory_mib=PLAIN, disk_mib=PLAIN),
    size_bytes=PLAIN,
    default_user=PLAIN,
    home=PLAIN,
    replaces=PLAIN,
    sandbox_id=PLAIN,
    metadata=MAPPING,
)

TAG = Codec(TemplateTag, tables.template_tags, id=PLAIN, team_id=PLAIN, name=PLAIN, tag=PLAIN, template_id=PLAIN, assigned_at=PLAIN)

TEAM = Codec(
    Team,
    tables.teams,
    id=PLAIN,
    name=PLAIN,
    slug=PLAIN,
    created_at=PLAIN,
    deleted_at=PLAIN,
    limits=nested(Limits, sandboxes=PLAIN, vcpus=PLAIN, memory_mib=PLAIN, storage_bytes=PLAIN),
)

USER = Codec(
    User,
    tables.users,
    id=PLAIN,
    email=PLAIN,
    name=PLAIN,
    password=PLAIN,
    status=choice(UserStatus),
    is_admin=PLAIN,
    created_at=PLAIN,
    version=PLAIN,
    deleted_at=PLAIN,
)

MEMBER = Codec(Member, tables.members, team_id=PLAIN, user_id=PLAIN, role=choice(Role), joined_at=PLAIN, is_default=PLAIN)

KEY = Codec(
    ApiKey,
    tables.api_keys,
    id=PLAIN,
    team_id=PLAIN,
    name=PLAIN,
    digest=PLAIN,
    prefix=PLAIN,
    created_at=PLAIN,
    created_by=PLAIN,
    scopes=NAMES,
    expires_at=PLAIN,
    last_used_at=PLAIN,
    revoked_at=PLAIN,
)

SESSION = Codec(
    Session,
    tables.sessions,
    digest=PLAIN,
    user_id=PLAIN,
    team_id=PLAIN,
    csrf=PLAIN,
    created_at=PLAIN,
    expires_at=PLAIN,
    user_version=PLAIN,
    id=PLAIN,
    address=PLAIN,
    agent=PLAIN,
)

TOKEN = Codec(Token, tables.tokens, digest=PLAIN, purpose=PLAIN, subject=PLAIN, expires_at=PLAIN, data=MAPPING)

TRIES = Codec(Tries, tables.tries, subject=PLAIN, count=PLAIN, last_at=PLAIN, blocked_until=PLAIN)

CHORE = Codec(Chore, tables.chores, id=PLAIN, kind=choice(ChoreKind), subject=PLAIN, created_at=PLAIN, data=MAPPING)

AUDIT = Codec(
    AuditEntry,
    tables.audit,
    team_id=PLAIN,
    at=PLAIN,
    actor=_ACTOR,
    resource_type=PLAIN,
    resource_id=PLAIN,
    action=PLAIN,
    status=choice(AuditStatus),
    scope=PLAIN,
    metadata=MAPPING,
    request_id=PLAIN,
    sequence=PLAIN,
)

EVENT = Codec(
    Event,
    tables.events,
    team_id=PLAIN,
    at=PLAIN,
    name=PLAIN,
    resource_type=PLAIN,
    resource_id=PLAIN,
    actor=_ACTOR,
    data=MAPPING,
    sequence=PLAIN,
)

CHANNEL = Codec(
    Channel,
    tables.channels,
    id=PLAIN,
    team_id=PLAIN,
    name=PLAIN,
    provider=PLAIN,
    config=PLAIN,
    events=NAMES,
    created_at=PLAIN,
    updated_at=PLAIN,
)

DELIVERY = Codec(
    Delivery,
    tables.deliveries,
    id=PLAIN,
    channel_id=PLAIN,
    team_id=PLAIN,
    event_sequence=PLAIN,
    state=choice(DeliveryState),
    attempts=PLAIN,
    due_at=PLAIN,
    claimed_until=PLAIN,
    error=PLAIN,
)

POINT = Codec(MetricPoint, tables.metric_points, at=PLAIN, cpu_percent=PLAIN, memory_bytes=PLAIN, disk_bytes=PLAIN)
SAMPLE = Codec(TeamSample, tables.team_samples, team_id=PLAIN, at=PLAIN, running=PLAIN, vcpus=PLAIN, memory_mib=PLAIN)
USAGE = Codec(UsageDay, tables.usage_days, team_id=PLAIN, day=PLAIN, cpu_minutes=PLAIN, memory_mib_minutes=PLAIN)
REMEMBERED = Codec(Remembered, tables.remembered, team_id=PLAIN, key=PLAIN, request=PLAIN, result=PLAIN, created_at=PLAIN)
