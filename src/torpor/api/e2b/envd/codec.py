"""How messages look on the wire: JSON or binary protobuf, plain or gzip, in envelopes on streams.

envelope   flags u8 | length u32 big endian | payload          flags: 1 compressed, 2 the end of a stream
"""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from collections.abc import AsyncIterator
from typing import Any, Protocol

from google.protobuf import json_format
from google.protobuf.message import DecodeError

from torpor.api.e2b.envd.faults import Fault
from torpor.api.e2b.envd.messages import Message

MESSAGE_LIMIT = 16 << 20
"""Bytes of one message, once it is decompressed."""
COMPRESSED, END = 1, 2
_HEAD = struct.Struct(">BI")
_WORTH = 1024
"""Bytes below which nothing is compressed."""
_GZIP = 16 + zlib.MAX_WBITS


class Codec(Protocol):
    name: str

    def decode(self, kind: Any, data: bytes) -> Message: ...

    def encode(self, message: Message) -> bytes: ...


class Json:
    """protobuf's JSON: lowerCamelCase, base64, enums by name; fields nobody knows are ignored, and defaults left out."""

    name = "json"

    def decode(self, kind: Any, data: bytes) -> Message:
        try:
            return json_format.Parse(data.decode() or "{}", kind(), ignore_unknown_fields=True)
        except (json_format.ParseError, UnicodeDecodeError, RecursionError) as error:
            raise Fault("invalid_argument", f"the message cannot be read: {str(error)[:300]}") from None

    def encode(self, message: Message) -> bytes:
        return json.dumps(json_format.MessageToDict(message), separators=(",", ":")).encode()


class Binary:
    name = "proto"

    def decode(self, kind: Any, data: bytes) -> Message:
        try:
            return kind.FromString(data)
        except DecodeError as error:
            raise Fault("invalid_argument", f"the message cannot be read: {str(error)[:300]}") from None

    def encode(self, message: Message) -> bytes:
        return bytes(message.SerializeToString())


CODECS: dict[str, Codec] = {"json": Json(), "proto": Binary()}


def inflate(data: bytes, limit: int = MESSAGE_LIMIT) -> bytes:
    """A gzip'ed message. Raises Fault, also for one that would become larger than `limit`."""
    machine = zlib.decompressobj(_GZIP)
    try:
        plain = machine.decompress(data, limit + 1)
    except zlib.error:
        raise Fault("invalid_argument", "the message is no gzip") from None
    if len(plain) > limit:
        raise _too_large()
    if not machine.eof:
        raise Fault("invalid_argument", "the gzip'ed message ends early")
    return plain


def deflate(data: bytes) -> bytes | None:
    """gzip'ed, or None where that is not worth it."""
    return gzip.compress(data, 1, mtime=0) if len(data) >= _WORTH else None


def envelope(payload: bytes, flags: int = 0, *, compress: bool = False) -> bytes:
    if compress and (small := deflate(payload)) is not None:
        payload, flags = small, flags | COMPRESSED
    return _HEAD.pack(flags, len(payload)) + payload


async def payloads(body: AsyncIterator[bytes], *, gzipped: bool) -> AsyncIterator[bytes]:
    """The messages in the envelopes of a request, decompressed. Raises Fault."""
    held = bytearray()
    async for data in body:
        held += data
        while len(held) >= _HEAD.size:
            flags, length = _HEAD.unpack_from(held)
            if length > MESSAGE_LIMIT:
                raise _too_large()
            if flags & ~COMPRESSED or (flags and not gzipped):
                raise Fault("invalid_argument", f"an envelope with flags {flags} is not understood here")
            if len(held) < _HEAD.size + length:
                break
            payload = bytes(held[_HEAD.size : _HEAD.size + length])
            del held[: _HEAD.size + length]
            yield inflate(payload) if flags else payload
    if held:
        raise Fault("invalid_argument", "the stream ends within an envelope")


async def whole(body: AsyncIterator[bytes], *, gzipped: bool) -> bytes:
    """The one message of a request without envelopes, decompressed. Raises Fault."""
    held = bytearray()
    async for data in body:
        held += data
        if len(held) > MESSAGE_LIMIT:
            raise _too_large()
    return inflate(bytes(held)) if gzipped and held else bytes(held)


def _too_large() -> Fault:
    return Fault("resource_exhausted", f"a message may have {MESSAGE_LIMIT} bytes at most")
