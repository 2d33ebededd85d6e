"""Large frames whose payload never becomes Python's: it waits in a pipe, and splice(2) moves its pages to the port."""

from __future__ import annotations

import errno
import fcntl
import os
from collections import deque
from collections.abc import Callable

from torpor.wire import guest as wire

_PIPE_BYTES = 2 * (wire.BULK_PAYLOAD + wire.HEADER.size)
"""A piece that does not begin with a page takes a slot of the pipe more than it has pages."""


class Pipe:
    """Holds one payload at a time. Raises OSError where there are no descriptors, or no memory for pipes."""

    def __init__(self) -> None:
        self.out, self._in = os.pipe2(os.O_CLOEXEC)
        try:
            fcntl.fcntl(self._in, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        except OSError:
            self.close()
            raise

    def fill(self, file: int, offset: int, most: int) -> int:
        """Takes up to `most` bytes of a file; less only at its end. May block for the disk. Raises OSError, EINVAL where a file system cannot splice."""
        count = 0
        while count < most:
            moved = os.splice(file, self._in, most - count, offset_src=offset + count)
            if moved == 0:
                break
            count += moved
        return count

    def close(self) -> None:
        os.close(self.out)
        os.close(self._in)


class Load:
    """A payload of `left` bytes in a pipe. `done` is called once, with whether all of it went; where not, the pipe is not empty."""

    def __init__(self, pipe: Pipe, size: int, done: Callable[[Load, bool], None]) -> None:
        self.pipe = pipe
        self.left = size
        self.failure: OSError | None = None
        """Bytes got lost, and others took their place: what was sent is worth nothing."""
        self._done = done

    def go_on(self, port: int) -> memoryview | None:
        """Moves bytes to the port. Raises BlockingIOError when it has no room. Returns what must be written in place of bytes that got lost: a virtio port
        that has no memory for its descriptors says 0, and has let go of the pages (drivers/char/virtio_console.c)."""
        moved = os.splice(self.pipe.out, port, self.left)
        if moved:
            self.left -= moved
            return None
        self.failure = OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
        filler, self.left = memoryview(bytes(self.left)), 0
        return filler

    def sent(self) -> None:
        self._done(self, self.failure is None)

    def drop(self) -> None:
        """It is not to be sent, or not to its end."""
        self._done(self, False)


class LoadSender(wire.Sender):
    """Sends loads in the order in which they were added; keeps nothing of what it has sent. After a reconnect it calls `rewound` with the offset from which on
    everything is to be added again, the end too."""

    __slots__ = ("_loads", "_top", "rewound")

    def __init__(self) -> None:
        super().__init__()
        self.window = wire.WIDE_WINDOW
        self._loads: deque[Load] = deque()
        self._top = 0
        self.rewound: Callable[[int], None] = lambda _offset: None

    @property
    def top(self) -> int:
        return self._top

    def add(self, load: Load) -> None:
        """Within the window: not beyond `limit`."""
        self._loads.append(load)
        self._top += load.left

    def pull_load(self, stream: int, generation: int) -> tuple[bytes, Load] | None:
        """The next frame: its header, and where its payload is."""
        if self.held or not self._loads:
            return None
        load = self._loads.popleft()
        head = wire.HEADER.pack(wire.DATA, 0, 0, load.left, stream, generation, self.position)
        self.position += load.left
        return head, load

    def forget(self) -> None:
        self.base = self.acked

    def resume(self, received: int, consumed: int, limit: int) -> None:
        super().resume(received, consumed, limit)
        self.drop()
        self._top, self.ended = self.position, False
        self.rewound(self.position)

    def drop(self) -> None:
        """Lets go of what was not sent."""
        while self._loads:
            self._loads.popleft().drop()
