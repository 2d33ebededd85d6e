"""Messages between a client on this machine and the host agent, over a local stream socket. Version 1.

    frame   length of the rest (u32) | length of the header (u32) | header: JSON | body: bytes          integers big-endian

    client -> agent   {"hello": 1}                                    first frame of a connection, answered {"hello": 1, "pid": ...}
                      {"call": n, "method": name, "args": {...}} body answered {"answer": n, "result": ...} or {"answer": n, "error": {...}}
    agent -> client   {"output": n, "stream": "stdout", "offset": o} body
                      {"end": n, "exited": {...}} or {"end": n, "error": {...}}          n: the call that started or attached the command

Standard library only; no sockets here.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any

from torpor.model import errors
from torpor.model.errors import (
    AccountReason,
    AccountRefused,
    Corrupt,
    Denied,
    DenyReason,
    GuestOSError,
    HostUnavailable,
    Incompatible,
    RateLimited,
    TorporError,
    Undelivered,
)

VERSION = 1
MAX_FRAME = 1 << 20
"""Bytes. Larger bodies are sent in pieces."""
_HEAD = struct.Struct("!II")

Header = dict[str, Any]


def encode(header: Header, body: bytes | memoryview = b"") -> bytes:
    text = json.dumps(header, separators=(",", ":")).encode()
    return _HEAD.pack(4 + len(text) + len(body), len(text)) + text + body


class Decoder:
    """Takes bytes as they come, gives whole frames. Raises Corrupt on a frame that no peer of ours sends; the connection is then to be closed."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[Header, bytes]]:
        self._buffer += data
        while len(self._buffer) >= _HEAD.size:
            rest, header_length = _HEAD.unpack_from(self._buffer)
            if rest > MAX_FRAME + 65536 or header_length + 4 > rest:
                raise Corrupt(f"A local frame of {rest} bytes with a header of {header_length} is not of this protocol.")
            if len(self._buffer) < 4 + rest:
                return
            frame = bytes(self._buffer[_HEAD.size : 4 + rest])
            del self._buffer[: 4 + rest]
            yield _header(frame[:header_length]), frame[header_length:]


def _header(text: bytes) -> Header:
    try:
        header = json.loads(text)
    except ValueError as error:
        raise Corrupt(f"A local frame's header is not JSON: {error}.") from error
    if not isinstance(header, dict):
        raise Corrupt("A local frame's header is not an object.")
    return header


def encode_error(error: TorporError) -> Header:
    """Everything a client needs to raise the same error again."""
    plain: Header = {"code": error.code, "message": error.message, "mend": error.mend}
    if isinstance(error, (Denied, AccountRefused)):
        plain["reason"] = error.reason.value
    if isinstance(error, Incompatible):
        plain["differences"] = error.differences
    if isinstance(error, GuestOSError):
        plain |= {"errno": error.errno, "path": error.path}
    if isinstance(error, (HostUnavailable, RateLimited, Undelivered)):
        plain["retry_after"] = error.retry_after
    return plain


def decode_error(plain: Header) -> TorporError:
    """The error of that code; one this version does not know becomes a TorporError with its words."""
    kind = _BY_CODE.get(plain.get("code", ""), TorporError)
    message, mend = str(plain.get("message", "")), str(plain.get("mend", ""))
    if issubclass(kind, Denied):
        return Denied(DenyReason(plain["reason"]), message, mend=mend)
    if issubclass(kind, AccountRefused):
        return AccountRefused(AccountReason(plain["reason"]), message, mend=mend)
    if issubclass(kind, Incompatible):
        return Incompatible(message, {name: (was, here) for name, (was, here) in plain["differences"].items()}, mend=mend)
    if issubclass(kind, GuestOSError):
        return GuestOSError(plain["errno"], message, plain["path"])
    if issubclass(kind, (HostUnavailable, RateLimited, Undelivered)):
        return kind(message, plain["retry_after"], mend=mend)
    return kind(message, mend=mend)


_BY_CODE: dict[str, type[TorporError]] = {
    kind.code: kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, TorporError) and "code" in vars(kind)
}
