"""What the control plane remembers, as plain words. Times are seconds since the epoch, ids 25 base-36 digits (model.sandbox); a dialect adds its prefixes.

Records are frozen: a change is a new record, written by the store in one transaction with whatever must change beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from torpor.model.sandbox import Egress, EndReason, NetworkMode
from torpor.model.shapes import Shape

PLATFORM_TEAM = "0" * 25
"""The team that owns the templates everybody may start: the all-zero UUID."""


class SandboxState(Enum):
    """The control plane's view of one sandbox. The drawing stands in lifecycle.sandbox."""

    PENDING = "pending"
    STARTING = "starting"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    RESUMING = "resuming"
    SNAPSHOTTING = "snapshotting"
    STOPPING = "stopping"
    STOPPED = "stopped"
    ERROR = "error"
    MISSING = "missing"


class TimeoutAction(Enum):
    PAUSE = "pause"
    KILL = "kill"


class OperationKind(Enum):
    CREATE = "create"
    PAUSE = "pause"
    RESUME = "resume"
    SNAPSHOT = "snapshot"
    FORK = "fork"
    ROLLBACK = "rollback"
    COLD_BOOT = "cold_boot"
    KILL = "kill"


DISK_ONLY = "disk"
"""The target of a pause that gives the memory up."""


@dataclass(frozen=True, slots=True)
class Operation:
    """What is under way with a sandbox. Past `deadline` the reconciler settles it from what the host reports. `target`: the artefact or template it is about,
    of a forked child its source, of a pause DISK_ONLY or ''. `cause` says who wanted it: 'user', or 'idle', 'timeout', 'traffic' (auto-resume) when torpor
    itself did. `leads_to`: the state it ends in when it succeeds, where that is not its arrow's (a snapshot that leaves its source paused). `span`: of a start,
    the seconds of life it gives, None: what the sandbox's Terms say."""

    id: str
    kind: OperationKind
    started_at: float
    deadline: float
    target: str = ""
    cause: str = "user"
    leads_to: SandboxState | None = None
    span: float | None = None


@dataclass(frozen=True, slots=True)
class Terms:
    """How the life of a sandbox is measured out, and what its pauses keep. `span`: seconds of life that each start gives, its deadline being gone while it is
    paused; 0: the deadline stands for itself. `keeps_memory`: when its time is over and it is paused, memory is kept. `cold`: its memory was given up; the next
    start is a boot from its own disk."""

    span: float = 0.0
    keeps_memory: bool = True
    cold: bool = False


@dataclass(frozen=True, slots=True)
class Exposure:
    """Who reaches a sandbox from outside beside its team. `public_ports`: anybody may use its ports; else a key, a traffic token or a signed address is
    wanted. `guarded`: its files and commands want the sandbox's own access token as well. `mask_host`: what servers in it are told as Host, '' for what was
    asked for; `${PORT}` stands for the port. `tls_ports`: of servers in it that speak TLS themselves."""

    public_ports: bool = False
    guarded: bool = False
    mask_host: str = ""
    tls_ports: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Sandbox:
    """One sandbox. `generation` rises with every write of the state and is what compare-and-set compares, beside the state. `machine_id` is the host's name for
    it, '' until the host has answered. `started_at`: since when its machine runs, None while it has none. `deadline` is absolute (None: none) and not moved by
    activity; `idle_timeout` counts seconds from `last_active_at` (0: none). An ended sandbox keeps `end_reason`, `end_note`, `ended_at` and its last events
    for 30 days. `dialect`: the API it was made through."""

    id: str
    team_id: str
    state: SandboxState
    generation: int
    template_id: str
    template: str
    shape: Shape
    network: NetworkMode
    created_at: float
    updated_at: float
    last_active_at: float
    host_id: str = ""
    machine_id: str = ""
    started_at: float | None = None
    deadline: float | None = None
    idle_timeout: float = 0.0
    on_timeout: TimeoutAction = TimeoutAction.PAUSE
    auto_resume: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    operation: Operation | None = None
    stored_bytes: int = 0
    end_reason: EndReason | None = None
    end_note: str = ""
    ended_at: float | None = None
    dialect: str = "native"
    created_by: str = ""
    exposure: Exposure = field(default_factory=Exposure)
    egress: Egress = field(default_factory=Egress)
    terms: Terms = field(default_factory=Terms)


