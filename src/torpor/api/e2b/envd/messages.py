"""The messages of the two services, made from tables of their fields: number, name, type. There is no .proto file, and nothing to be compiled.

A type is a scalar's name, or that of a message or enum of the same service; `*` repeats it, `?` tells set from unset, `a|` puts a field into the oneof `a`,
`map` is of strings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import descriptor_pool, message_factory, timestamp_pb2
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto

Message = Any
"""An instance of a class made here: what its fields are, only the tables say."""

_F = FieldDescriptorProto
_SCALARS = {
    "string": _F.TYPE_STRING,
    "bytes": _F.TYPE_BYTES,
    "bool": _F.TYPE_BOOL,
    "uint32": _F.TYPE_UINT32,
    "int64": _F.TYPE_INT64,
    "sint32": _F.TYPE_SINT32,
}
_TIME = "google.protobuf.Timestamp"

Fields = Mapping[str, tuple[int, str]]

_PROCESS: Mapping[str, Fields] = {
    "PTY.Size": {"cols": (1, "uint32"), "rows": (2, "uint32")},
    "PTY": {"size": (1, "PTY.Size")},
    "ProcessConfig": {"cmd": (1, "string"), "args": (2, "string*"), "envs": (3, "map"), "cwd": (4, "string?")},
    "ProcessInfo": {"config": (1, "ProcessConfig"), "pid": (2, "uint32"), "tag": (3, "string?")},
    "ProcessSelector": {"pid": (1, "selector|uint32"), "tag": (2, "selector|string")},
    "ProcessInput": {"stdin": (1, "input|bytes"), "pty": (2, "input|bytes")},
    "ProcessEvent.StartEvent": {"pid": (1, "uint32")},
    "ProcessEvent.DataEvent": {"stdout": (1, "output|bytes"), "stderr": (2, "output|bytes"), "pty": (3, "output|bytes")},
    "ProcessEvent.EndEvent": {"exit_code": (1, "sint32"), "exited": (2, "bool"), "status": (3, "string"), "error": (4, "string?")},
    "ProcessEvent.KeepAlive": {},
    "ProcessEvent": {
        "start": (1, "event|ProcessEvent.StartEvent"),
        "data": (2, "event|ProcessEvent.DataEvent"),
        "end": (3, "event|ProcessEvent.EndEvent"),
        "keepalive": (4, "event|ProcessEvent.KeepAlive"),
    },
    "ListRequest": {},
    "ListResponse": {"processes": (1, "ProcessInfo*")},
    "StartRequest": {"process": (1, "ProcessConfig"), "pty": (2, "PTY?"), "tag": (3, "string?"), "stdin": (4, "bool?")},
    "StartResponse": {"event": (1, "ProcessEvent")},
    "ConnectRequest": {"process": (1, "ProcessSelector")},
    "ConnectResponse": {"event": (1, "ProcessEvent")},
    "UpdateRequest": {"process": (1, "ProcessSelector"), "pty": (2, "PTY?")},
    "UpdateResponse": {},
    "SendInputRequest": {"process": (1, "ProcessSelector"), "input": (2, "ProcessInput")},
    "SendInputResponse": {},
    "StreamInputRequest.StartEvent": {"process": (1, "ProcessSelector")},
    "StreamInputRequest.DataEvent": {"input": (2, "ProcessInput")},
    "StreamInputRequest.KeepAlive": {},
    "StreamInputRequest": {
        "start": (1, "event|StreamInputRequest.StartEvent"),
        "data": (2, "event|StreamInputRequest.DataEvent"),
        "keepalive": (3, "event|StreamInputRequest.KeepAlive"),
    },
    "StreamInputResponse": {},
    "SendSignalRequest": {"process": (1, "ProcessSelector"), "signal": (2, "Signal")},
    "SendSignalResponse": {},
    "CloseStdinRequest": {"process": (1, "ProcessSelector")},
    "CloseStdinResponse": {},
}
_PROCESS_ENUMS = {"Signal": {"SIGNAL_UNSPECIFIED": 0, "SIGNAL_SIGTERM": 15, "SIGNAL_SIGKILL": 9}}

_WATCH: Fields = {"path": (1, "string"), "recursive": (2, "bool"), "include_entry": (3, "bool"), "allow_network_mounts": (4, "bool")}
_FILESYSTEM: Mapping[str, Fields] = {
    "EntryInfo": {
        "name": (1, "string"),
        "type": (2, "FileType"),
        "path": (3, "string"),
        "size": (4, "int64"),
        "mode": (5, "uint32"),
        "permissions": (6, "string"),
        "owner": (7, "string"),
        "group": (8, "string"),
        "modified_time": (9, _TIME),
        "symlink_target": (10, "string?"),
        "metadata": (11, "map"),
        "is_symlink": (12, "bool"),
    },
    "FilesystemEvent": {"name": (1, "string"), "type": (2, "EventType"), "entry": (3, "EntryInfo?")},
    "StatRequest": {"path": (1, "string")},
    "StatResponse": {"entry": (1, "EntryInfo")},
    "MakeDirRequest": {"path": (1, "string")},
    "MakeDirResponse": {"entry": (1, "EntryInfo")},
    "MoveRequest": {"source": (1, "string"), "destination": (2, "string")},
    "MoveResponse": {"entry": (1, "EntryInfo")},
    "ListDirRequest": {"path": (1, "string"), "depth": (2, "uint32")},
    "ListDirResponse": {"entries": (1, "EntryInfo*")},
    "RemoveRequest": {"path": (1, "string")},
    "RemoveResponse": {},
    "WatchDirRequest": _WATCH,
    "WatchDirResponse.StartEvent": {},
    "WatchDirResponse.KeepAlive": {},
    "WatchDirResponse": {
        "start": (1, "event|WatchDirResponse.StartEvent"),
        "filesystem": (2, "event|FilesystemEvent"),
        "keepalive": (3, "event|WatchDirResponse.KeepAlive"),
    },
    "CreateWatcherRequest": _WATCH,
    "CreateWatcherResponse": {"watcher_id": (1, "string")},
    "GetWatcherEventsRequest": {"watcher_id": (1, "string")},
    "GetWatcherEventsResponse": {"events": (1, "FilesystemEvent*")},
    "RemoveWatcherRequest": {"watcher_id": (1, "string")},
    "RemoveWatcherResponse": {},
}
_FILESYSTEM_ENUMS = {
    "FileType": {"FILE_TYPE_UNSPECIFIED": 0, "FILE_TYPE_FILE": 1, "FILE_TYPE_DIRECTORY": 2, "FILE_TYPE_SYMLINK": 3},
    "EventType": {
        "EVENT_TYPE_UNSPECIFIED": 0,
        "EVENT_TYPE_CREATE": 1,
        "EVENT_TYPE_WRITE": 2,
        "EVENT_TYPE_REMOVE": 3,
        "EVENT_TYPE_RENAME": 4,
        "EVENT_TYPE_CHMOD": 5,
    },
}


class Words:
    """The message classes of one service, by name: `words["StartRequest"]()`."""

    def __init__(self, package: str, messages: Mapping[str, Fields], enums: Mapping[str, Mapping[str, int]]) -> None:
        self._package = package
        file = FileDescriptorProto(name=f"{package}/{package}.proto", package=package, syntax="proto3", dependency=[timestamp_pb2.DESCRIPTOR.name])
        for enum_name, values in enums.items():
            enum = file.enum_type.add(name=enum_name)
            for value_name, number in values.items():
                enum.value.add(name=value_name, number=number)
        self._made: dict[str, DescriptorProto] = {}
        for name in sorted(messages, key=lambda name: name.count(".")):  # the outer ones first
            outer, _, own = name.rpartition(".")
            self._made[name] = (self._made[outer].nested_type if outer else file.message_type).add(name=own)
        for name, fields in messages.items():
            for field_name, (number, kind) in fields.items():
                self._field(self._made[name], name, field_name, number, kind, enums)
            _order_oneofs(self._made[name])
        pool = descriptor_pool.DescriptorPool()
        pool.AddSerializedFile(timestamp_pb2.DESCRIPTOR.serialized_pb)
        pool.Add(file)
        self._classes = {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}")) for name in messages}

    def __getitem__(self, name: str) -> Any:
        return self._classes[name]

    def _field(self, message: DescriptorProto, message_name: str, name: str, number: int, kind: str, enums: Mapping[str, Any]) -> None:
        oneof, _, kind = kind.rpartition("|")
        bare = kind.rstrip("*?")
        field = message.field.add(name=name, number=number, label=_F.LABEL_REPEATED if kind.endswith("*") or kind == "map" else _F.LABEL_OPTIONAL)
        if kind == "map":
            entry = message.nested_type.add(name="".join(word.capitalize() for word in name.split("_")) + "Entry")
            entry.options.map_entry = True
            for at, part in enumerate(("key", "value"), 1):
                entry.field.add(name=part, number=at, type=_F.TYPE_STRING, label=_F.LABEL_OPTIONAL)
            field.type, field.type_name = _F.TYPE_MESSAGE, f".{self._package}.{message_name}.{entry.name}"
        elif bare in _SCALARS:
            field.type = _SCALARS[bare]
        else:
            field.type = _F.TYPE_ENUM if bare in enums else _F.TYPE_MESSAGE
            field.type_name = f".{bare}" if bare == _TIME else f".{self._package}.{bare}"
        if oneof or kind.endswith("?"):
            field.proto3_optional = not oneof
            field.oneof_index = _oneof(message, oneof or f"_{name}")


def _oneof(message: DescriptorProto, name: str) -> int:
    names = [each.name for each in message.oneof_decl]
    if name not in names:
        message.oneof_decl.add(name=name)
        names.append(name)
    return names.index(name)


def _order_oneofs(message: DescriptorProto) -> None:
    """Those that only tell set from unset must come last (descriptor.proto); here no message has both kinds."""
    kinds = {field.proto3_optional for field in message.field if field.HasField("oneof_index")}
    assert len(kinds) < 2


PROCESS = Words("process", _PROCESS, _PROCESS_ENUMS)
FILESYSTEM = Words("filesystem", _FILESYSTEM, _FILESYSTEM_ENUMS)
