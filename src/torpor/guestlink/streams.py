"""One stream, host end: pieces that arrived and wait for their reader, bytes that wait for the guest's window. Both are bounded by one window."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from torpor.guestlink.errors import broken_pipe, end_error
from torpor.model.errors import TorporError
from torpor.wire import guest as wire

if TYPE_CHECKING:
    from torpor.guestlink.channel import Channel


class Stream:
    """A stream opened by a request of ours. One reader and one writer at a time."""

    def __init__(self, channel: Channel, number: int, *, sends: bool, receives: bool) -> None:
        self._channel = channel
        self.number = number
        self.sender: wire.GuardedSender | None = wire.GuardedSender() if sends else None
        self.receiver: wire.Receiver | None = wire.Receiver() if receives else None
        self.failure: TorporError | None = None
        self.end_failure: TorporError | None = None
        self.ended = False
        """Everything the guest sends has arrived."""
        self.arrived: Callable[[], None] = self._wake
        self.most = wire.MAX_PAYLOAD - wire.HEADER.size
        """Bytes of one frame of ours."""
        self._pieces: deque[tuple[int, bytes]] = deque()
        self._arrival = asyncio.Event()
        self._room = asyncio.Event()

    # From the channel

    def begin_at(self, offset: int) -> None:
        """The guest's bytes begin here; to be called with the reply, before data arrives."""
        if self.receiver is not None and self.receiver.received != offset:
            if self.receiver.received != self.receiver.consumed or self._pieces:
                raise wire.ProtocolError("data before the answer that announces it")
            self.receiver = wire.Receiver(offset)

    def widen(self, *, bulk: bool = False) -> None:
        """The guest has said that it takes and grants wide windows on this stream, with `bulk` also large frames."""
        if bulk:
            self.most = wire.BULK_PAYLOAD
        for half in (self.sender, self.receiver):
            if half is not None:
                half.window = wire.WIDE_WINDOW

    def receive(self, frame: wire.Frame) -> None:
        if self.receiver is None:
            raise wire.ProtocolError("data on a stream that carries none")
        if frame.type == wire.DATA:
            self.receiver.data(frame.offset, len(frame.payload))
            self._pieces.append((frame.offset, frame.payload))
        elif self.receiver.end(frame.offset):
            self.ended, self.end_failure = True, end_error(frame.payload)
        self.arrived()

    def window(self, frame: wire.Frame) -> None:
        consumed, limit = wire.window_pair(frame.payload)
        if self.sender is None:
            if (frame.offset, consumed) != (0, 0):
                raise wire.ProtocolError("credit on a stream that sends nothing")
            return
        if frame.type == wire.CREDIT:
            self.sender.credit(consumed, limit)
        else:
            self.sender.resume(frame.offset, consumed, limit)
        self._room.set()

    def gone(self) -> None:
        """The guest knows this stream no more: its end, as far as anybody can tell."""
        self.ended = True
        if self.sender is not None and self.failure is None:
            self.failure = broken_pipe()
        self._room.set()
        self.arrived()

    def fail(self, error: TorporError) -> None:
        """Reading (once what arrived is read) and writing raise `error` from now on."""
        if self.failure is None:
            self.failure = error
        self._room.set()
        self.arrived()

    # For the user

    def _wake(self) -> None:
        self._arrival.set()

    def take(self) -> tuple[int, bytes] | None:
        """The next piece that arrived and its offset, or None. Its room is given back to the guest."""
        if not self._pieces:
            return None
        piece = self._pieces.popleft()
        assert self.receiver is not None
        if self.receiver.consume(len(piece[1])):
            self._channel.grant(self)
        return piece

    async def read(self) -> bytes:
        """The next piece, b'' at the end. Raises the stream's failure."""
        while (piece := self.take()) is None:
            if self.ended:
                if self.end_failure is not None:
                    raise self.end_failure
                return b""
            if self.failure is not None:
                raise self.failure
            self._arrival.clear()
            await self._arrival.wait()
        return piece[1]

    async def write(self, data: bytes | memoryview) -> None:
        """Returns when the window took all of it. Cancelled, a part may be on its way. Raises the stream's failure, or EPIPE after `finish`."""
        assert self.sender is not None
        if self.sender.ended:
            raise broken_pipe()
        rest = memoryview(data)
        while True:
            if self.failure is not None:
                raise self.failure
            if self.end_failure is not None:
                raise self.end_failure
            room = self.sender.limit - self.sender.top
            if room > 0 and rest:
                self.sender.write(rest[:room])
                rest = rest[room:]
                self._channel.flush(self)
            if not rest:
                return
            self._room.clear()
            await self._room.wait()

    def finish(self) -> None:
        """Nothing more will be written. Idempotent."""
        if self.sender is not None and self.failure is None:
            self.sender.end()
            self._channel.flush(self)

    def close(self) -> None:
        """Gives the stream up in both directions. Idempotent."""
        self._pieces.clear()
        self._channel.close_stream(self)