class TemplateKind(Enum):
    BASE = "base"
    SNAPSHOT = "snapshot"


class TemplateState(Enum):
    """CREATING: a snapshot under way holds the name; DELETING: its bytes are being removed and the name is free."""

    CREATING = "creating"
    READY = "ready"
    DELETING = "deleting"


@dataclass(frozen=True, slots=True)
class Template:
    """What sandboxes start from. BASE: `source` is the host's template name; SNAPSHOT: the artefact's id, on `host_id`, its vCPUs and memory frozen. A name is
    unique among the READY and CREATING ones of a team; `replaces` names the template that goes when this one is ready (overwrite)."""

    id: str
    team_id: str
    name: str
    kind: TemplateKind
    state: TemplateState
    source: str
    created_at: float
    host_id: str = ""
    shape: Shape | None = None
    size_bytes: int = 0
    default_user: str = "root"
    home: str = "/root"
    replaces: str = ""
    sandbox_id: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TemplateTag:
    """A name within a name: `tag` of what a team calls `name` points to one template. The tag that stands for the name itself is not kept."""

    id: str
    team_id: str
    name: str
    tag: str
    template_id: str
    assigned_at: float


# --- people


class Role(Enum):
    OWNER = "owner"
    ADMIN = "admin"
    MEMBER = "member"


class UserStatus(Enum):
    INACTIVE = "inactive"
    ACTIVE = "active"
    DISABLED = "disabled"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True)
class Limits:
    """A team's own limits; None: the installation's."""

    sandboxes: int | None = None
    vcpus: int | None = None
    memory_mib: int | None = None
    storage_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Team:
    id: str
    name: str
    slug: str
    created_at: float
    deleted_at: float | None = None
    limits: Limits = Limits()


@dataclass(frozen=True, slots=True)
class User:
    """`password` is an argon2id string, '' for none. `version` rises with every change of password or status: logins of an older one are void."""

    id: str
    email: str
    name: str
    password: str
    status: UserStatus
    is_admin: bool
    created_at: float
    version: int = 1
    deleted_at: float | None = None


@dataclass(frozen=True, slots=True)
class Member:
    """A user's place in a team. `is_default`: the team of a login that names none."""

    team_id: str
    user_id: str
    role: Role
    joined_at: float
    is_default: bool = False


@dataclass(frozen=True, slots=True)
class ApiKey:
    """`digest`: SHA-256 of the key in hex; the key itself is never kept. `prefix`: its first 10 characters, to recognise it by. `scopes` empty: all."""

    id: str
    team_id: str
    name: str
    digest: str
    prefix: str
    created_at: float
    created_by: str = ""
    scopes: tuple[str, ...] = ()
    expires_at: float | None = None
    last_used_at: float | None = None
    revoked_at: float | None = None


@dataclass(frozen=True, slots=True)
class Session:
    """A login. `digest`: SHA-256 of the secret in the cookie or in the token; `csrf`: what a changing request must show beside a cookie, '' for a token's;
    `user_version`: see User. `address` and `agent` (what the client calls itself) are for the user to recognise it by."""

    digest: str
    user_id: str
    team_id: str
    csrf: str
    created_at: float
    expires_at: float
    user_version: int
    id: str = ""
    address: str = ""
    agent: str = ""


@dataclass(frozen=True, slots=True)
class Token:
    """A single-use secret: an activation, a password reset, a 30 s ticket for a WebSocket or event stream. `purpose` keeps them apart."""

    digest: str
    purpose: str
    subject: str
    expires_at: float
    data: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Tries:
    """Tries of something that is guarded against guessing and floods. `subject`: what is counted and of whom; `count` of those since the last rest;
    `blocked_until`: before that moment no further one is looked at."""

    subject: str
    count: int
    last_at: float
    blocked_until: float = 0.0


