"""What the server answers, as typed values. Fields that this version does not know are left out; a field that is missing, or of another type, is a BadAnswer.

Sizes are in the unit of their name, else bytes; times are aware datetimes in UTC.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from torpor.client.errors import BadAnswer

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Operation:
    """What is under way with a sandbox."""

    id: str
    kind: str
    started_at: datetime
    cause: str


@dataclass(frozen=True, slots=True)
class SandboxState:
    """A sandbox as it was when the server answered. `state`: pending, starting, running, pausing, paused, resuming, snapshotting, stopping, stopped, error or
    missing. `version` rises with every change. `timeout_sec`: idle seconds until `on_timeout`, 0 for never; `expires_at`: when it happens whatever the
    sandbox does. `end_reason` of one that ended: user, timeout, idle, oom, guest_crash, vmm_crash, host_lost or error."""

    id: str
    state: str
    version: int
    template: str
    vcpus: int
    memory_mb: int
    disk_size_mb: int
    network: str
    timeout_sec: int
    on_timeout: str
    auto_resume: bool
    created_at: datetime
    last_active_at: datetime
    last_updated: datetime
    stored_bytes: int
    metadata: Mapping[str, str] = field(default_factory=dict)
    started_at: datetime | None = None
    expires_at: datetime | None = None
    ended_at: datetime | None = None
    operation: Operation | None = None
    end_reason: str | None = None
    end_note: str | None = None

    @property
    def name(self) -> str:
        """The label `name`, or ''."""
        return self.metadata.get("name", "")


@dataclass(frozen=True, slots=True)
class Template:
    """What a sandbox can start from. `type`: base (a disk) or snapshot (with memory: vCPUs and memory are frozen). `platform`: everybody may start it."""

    name: str
    type: str
    id: str
    size_bytes: int
    created_at: datetime
    platform: bool
    metadata: Mapping[str, str] = field(default_factory=dict)
    vcpus: int | None = None
    memory_mb: int | None = None
    disk_size_mb: int | None = None


@dataclass(frozen=True, slots=True)
class ProcessState:
    """A command in a sandbox. `exit_code` None while it runs."""

    pid: int
    cmd: str
    args: tuple[str, ...]
    exec_id: str
    cwd: str
    user: str
    terminal: bool
    started_at: datetime
    tag: str = ""
    exit_code: int | None = None


@dataclass(frozen=True, slots=True)
class Background:
    """A command that was started and left alone. `tag` finds it again."""

    pid: int
    tag: str
    exec_id: str


@dataclass(frozen=True, slots=True)
class PortAddress:
    """Opens one port of a sandbox to whoever has it, until it expires."""

    url: str
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class FileState:
    """A file. `kind`: file, directory, symlink or other. `mode`: the permission bits. `raw_path` (base64) is there for names that are no UTF-8."""

    name: str
    path: str
    kind: str
    size: int
    mode: int
    permissions: str
    owner: str
    group: str
    modified_at: int
    symlink_target: str | None = None
    raw_path: str | None = None


@dataclass(frozen=True, slots=True)
class FileChange:
    """`kind`: created, written, removed, renamed (to `new_path`), attributes, or overflow: some changes were lost, look anew."""

    kind: str
    path: str
    is_directory: bool = False
    new_path: str = ""


@dataclass(frozen=True, slots=True)
class Actor:
    """Who did it."""

    type: str
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class Resource:
    """To what."""

    id: str
    type: str


@dataclass(frozen=True, slots=True)
class Event:
    """What happened in the team. `id` rises; `name` such as capsule.running; `outcome` success or error, '' of what only tells a change."""

    id: int
    name: str
    resource: Resource
    actor: Actor
    timestamp: datetime
    outcome: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True, slots=True)
class Key:
    """An API key. `key`, the secret, is there in the answer to its making only. No `scopes`: all."""

    id: str
    name: str
    key_prefix: str
    created_at: datetime
    scopes: tuple[str, ...] = ()
    expires_at: datetime | None = None
    last_used: datetime | None = None
    key: str = ""


@dataclass(frozen=True, slots=True)
class MetricPoint:
    """CPU in percent of one core, and bytes."""

    timestamp_unix: int
    cpu_pct: float
    mem_bytes: int
    disk_bytes: int


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """What was done in the team, or refused (`status`)."""

    id: str
    actor_type: str
    actor_id: str
    actor_name: str
    resource_type: str
    resource_id: str
    action: str
    status: str
    created_at: datetime
    metadata: Mapping[str, Any] = field(default_factory=dict)
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Output:
    """A piece of a command's output. `stream`: stdout or stderr; `offset`: the place of its first byte in the stream; `lost`: bytes before it that this reader
    can no longer get, because the sandbox remembers the last 1 MiB only."""

    stream: str
    data: bytes
    offset: int
    lost: int = 0

    @property
    def text(self) -> str:
        """What is no UTF-8, and characters that two pieces share, become U+FFFD."""
        return self.data.decode(errors="replace")


@dataclass(frozen=True, slots=True)
class Exit:
    """How a command ended. `exit_code`: its own, 128 + `signal`, or 124 when its time-out killed it."""

    exit_code: int
    signal: int | None = None
    timed_out: bool = False
    oom: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """A command's end and what it said."""

    exit_code: int
    stdout_bytes: bytes
    stderr_bytes: bytes
    timed_out: bool = False
    oom: bool = False
    signal: int | None = None

    @property
    def stdout(self) -> str:
        """What is no UTF-8 becomes U+FFFD."""
        return self.stdout_bytes.decode(errors="replace")

    @property
    def stderr(self) -> str:
        return self.stderr_bytes.decode(errors="replace")


# Reading them


def read(kind: type[T], tree: object) -> T:
    """A value of this dataclass from JSON. Raises BadAnswer."""
    if not isinstance(tree, dict):
        raise BadAnswer(f"The server sent no {kind.__name__}.")
    values = {}
    for name, hint, required in _fields(cast("Any", kind)):
        if tree.get(name) is not None:
            values[name] = _value(hint, tree[name], f"{kind.__name__}.{name}")
        elif required:
            raise BadAnswer(f"The server sent a {kind.__name__} without {name}.")
    return kind(**values)


def read_list(kind: type[T], tree: object) -> list[T]:
    """Raises BadAnswer."""
    if not isinstance(tree, list):
        raise BadAnswer(f"The server sent no list of {kind.__name__}.")
    return [read(kind, each) for each in tree]


@cache
def _fields(kind: Any) -> list[tuple[str, Any, bool]]:
    hints = get_type_hints(kind)
    fields = dataclasses.fields(kind)
    return [(each.name, hints[each.name], each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING) for each in fields]


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        hint = next(each for each in arguments if each is not type(None))
        return _value(hint, value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(_value(arguments[0], each, where) for each in value)
    if origin is not None and origin is not tuple and isinstance(value, dict):
        return {str(name): _value(arguments[1], each, where) for name, each in value.items()}
    if hint is Any:
        return value
    if hint is datetime and isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
            return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
        except ValueError:
            raise BadAnswer(f"{where}: {value[:40]!r} is no time.") from None
    if dataclasses.is_dataclass(hint):
        return read(cast("type[Any]", hint), value)
    if hint is float and type(value) is int:
        return float(value)
    if isinstance(hint, type) and type(value) is hint:
        return value
    raise BadAnswer(f"{where}: {str(value)[:40]!r} is of another type than it should be.")
