"""The private protocol between host and guest agent, version 1: frames, resynchronisation, flow control. Sans-I/O, standard library only, both ends.

A frame is a 32-byte header (little endian) and at most 64 KiB of payload:

    type u8 | flags u8 | zero u16 | length u32 | stream u64 | generation u64 | offset u64

What happens on a new connection, and after every restore:

    host                                         guest
      MAGIC HELLO(generation, nonce, wake?)  ->    drops all it had buffered, also half a frame; applies the wake
      drops all up to it                    <-   MAGIC WELCOME(generation, nonce)
      frames of this generation            <->   frames of this generation

MAGIC never occurs in what the host sends elsewhere (payloads that hold it are cut in its middle), so the guest may look for it in the middle of a frame;
no text holds its bytes. The guest's payloads are free, so the host believes a MAGIC only with its own fresh nonce behind it. A frame of another generation
is dropped.

docs/guest-protocol.md describes operations and their fields.
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
GUEST_PAYLOAD = MAX_PAYLOAD - HEADER.size
"""What the guest puts into one frame: with its header two writes, for Linux cuts writes to a virtio port at 32 KiB (drivers/char/virtio_console.c)."""
WINDOW = 262144
"""Bytes a sender may have on the way on one stream before the receiver grants more."""
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


class Frame(NamedTuple):
    type: int
    flags: int
    stream: int
    generation: int
    offset: int
    payload: bytes


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


def _sane(header: Header) -> bool:
    return HELLO <= header.type <= DONE and header.zero == 0 and header.flags <= FLAG_MORE and header.length <= MAX_PAYLOAD and header.offset < MAX_OFFSET


class FrameReader:
    """Bytes in, frames out. Read into `space()`, then `feed(count)`.

    It starts out hunting: everything up to a MAGIC whose header `accept`s is dropped. The guest's end (`watchful`) falls back to hunting at a MAGIC
    anywhere and at a senseless header; the host's end raises ProtocolError for the latter. Memory is bounded: one buffer of twice the largest frame.
    """

    def __init__(self, accept: Callable[[Header], bool], *, watchful: bool) -> None:
        self._accept = accept
        self._watchful = watchful
        self._buffer = bytearray(2 * (MAX_PAYLOAD + HEADER.size + len(MAGIC)))
        self._view = memoryview(self._buffer)
        self._pages = [self._view[at : at + PAGE] for at in range(0, len(self._buffer) - PAGE + 1, PAGE)]
        self._start = self._end = 0
        self._due = 0
        """Up to where the frame at `_start` reaches, once its header is there."""
        self.hunting = True

    def reset(self) -> None:
        """A new connection: hunt again."""
        self._start = self._end = self._due = 0
        self.hunting = True

    def space(self) -> memoryview:
        """Where the next bytes go; at least one largest frame long."""
        if self._start:
            if len(self._buffer) - self._end < MAX_PAYLOAD:
                self._move(0)
            elif self._start == self._end:
                self._start = self._end = self._due = 0
        return self._view[self._end : self._end + MAX_PAYLOAD]

    def pages(self) -> list[memoryview]:
        """Where the rest of a large frame goes whose beginning is there, page by page, for one readv(2); nothing when no such frame is under way. The last
        page may reach behind the frame: none is cut, so that a greeting which comes in the frame's place is found whole."""
        if self.hunting or self._due - self._end < PAGE:
            return []
        if self._end % PAGE or self._due > len(self._pages) * PAGE:
            self._move(-(self._end - self._start) % PAGE)
        return self._pages[self._end // PAGE : -(-self._due // PAGE)]

    def _move(self, to: int) -> None:
        """What is not used up goes to another place in the buffer."""
        kept = bytes(self._view[self._start : self._end])
        self._view[to : to + len(kept)] = kept
        self._due += to - self._start
        self._start, self._end = to, to + len(kept)

    def feed(self, count: int) -> list[Frame]:
        """`count` bytes were put into `space()` or `pages()`. Returns the frames completed by them."""
        before, self._end = self._end, self._end + count
        if self._watchful and not self.hunting:
            at = self._buffer.rfind(MAGIC, max(self._start, before - len(MAGIC) + 1), self._end)
            if at >= 0:
                self._start, self.hunting, self._due = at, True, 0
        if self._end < self._due and not self.hunting:
            return []  # a virtio port gives 4 KiB at a time: the middle of a large frame must cost next to nothing
        frames = self._before_greetings() if self._watchful and self.hunting else []
        frames += self._frames()
        return frames

    def _before_greetings(self) -> list[Frame]:
        """While hunting: what stands between a MAGIC and the next one is read by itself, so that half a frame swallows no greeting behind it."""
        frames: list[Frame] = []
        end = self._end
        at = self._buffer.find(MAGIC, self._start, end)
        while at >= 0 and (following := self._buffer.find(MAGIC, at + 1, end)) >= 0:
            self._start, self._end = at, following
            frames += self._frames()
            self._start, self._end, self._due, self.hunting = following, end, 0, True
            at = following
        return frames

    def _frames(self) -> list[Frame]:
        frames: list[Frame] = []
        while (not self.hunting or self._hunt()) and (frame := self._next()) is not None:
            frames.append(frame)
        return frames

    def _hunt(self) -> bool:
        """Moves to the first acceptable hello; False while none is there in full."""
        while True:
            at = self._buffer.find(MAGIC, self._start, self._end)
            if at < 0:
                self._start = max(self._start, self._end - len(MAGIC) + 1)
                return False
            self._start = at
            if self._end - at < len(MAGIC) + HEADER.size:
                return False
            header = Header(*HEADER.unpack_from(self._buffer, at + len(MAGIC)))
            if _sane(header) and self._accept(header):
                self._start += len(MAGIC)
                self._due = 0
                self.hunting = False
                return True
            self._start = at + 1

    def _next(self) -> Frame | None:
        """The next whole frame, or None; may turn to hunting."""
        start = self._start
        if self._end - start < HEADER.size:
            return None
        header = Header(*HEADER.unpack_from(self._buffer, start))
        if not _sane(header):
            if not self._watchful:
                raise ProtocolError(f"senseless frame header {bytes(self._view[start : start + HEADER.size]).hex()}")
            self.hunting = True
            return self._next() if self._hunt() else None
        body = start + HEADER.size
        if self._end - body < header.length:
            self._due = body + header.length
            return None
        self._start = body + header.length
        return Frame(header.type, header.flags, header.stream, header.generation, header.offset, bytes(self._view[body : self._start]))


class Sender:
    """The sending half of a stream: keeps what the receiver has not consumed yet, so that a reconnect can send it again. `start` is the first offset."""

    __slots__ = ("_end_sent", "acked", "base", "data", "end_payload", "ended", "held", "limit", "position", "start", "window")
    guarded = False
    """Cuts payloads so that none holds MAGIC: the host's duty."""

    def __init__(self, start: int = 0) -> None:
        self.data = bytearray()
        self.start = self.base = self.acked = self.position = start
        self.limit = start + WINDOW
        self.window = WINDOW  # the most that a credit may open
        self.ended = self._end_sent = self.held = False
        self.end_payload = b""

    @property
    def top(self) -> int:
        """The offset behind the last byte written."""
        return self.base + len(self.data)

    @property
    def pending(self) -> int:
        """Bytes written that the receiver has not consumed."""
        return self.top - self.acked

    @property
    def finished(self) -> bool:
        """Everything, the end included, was sent, and consumed as far as data goes."""
        return self._end_sent and self.acked == self.top

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.data += data

    def end(self, payload: bytes = b"") -> None:
        """No more will be written. `payload`: JSON that says why, for an end by error."""
        if not self.ended:
            self.ended, self.end_payload = True, payload

    def wants(self) -> bool:
        """Whether `pull` would give a frame now."""
        if self.held:
            return False
        return self.position < min(self.top, self.limit) or (self.ended and not self._end_sent and self.position == self.top)

    def pull(self, stream: int, generation: int, most: int) -> bytes | None:
        """The next DATA or END frame's bytes, or None."""
        if not self.wants():
            return None
        count = min(self.top, self.limit, self.position + most) - self.position
        if count <= 0:
            self._end_sent = True
            return encode(END, stream, generation, self.top, self.end_payload)
        at = self.position - self.base
        if self.guarded and (magic := self.data.find(MAGIC, at, at + count)) >= 0:
            count = magic - at + len(MAGIC) // 2
        with memoryview(self.data) as view, view[at : at + count] as piece:
            frame = encode(DATA, stream, generation, self.position, piece)
        self.position += count
        return frame

    def credit(self, consumed: int, limit: int) -> None:
        """The receiver consumed up to `consumed` and takes up to `limit`. Raises ProtocolError for numbers that cannot be."""
        if consumed > self.position or limit < consumed or limit > consumed + self.window:
            raise ProtocolError(f"credit of {consumed}..{limit} on a stream sent up to {self.position}")
        if consumed > self.acked:
            self.acked = consumed
            self.forget()
        self.limit = max(self.limit, limit)

    def forget(self) -> None:
        """Drops what was consumed. A ring that keeps more overrides this."""
        del self.data[: self.acked - self.base]
        self.base = self.acked

    def hold(self) -> None:
        """The connection broke: sends nothing until the peer's RESUME."""
        self.held = True

    def resume(self, received: int, consumed: int, limit: int) -> None:
        """After a reconnect the peer has everything below `received`; one that has not heard where the stream starts says 0. Raises ProtocolError if that
        was never sent, or is gone."""
        if received == consumed == 0 and self.acked == self.start:
            received, consumed, limit = self.start, self.start, self.start + WINDOW
        if received > max(self.position, self.acked) or received < self.acked or received < consumed:
            raise ProtocolError(f"resume at {received} of a stream consumed up to {self.acked} and sent up to {self.position}")
        self.credit(consumed, limit)
        self.position, self.held, self._end_sent = received, False, False


class GuardedSender(Sender):
    """The host's."""

    __slots__ = ()
    guarded = True


class Receiver:
    """The receiving half of a stream: checks offsets and window, says when credit is due."""

    __slots__ = ("consumed", "ended", "limit", "received", "window")

    def __init__(self, start: int = 0) -> None:
        self.received = self.consumed = start
        self.limit = start + WINDOW
        self.window = WINDOW  # what a credit opens
        self.ended = False

    def data(self, offset: int, count: int) -> None:
        """Takes note of a DATA frame. Raises ProtocolError out of order, beyond the window, or behind the end."""
        if self.ended or offset != self.received or offset + count > self.limit or count == 0:
            raise ProtocolError(f"data {offset}+{count} where {self.received} was due and {self.limit} the limit")
        self.received += count

    def end(self, offset: int) -> bool:
        """Takes note of END; False if it was known. Raises ProtocolError if bytes are missing."""
        if offset != self.received:
            raise ProtocolError(f"end at {offset} where {self.received} was due")
        first, self.ended = not self.ended, True
        return first

    def consume(self, count: int) -> bool:
        """`count` bytes were used up; True when a CREDIT should be sent (half the window)."""
        self.consumed += count
        return not self.ended and self.limit - self.consumed <= self.window // 2

    def grant(self, stream: int, generation: int) -> bytes:
        """The CREDIT frame that reopens the window."""
        self.limit = self.consumed + self.window
        return encode(CREDIT, stream, generation, 0, WINDOW_PAIR.pack(self.consumed, self.limit))

    def resumption(self, stream: int, generation: int) -> bytes:
        """The RESUME frame for after a reconnect."""
        self.limit = max(self.limit, self.consumed + self.window)
        return encode(RESUME, stream, generation, self.received, WINDOW_PAIR.pack(self.consumed, self.limit))


def window_pair(payload: bytes) -> tuple[int, int]:
    """(consumed, limit) of a CREDIT or RESUME. Raises ProtocolError for another size."""
    if len(payload) != WINDOW_PAIR.size:
        raise ProtocolError("a window of the wrong size")
    consumed, limit = WINDOW_PAIR.unpack(payload)
    return consumed, limit
