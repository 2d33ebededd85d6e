"""Between the protocol's JSON and the words of ports.guest: every field named, every type checked. Raises ProtocolError for what is not as it must be."""

from __future__ import annotations

import base64
import binascii
from typing import Any, TypeVar

from torpor.model.sandbox import Identity
from torpor.ports.guest import Details, ExecSpec, Exited, FileInfo, FileKind, Metrics, ProcessInfo, Quiesced, Reached, Wake, WatchEvent, WatchKind
from torpor.wire.guest import MAX_OFFSET, ProtocolError

Json = dict[str, Any]
T = TypeVar("T")


def get(fields: Json, name: str, kind: type[T]) -> T:
    """A field of exactly this type (an int also where a float is due)."""
    value = fields.get(name)
    if kind is float and type(value) is int:
        return float(value)  # type: ignore[return-value]
    if type(value) is not kind:
        raise ProtocolError(f"field {name!r} is no {kind.__name__}")
    return value


def optional(fields: Json, name: str, kind: type[T]) -> T | None:
    return None if fields.get(name) is None else get(fields, name, kind)


def offsets(fields: Json, name: str) -> list[int]:
    """Of bytes in streams; none where there is no such field."""
    found = fields.get(name, [])
    if not isinstance(found, list) or not all(type(each) is int and 0 <= each < MAX_OFFSET for each in found):
        raise ProtocolError(f"{name} that are no offsets")
    return found


def exec_args(spec: ExecSpec) -> Json:
    return {
        "argv": list(spec.argv),
        "env": dict(spec.env),
        "cwd": spec.cwd,
        "user": spec.user,
        "stdin": spec.stdin,
        "terminal": [spec.terminal.rows, spec.terminal.columns] if spec.terminal is not None else None,
        "timeout": spec.timeout,
        "tag": spec.tag,
        "limit": spec.output_limit,
    } | ({"linger": True} if spec.linger else {})


def exited(fields: Json) -> Exited:
    return Exited(
        code=optional(fields, "code", int),
        signal=optional(fields, "signal", int),
        timed_out=get(fields, "timed_out", bool),
        oom=get(fields, "oom", bool),
    )


def process(fields: Json) -> ProcessInfo:
    ended = optional(fields, "exited", dict)
    return ProcessInfo(
        exec_id=get(fields, "exec_id", str),
        pid=get(fields, "pid", int),
        argv=tuple(str(a) for a in get(fields, "argv", list)),
        cwd=get(fields, "cwd", str),
        user=get(fields, "user", str),
        tag=get(fields, "tag", str),
        terminal=get(fields, "terminal", bool),
        started_at=get(fields, "started_at", float),
        exited=exited(ended) if ended is not None else None,
        open=bool(fields.get("open", False)),
        env={str(name): str(value) for name, value in (optional(fields, "env", dict) or {}).items()},
    )


def file_info(fields: Json) -> FileInfo:
    try:
        kind = FileKind(fields.get("kind"))
    except ValueError:
        raise ProtocolError("an unknown kind of file") from None
    return FileInfo(
        path=get(fields, "path", str),
        kind=kind,
        size=get(fields, "size", int),
        mode=get(fields, "mode", int),
        uid=get(fields, "uid", int),
        gid=get(fields, "gid", int),
        user=get(fields, "user", str),
        group=get(fields, "group", str),
        modified=get(fields, "modified", float),
        target=get(fields, "target", str),
        details=details(fields) if "raw_mode" in fields else None,
    )


def details(fields: Json) -> Details:
    there = optional(fields, "reached", dict)
    reached = Reached(get(there, "path", str), get(there, "raw_mode", int), get(there, "errno", int)) if there is not None else None
    try:
        attributes = {str(name): base64.b64decode(value, validate=True) for name, value in get(fields, "attributes", dict).items()}
    except (binascii.Error, ValueError, TypeError):
        raise ProtocolError("attributes that are no base64") from None
    return Details(get(fields, "raw_mode", int), reached, attributes)


def watch_event(fields: Json) -> WatchEvent:
    try:
        kind = WatchKind(fields.get("kind"))
    except ValueError:
        raise ProtocolError("an unknown kind of watch event") from None
    return WatchEvent(kind=kind, path=get(fields, "path", str), new_path=get(fields, "new_path", str), is_directory=get(fields, "is_directory", bool))


def xattr(fields: Json) -> tuple[str, bytes]:
    try:
        return get(fields, "name", str), base64.b64decode(get(fields, "value", str), validate=True)
    except (binascii.Error, ValueError):
        raise ProtocolError("an attribute that is no base64") from None


def metrics(fields: Json) -> Metrics:
    return Metrics(
        vcpus=get(fields, "vcpus", int),
        cpu_percent=get(fields, "cpu_percent", float),
        memory_total=get(fields, "memory_total", int),
        memory_used=get(fields, "memory_used", int),
        memory_cache=get(fields, "memory_cache", int),
        disk_total=get(fields, "disk_total", int),
        disk_used=get(fields, "disk_used", int),
        processes=get(fields, "processes", int),
        oom_kills=get(fields, "oom_kills", int),
    )


def quiesced(fields: Json) -> Quiesced:
    return Quiesced(frozen=get(fields, "frozen", bool), milliseconds=get(fields, "milliseconds", float))


def identity_fields(identity: Identity) -> Json:
    return {
        "sandbox_id": identity.sandbox_id,
        "hostname": identity.hostname,
        "machine_id": identity.machine_id,
        "names": dict(identity.names),
    }


def wake_fields(wake: Wake) -> Json:
    """All but the generation, which is in the frame's header."""
    return {
        "clock": wake.clock,
        "entropy": wake.entropy.hex(),
        "identity": identity_fields(wake.identity),
        "network": dict(wake.network) if wake.network is not None else None,
        "disk_bytes": wake.disk_bytes,
    }
