"""The bodies of the native dialect: what requests must be, and what answers look like (for the OpenAPI file; answers are built as plain trees).

Requests ignore keys they do not know and are strict about the types of those they do. Text never holds NUL or lone surrogates: nothing below could store it.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from torpor.api.native.ids import NAME_PATTERN
from torpor.ports.guest import Metrics

_BAD = re.compile("[\0\ud800-\udfff]")
_LABEL = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}\Z")
_VARIABLE = re.compile(r"[^=\0]{1,256}\Z")
MOST_LABELS = 20
RESERVED_LABELS = frozenset({"kernel_version", "vmm_version", "firecracker_version", "agent_version", "envd_version"})
"""Words that the dialect keeps for what a server says of itself."""
MOST_VARIABLES = 1000
MAX_SECONDS = 365 * 86400


def _text(value: str) -> str:
    if _BAD.search(value):
        raise ValueError("holds a NUL or half a character")
    return value


def _labels(value: dict[str, str]) -> dict[str, str]:
    if len(value) > MOST_LABELS or not all(_LABEL.match(key) and len(text) <= 64 for key, text in value.items()):
        raise ValueError(
            f"at most {MOST_LABELS} labels; a key is a letter or digit and up to 63 of letters, digits, '.', '_', '-'; a value has at most 64 characters"
        )
    if taken := RESERVED_LABELS & value.keys():
        raise ValueError(f"{min(taken)} is reserved")
    return value


def _variables(value: dict[str, str]) -> dict[str, str]:
    if len(value) > MOST_VARIABLES or not all(_VARIABLE.match(key) for key in value):
        raise ValueError(f"at most {MOST_VARIABLES} variables; a name is not empty and holds no '='")
    return value


Text = Annotated[str, AfterValidator(_text)]
Short = Annotated[str, StringConstraints(max_length=256), AfterValidator(_text)]
Path = Annotated[str, StringConstraints(min_length=1, max_length=4096), AfterValidator(_text)]
"""In the guest: absolute, or from the default user's home, which `~` stands for."""
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
Labels = Annotated[dict[Short, Short], AfterValidator(_labels)]
Variables = Annotated[dict[Text, Text], AfterValidator(_variables)]
Seconds = Annotated[int, Field(ge=0, le=MAX_SECONDS)]


class Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class Answer(BaseModel):
    model_config = ConfigDict(extra="allow")


class ErrorDetail(Answer):
    """`code` is what programs sort by, `reason` a finer word; `message` is for people."""

    code: str
    reason: str
    message: str
    request_id: str


class Error(Answer):
    error: ErrorDetail


# Sandboxes


class Create(Body):
    model_config = ConfigDict(json_schema_extra={"examples": [{"template": "base", "vcpus": 1, "memory_mb": 512, "timeout_sec": 300}]})

    template: Name = "minimal"
    vcpus: Annotated[int, Field(ge=1, le=8)] = 1
    memory_mb: Annotated[int, Field(ge=1, le=65536)] = 512
    disk_size_mb: Annotated[int, Field(ge=1, le=1024 * 1024)] = 4096
    network: Literal["on", "off"] = "off"
    timeout_sec: Annotated[int, Field(le=MAX_SECONDS, description="Idle seconds until on_timeout happens; 0 or less: never.")] = 0
    lifetime_sec: Annotated[Seconds | None, Field(description="Seconds after which on_timeout happens whatever the sandbox does.")] = None
    on_timeout: Literal["pause", "kill"] = "pause"
    auto_resume: Annotated[bool, Field(description="Whether use of a paused sandbox resumes it.")] = False
    metadata: Labels | None = None
    envs: Annotated[Variables | None, Field(description="Variables every command starts with.")] = None


class Timeouts(Body):
    timeout_sec: Annotated[int | None, Field(le=MAX_SECONDS)] = None
    lifetime_sec: Seconds | None = None


class Fork(Body):
    count: Annotated[int, Field(ge=1, le=64)] = 1


class Rollback(Body):
    snapshot: Name


class Operation(Answer):
    id: str
    kind: str
    started_at: str
    cause: str


