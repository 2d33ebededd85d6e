"""A child's output, drained from a pipe into a file of bounded size: the first half of the limit as it came, then the last half, with a line between.

A flood costs the keeper little: past the limit the pipe is read at most once a tick, and the writer, whose end does not block, loses what does not fit.
"""

from __future__ import annotations

import os
from collections import deque

PIECE = 65536


class BoundedOutput:
    """`fd`: the read end, non-blocking; owned. `drain` reads; `flush` brings the file up to date."""

    def __init__(self, path: str, fd: int, limit: int) -> None:
        self.fd = fd
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._head = limit // 2
        self._written = 0
        self._keep = limit - self._head
        self._tail: deque[bytes] = deque()
        self._tail_bytes = 0
        self._dropped = 0
        self._stale = False

    @property
    def flooding(self) -> bool:
        """True once the first half is full: the caller then reads by the tick."""
        return self._written >= self._head

    def drain(self) -> bool:
        """Reads what is there, one piece; False at the end of the stream."""
        try:
            data = os.read(self.fd, PIECE)
        except BlockingIOError:
            return True
        if not data:
            return False
        room = self._head - self._written
        if room > 0:
            self._write(data[:room], self._written)
            self._written += len(data[:room])
            data = data[room:]
        if data:
            self._push(data)
        return True

    def _push(self, data: bytes) -> None:
        self._stale = True
        self._tail.append(data)
        self._tail_bytes += len(data)
        while self._tail_bytes > self._keep:
            first = self._tail.popleft()
            cut = min(len(first), self._tail_bytes - self._keep)
            if cut < len(first):
                self._tail.appendleft(first[cut:])
            self._tail_bytes -= cut
            self._dropped += cut

    def flush(self) -> None:
        """Writes the last half out. Safe to call when nothing changed."""
        if not self._stale:
            return
        self._stale = False
        gap = f"\n[{self._dropped} bytes left out]\n".encode() if self._dropped else b""
        text = gap + b"".join(self._tail)
        self._write(text, self._head)
        try:
            os.ftruncate(self._file, self._head + len(text))
        except OSError:
            return  # as in _write

    def _write(self, data: bytes, offset: int) -> None:
        try:
            os.pwrite(self._file, data, offset)
        except OSError:
            # A full disk must not take the keeper, or anybody's exit record, with it: the line is lost and the child runs on.
            self._dropped += len(data)

    def close(self) -> None:
        self.flush()
        os.close(self.fd)
        os.close(self._file)
