"""Frames of the guest protocol: constants, encoding, JSON payloads. Sans-I/O, standard library only.

type u8 | flags u8 | zero u16 | length u32 | stream u64 | generation u64 | offset u64      (little endian), then `length` bytes
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

VERSION = 1
LEVEL = 3
"""What an agent can do beyond the operations of the first; it says so in its WELCOME, the first ones said nothing. docs/guest-protocol.md lists it."""
MAGIC = b"\xf5" * 63 + b"\xfa"
HEADER = struct.Struct("<BBHIQQQ")
WINDOW_PAIR = struct.Struct("<QQ")
MAX_PAYLOAD = 65536
"""The most a frame carries otherwise."""
GUEST_PAYLOAD = MAX_PAYLOAD - HEADER.size
"""What the guest puts into one frame: with its header two writes, for Linux cuts writes to a virtio port at 32 KiB (drivers/char/virtio_console.c)."""
WINDOW = 262144
"""Bytes a sender may have on the way on one stream before the receiver grants more."""
BULK_PAYLOAD = 262144 - HEADER.size
"""The most a DATA frame of a file carries, between ends that have agreed on it: with its header whole pages, so that those of the next frame begin with one."""
WIDE_WINDOW = 1 << 20
"""The same once both ends have said that they take so much on a stream: files, which else would wait for the slower end's turn every few milliseconds."""
PAGE = 4096
"""What a read of a virtio port gives at most, and while more is there (drivers/char/virtio_console.c); the host's pieces begin with one."""
MAX_REQUEST = 4 << 20
"""A request's JSON in all its fragments: Linux's own limit for arguments and environment is 2 MiB."""
MAX_OFFSET = 1 << 56

HELLO, WELCOME, REQUEST, REPLY, DATA, CREDIT, END, EVENT, CLOSE, RESUME, DONE = range(1, 12)
TYPE_NAMES = ("", "HELLO", "WELCOME", "REQUEST", "REPLY", "DATA", "CREDIT", "END", "EVENT", "CLOSE", "RESUME", "DONE")
FLAG_MORE = 1
"""On a REQUEST: the JSON goes on in the next frame of the same stream."""

MAIN, STDERR = 0, 1
"""Channels of a stream number, which is the opening request's id * 2 + channel."""


ALL_NAMED = 0
"""A RESUME with this stream number ends the host's list of streams: the guest closes those that it did not name."""


_ENCODER = json.JSONEncoder(separators=(",", ":"))
_DECODER = json.JSONDecoder()


def _encoder() -> Callable[[Any], str]:
    """As `_ENCODER.encode`, which makes what this makes once anew for each value (Lib/json/encoder.py); that where there is no accelerator."""
    make = getattr(json.encoder, "c_make_encoder", None)
    if make is None:
        return _ENCODER.encode
    pieces = make(None, _ENCODER.default, json.encoder.encode_basestring_ascii, None, ":", ",", False, False, True)
    return lambda value: "".join(pieces(value, 0))


_encoded = _encoder()


class ProtocolError(Exception):
    """The peer sent what the protocol forbids; the text says what."""


class Lent:
    """A payload where it arrived. `view` holds until `release`, which gives its place back to the reader; who drops it unreleased leaves the place to the
    garbage collection."""

    __slots__ = ("_give_back", "view")

    def __init__(self, view: memoryview, give_back: Callable[[], None]) -> None:
        self.view = view
        self._give_back = give_back

    def __len__(self) -> int:
        return len(self.view)

    def release(self) -> None:
        """Once; `view` is not looked at any more."""
        self._give_back()


class Frame(NamedTuple):
    """`lent` instead of `payload` for large DATA from a reader that lends."""

    type: int
    flags: int
    stream: int
    generation: int
    offset: int
    payload: bytes
    lent: Lent | None = None


class Header(NamedTuple):
    type: int
    flags: int
    zero: int
    length: int
    stream: int
    generation: int
    offset: int


def encode(type_: int, stream: int, generation: int, offset: int = 0, payload: bytes | bytearray | memoryview = b"", flags: int = 0) -> bytes:
    """One frame's bytes. HELLO and WELCOME get the MAGIC in front."""
    magic = MAGIC if type_ in (HELLO, WELCOME) else b""
    return b"".join((magic, HEADER.pack(type_, flags, 0, len(payload), stream, generation, offset), payload))


def to_json(value: Any) -> bytes:
    """Compact ASCII JSON. Paths that are not UTF-8 travel as the lone surrogates of Python's surrogateescape."""
    return _encoded(value).encode("ascii")


def from_json(payload: bytes) -> dict[str, Any]:
    """The object in a control payload. Raises ProtocolError for anything else."""
    try:
        text = payload.decode()
        value, end = _DECODER.raw_decode(text)
        if end != len(text):
            raise ValueError("more behind its end")
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"a control payload is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ProtocolError("a control payload is not a JSON object")
    return value


def sane(header: Header) -> bool:
    most = BULK_PAYLOAD if header.type == DATA else MAX_PAYLOAD
    return HELLO <= header.type <= DONE and header.zero == 0 and header.flags <= FLAG_MORE and header.length <= most and header.offset < MAX_OFFSET
