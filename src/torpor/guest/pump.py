"""Streams whose bytes come from blocking calls: a thread reads ahead while the host's window has room, the loop never waits."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from torpor.guest.conversation import Stream
from torpor.guest.faults import fault
from torpor.guest.loop import Loop
from torpor.wire import guest as wire


class PieceSender(wire.Sender):
    """A sender with a wide window that keeps large pieces as they came: none is copied or moved on its way into a frame. A frame holds bytes of one piece."""

    __slots__ = ("_pieces", "_top")

    def __init__(self) -> None:
        super().__init__()
        self.window = wire.WIDE_WINDOW
        self._pieces: deque[tuple[int, bytes]] = deque()  # each with its offset
        self._top = 0

    @property
    def top(self) -> int:
        return self._top

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._pieces.append((self._top, bytes(data)))
        self._top += len(data)

    def pull(self, stream: int, generation: int, most: int) -> bytes | None:
        if self.held or self.position >= min(self._top, self.limit):
            return super().pull(stream, generation, most)
        offset, piece = next(held for held in self._pieces if self.position < held[0] + len(held[1]))
        at = self.position - offset
        count = min(len(piece) - at, self.limit - self.position, most)
        frame = wire.encode(wire.DATA, stream, generation, self.position, memoryview(piece)[at : at + count])
        self.position += count
        return frame

    def forget(self) -> None:
        while self._pieces and self._pieces[0][0] + len(self._pieces[0][1]) <= self.acked:
            self._pieces.popleft()
        self.base = self._pieces[0][0] if self._pieces else self._top


class Pump:
    """Feeds `stream` from `source()` (called in a thread, one call at a time; b'' is the end) and calls `close` (in a thread) when it is over."""

    def __init__(self, loop: Loop, stream: Stream, source: Callable[[], bytes], close: Callable[[], None] = lambda: None) -> None:
        self._loop = loop
        self._stream = stream
        self._source = source
        self._close = close
        self._busy = False
        self._over = False
        stream.on_room = self.step
        stream.on_close = self._stop

    def step(self) -> None:
        sender = self._stream.sender
        assert sender is not None
        if not self._busy and not self._over and sender.pending <= (sender.limit - sender.acked) // 2:
            self._busy = True
            self._loop.in_thread(self._source, self._came)

    def first(self, data: bytes) -> None:
        """Bytes that are there already."""
        self._came(data, None)

    def _came(self, data: bytes | None, error: BaseException | None) -> None:
        self._busy = False
        if self._over:
            self._loop.in_thread(self._close, _closed)
            return
        sender = self._stream.sender
        assert sender is not None
        if data:
            sender.write(data)
            self.step()
        else:
            sender.end(wire.to_json({"error": fault(error)}) if error is not None else b"")
            self._over = True
            self._loop.in_thread(self._close, _closed)
        self._stream.wake()

    def _stop(self) -> None:
        """The host has closed the stream, or the conversation ended."""
        if not self._over:
            self._over = True
            if not self._busy:
                self._loop.in_thread(self._close, _closed)


def _closed(_result: None, error: BaseException | None) -> None:
    if error is not None:
        raise error