class ChoreKind(Enum):
    """CLEAR_TEAM: what a deleted team leaves is removed. REST_TEAM: the running sandboxes of a team without an owner are paused. END_CAPSULE: a sandbox ends
    when the template that is being made of it is there."""

    CLEAR_TEAM = "clear_team"
    REST_TEAM = "rest_team"
    END_CAPSULE = "end_capsule"


@dataclass(frozen=True, slots=True)
class Chore:
    """What must still be done because of a change that is on record. Written with the change, removed when it is done; doing it again does no harm."""

    id: str
    kind: ChoreKind
    subject: str
    created_at: float
    data: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TeamSummary:
    """A team as administrators see it. `owner`: of several the one who joined first, None when there is none."""

    team: Team
    members: int
    owner: User | None
    sandboxes: int
    channels: int


@dataclass(frozen=True, slots=True)
class UserSummary:
    user: User
    teams_joined: int
    teams_owned: int


# --- what happened


class ActorKind(Enum):
    USER = "user"
    API_KEY = "api_key"
    SYSTEM = "system"


@dataclass(frozen=True, slots=True)
class Actor:
    kind: ActorKind
    id: str = ""
    name: str = ""


SYSTEM = Actor(ActorKind.SYSTEM)


class AuditStatus(Enum):
    SUCCESS = "success"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    DENIED = "denied"


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One line of a team's audit log; `sequence` (0: not written yet) orders without gaps. `scope`: 'team' for every member, 'admin' for owners and admins."""

    team_id: str
    at: float
    actor: Actor
    resource_type: str
    resource_id: str
    action: str
    status: AuditStatus
    scope: str = "team"
    metadata: Mapping[str, str] = field(default_factory=dict)
    request_id: str = ""
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class Event:
    """Something a team may want to hear of. Written in the transaction that makes it true; `sequence` (0: not written yet) is the id of the events stream."""

    team_id: str
    at: float
    name: str
    resource_type: str
    resource_id: str
    actor: Actor = SYSTEM
    data: Mapping[str, str] = field(default_factory=dict)
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class Channel:
    """Where events of a team are sent. `config` is sealed (encrypted) text."""

    id: str
    team_id: str
    name: str
    provider: str
    config: str
    events: tuple[str, ...]
    created_at: float
    updated_at: float


class DeliveryState(Enum):
    WAITING = "waiting"
    DELIVERED = "delivered"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event on its way to one channel. `due_at`: the next try; `claimed_until`: a worker has it in hand until then."""

    id: str
    channel_id: str
    team_id: str
    event_sequence: int
    state: DeliveryState
    attempts: int
    due_at: float
    claimed_until: float = 0.0
    error: str = ""


# --- figures


class Tier(Enum):
    """Resolution of kept metric points: 10m in steps of 1 s, 2h of 30 s, 24h of 5 min."""

    TEN_MINUTES = "10m"
    TWO_HOURS = "2h"
    DAY = "24h"


@dataclass(frozen=True, slots=True)
class MetricPoint:
    """CPU in percent of one core, memory and disk in bytes."""

    at: float
    cpu_percent: float
    memory_bytes: int
    disk_bytes: int


@dataclass(frozen=True, slots=True)
class TeamSample:
    """What a team held at one moment."""

    team_id: str
    at: float
    running: int
    vcpus: int
    memory_mib: int


@dataclass(frozen=True, slots=True)
class UsageDay:
    """`day`: YYYY-MM-DD in UTC."""

    team_id: str
    day: str
    cpu_minutes: float
    memory_mib_minutes: float


@dataclass(frozen=True, slots=True)
class Reserved:
    """What sandboxes of a host or a team hold: of live ones vCPUs and memory, of all that are not ended the stored bytes."""

    sandboxes: int
    vcpus: int
    memory_mib: int
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class Remembered:
    """The answer a POST with an Idempotency-Key led to. `request`: digest of method, path and body; `result`: the id of what it made, '' while under way."""

    team_id: str
    key: str
    request: str
    result: str
    created_at: float
