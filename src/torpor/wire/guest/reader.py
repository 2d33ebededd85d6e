"""Finds frames of the guest protocol in a stream of bytes. Sans-I/O, standard library only."""

from __future__ import annotations

import mmap
from collections.abc import Callable

from torpor.wire.guest.frames import BULK_PAYLOAD, DATA, HEADER, MAGIC, PAGE, Frame, Header, Lent, ProtocolError, sane

_ROOM = BULK_PAYLOAD + HEADER.size
_COPYING = 2 * (_ROOM + len(MAGIC))
_LENDING = 4 * _ROOM + 16 * PAGE
"""Room for as many large frames as a thread is given at once."""
_LENT_FROM = 32768
"""Below, a copy costs less than to keep account."""
_SPARE = 2


class _Buffer:
    """Memory of its own pages, which costs nothing before it is written to: a bytearray would be filled with zeros."""

    __slots__ = ("_pages", "data", "lent", "view")

    def __init__(self, size: int) -> None:
        self.data = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.view = memoryview(self.data)
        self._pages: list[memoryview] = []
        self.lent = 0

    @property
    def pages(self) -> list[memoryview]:
        if not self._pages:
            self._pages = [self.view[at : at + PAGE] for at in range(0, len(self.data) - PAGE + 1, PAGE)]
        return self._pages


class FrameReader:
    """Bytes in, frames out. Read into `space()`, then `feed(count)`.

    It starts out hunting: everything up to a MAGIC whose header `accept`s is dropped. The guest's end (`watchful`) falls back to hunting at a MAGIC
    anywhere and at a senseless header; the host's end raises ProtocolError for the latter. Memory is bounded: one buffer, of which little is touched before
    large frames come. With `lends` their payloads are not copied: they stay in the buffer, and another takes its place when it is full.
    """

    def __init__(self, accept: Callable[[Header], bool], *, watchful: bool, lends: bool = False) -> None:
        self._accept = accept
        self._watchful = watchful
        self._lends = lends
        self._buffer = _Buffer(_LENDING if lends else _COPYING)
        self._spare: list[_Buffer] = []
        self._start = self._end = 0
        self._due = 0
        """Up to where the frame at `_start` reaches, once its header is there."""
        self.hunting = True

    def reset(self) -> None:
        """A new connection: hunt again."""
        self._start = self._end
        self._move(0)
        self._due = 0
        self.hunting = True

    def space(self) -> memoryview:
        """Where the next bytes go; at least one largest frame long."""
        buffer = self._buffer
        if self._start and self._start == self._end and not buffer.lent:
            self._start = self._end = self._due = 0
        elif len(buffer.data) - self._end < _ROOM:
            self._move(0)
        return self._buffer.view[self._end : self._end + _ROOM]

    def pages(self) -> list[memoryview]:
        """Where the rest of a large frame goes whose beginning is there, page by page, for one readv(2); nothing when no such frame is under way. The last
        page may reach behind the frame: none is cut, so that a greeting which comes in the frame's place is found whole."""
        if self.hunting or self._due - self._end < PAGE:
            return []
        ahead = -self._end % PAGE
        if self._due + ahead > len(self._buffer.pages) * PAGE:
            self._move(-(self._end - self._start) % PAGE)
        elif ahead:
            self._move(self._start + ahead, within=True)
        return self._buffer.pages[self._end // PAGE : -(-self._due // PAGE)]

    def _move(self, to: int, *, within: bool = False) -> None:
        """What is not used up goes to another place: `within` the free part of this buffer, or into another one where this is still lent out."""
        kept = bytes(self._buffer.view[self._start : self._end])
        if self._buffer.lent and not within:
            self._buffer = self._spare.pop() if self._spare else _Buffer(_LENDING)
        self._buffer.view[to : to + len(kept)] = kept
        self._due += to - self._start
        self._start, self._end = to, to + len(kept)

    def _lend(self, view: memoryview) -> Lent:
        buffer = self._buffer
        buffer.lent += 1

        def give_back() -> None:
            buffer.lent -= 1
            if buffer.lent == 0 and buffer is not self._buffer and len(self._spare) < _SPARE:
                self._spare.append(buffer)

        return Lent(view, give_back)

    def shrink(self) -> bool:
        """Gives memory that large frames took back to the system. False while some of it is lent out."""
        self._spare.clear()
        if self._buffer.lent:
            return False
        kept = bytes(self._buffer.view[self._start : self._end])
        self._buffer = _Buffer(len(self._buffer.data))
        self._buffer.view[: len(kept)] = kept
        self._due -= self._start
        self._start, self._end = 0, len(kept)
        return True

    def feed(self, count: int) -> list[Frame]:
        """`count` bytes were put into `space()` or `pages()`. Returns the frames completed by them."""
        before, self._end = self._end, self._end + count
        if self._watchful and not self.hunting:
            at = self._buffer.data.rfind(MAGIC, max(self._start, before - len(MAGIC) + 1), self._end)
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
        at = self._buffer.data.find(MAGIC, self._start, end)
        while at >= 0 and (following := self._buffer.data.find(MAGIC, at + 1, end)) >= 0:
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
            at = self._buffer.data.find(MAGIC, self._start, self._end)
            if at < 0:
                self._start = max(self._start, self._end - len(MAGIC) + 1)
                return False
            self._start = at
            if self._end - at < len(MAGIC) + HEADER.size:
                return False
            header = Header(*HEADER.unpack_from(self._buffer.data, at + len(MAGIC)))
            if sane(header) and self._accept(header):
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
        header = Header(*HEADER.unpack_from(self._buffer.data, start))
        if not sane(header):
            if not self._watchful:
                raise ProtocolError(f"senseless frame header {bytes(self._buffer.view[start : start + HEADER.size]).hex()}")
            self.hunting = True
            return self._next() if self._hunt() else None
        body = start + HEADER.size
        if self._end - body < header.length:
            self._due = body + header.length
            return None
        self._start = body + header.length
        view = self._buffer.view[body : self._start]
        if self._lends and header.length >= _LENT_FROM and header.type == DATA:
            return Frame(header.type, header.flags, header.stream, header.generation, header.offset, b"", self._lend(view))
        return Frame(header.type, header.flags, header.stream, header.generation, header.offset, bytes(view))