class Capsule(Answer):
    """A sandbox. `status` is one of the dialect's words, `state` the true one."""

    id: str
    status: Literal["pending", "starting", "running", "paused", "hibernated", "stopped", "missing", "error"]
    state: str
    version: int
    template: str
    vcpus: int
    memory_mb: int
    disk_size_mb: int
    network: Literal["on", "off"]
    timeout_sec: int
    on_timeout: Literal["pause", "kill"]
    auto_resume: bool
    metadata: dict[str, str]
    created_at: str
    last_active_at: str
    last_updated: str
    stored_bytes: int
    started_at: str | None = None
    expires_at: str | None = None
    ended_at: str | None = None
    operation: Operation | None = None
    end_reason: str | None = None
    end_note: str | None = None


# Commands


class Exec(Body):
    model_config = ConfigDict(json_schema_extra={"examples": [{"cmd": "/bin/sh", "args": ["-c", "echo hello"], "timeout_sec": 30}]})

    cmd: Annotated[str, StringConstraints(min_length=1), AfterValidator(_text)]
    args: list[Text] | None = None
    timeout_sec: Annotated[
        int | None, Field(le=86400, description="Seconds until the command and all it started are killed; 30 unless given, 0 or less: none.")
    ] = None
    background: bool = False
    tag: Short | None = None
    envs: Variables | None = None
    cwd: Path | None = None
    user: Short | None = None
    stdin: Annotated[Text | None, Field(description="What the command reads; then end of file.")] = None
    stdin_encoding: Literal["utf-8", "base64"] = "utf-8"


class ExecAnswer(Answer):
    """`encoding` holds for both streams. `truncated`: more came than an answer holds; use a stream for such commands."""

    sandbox_id: str
    cmd: str
    stdout: str
    stderr: str
    exit_code: int
    duration_ms: int
    encoding: Literal["utf-8", "base64"]
    truncated: bool
    stdout_bytes: int
    stderr_bytes: int


class Background(Answer):
    sandbox_id: str
    cmd: str
    pid: int
    tag: str
    exec_id: str


class Process(Answer):
    pid: int
    cmd: str
    args: list[str]
    exec_id: str
    cwd: str
    user: str
    terminal: bool
    started_at: str
    tag: str | None = None
    exit_code: int | None = None


class Processes(Answer):
    processes: list[Process]


# Files


class OnPath(Body):
    path: Path


class Listing(Body):
    path: Path
    depth: Annotated[int, Field(ge=0, le=64)] = 1


class MakeDirectory(Body):
    path: Path
    mode: Annotated[int | None, Field(ge=0, le=0o7777)] = None
    user: Short | None = None


class Move(Body):
    source: Path
    target: Path


class FileEntry(Answer):
    """`kind` tells apart what the dialect's `type` calls a file. `raw_path` (base64) is there for names that are no UTF-8."""

    name: str
    path: str
    type: Literal["file", "directory", "symlink"]
    kind: Literal["file", "directory", "symlink", "other"]
    size: int
    mode: int
    permissions: str
    owner: str
    group: str
    modified_at: int
    symlink_target: str | None = None
    raw_path: str | None = None


class Entries(Answer):
    entries: list[FileEntry]


class Entry(Answer):
    entry: FileEntry


class Upload(BaseModel):
    """A multipart form. `path` may also be in the query, and should come before `file` if not."""

    path: str
    file: bytes


# Snapshots


class Snapshot(Body):
    sandbox_id: Short
    name: Name | None = None
    keep_running: Annotated[bool, Field(description="False leaves the source paused.")] = True


class Template(Answer):
    name: str
    type: Literal["base", "snapshot"]
    id: str
    size_bytes: int
    created_at: str
    platform: bool
    protected: bool
    metadata: dict[str, str]
    vcpus: int | None = None
    memory_mb: int | None = None


# Figures


class Point(Answer):
    timestamp_unix: int
    cpu_pct: float
    mem_bytes: int
    disk_bytes: int


class MetricPoints(Answer):
    sandbox_id: str
    range: str
    points: list[Point]


def metrics_tree(metrics: Metrics) -> dict[str, Any]:
    """A guest's present reading."""
    return {
        "vcpus": metrics.vcpus,
        "cpu_pct": metrics.cpu_percent,
        "mem_total_bytes": metrics.memory_total,
        "mem_bytes": metrics.memory_used,
        "mem_cache_bytes": metrics.memory_cache,
        "disk_total_bytes": metrics.disk_total,
        "disk_bytes": metrics.disk_used,
        "processes": metrics.processes,
        "oom_kills": metrics.oom_kills,
    }
