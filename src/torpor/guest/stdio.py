"""A command's standard input and output: pipes or a terminal on one side, rings and streams on the other. commands.py says when output is kept and dropped."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pty
import select
import struct
import termios
from typing import Any, Protocol

from torpor.guest import users
from torpor.guest.conversation import Stream
from torpor.guest.loop import Loop
from torpor.wire import guest as wire

_PIECE = 32768
_PIECES_A_TURN = 4
_TTY_GROUP = 5  # Debian's, and what devpts is mounted with
Json = dict[str, Any]


class Ring(wire.Sender):
    """A sender that keeps what was consumed too, up to the command's budget."""

    __slots__ = ("attached",)

    def __init__(self) -> None:
        super().__init__()
        self.attached = False

    def forget(self) -> None:
        """Consumed bytes stay for a later attach; `shrink` drops them."""

    def shrink(self, count: int) -> int:
        """Drops up to `count` of the oldest bytes, none that an attached host still needs. Returns how many went."""
        free = (self.acked if self.attached else self.top) - self.base
        count = min(count, free)
        if count > 0:
            del self.data[:count]
            self.base += count
        return count

    def attach(self, offset: int) -> int:
        """A new host reads from `offset`, or the first byte still held, or the top. Returns where it begins."""
        start = min(max(offset, self.base), self.top)
        self.start = self.acked = self.position = start
        self.limit = start + wire.WINDOW
        self.held = self._end_sent = False
        self.attached = True
        return start

    def detach(self) -> None:
        self.attached = False


class Owner(Protocol):
    """The command, as its descriptors see it. `terminal_fd` is the terminal's master, -1 without one; `budget` bounds what the rings hold together."""

    loop: Loop
    budget: int
    terminal_fd: int

    def trim(self) -> None: ...

    def tell(self, **fields: Any) -> None: ...

    def close_terminal(self) -> None: ...

    def output_closed(self) -> None: ...


class Output:
    """One output descriptor of a command, its ring, and the stream of the attached host."""

    def __init__(self, command: Owner, channel: int, fd: int) -> None:
        self.command = command
        self.channel = channel
        self.fd = fd
        self.ring = Ring()
        self.stream: Stream | None = None
        self.idle = False
        """The last read found nothing: all that was written is in the ring."""
        self._stopped = self._wide = False
        self._short = False
        """The last read brought less than it could have."""

    def begin(self) -> None:
        """The descriptor is registered, non-blocking, and from now on ours."""
        self.command.loop.hand_over(self.fd, self._on_readable)

    def _on_readable(self, events: int) -> None:
        """A bounded number of pieces per turn, so that a flooding command does not starve the others."""
        for _ in range(_PIECES_A_TURN):
            if not self.read() or (self._short and not events & select.EPOLLHUP):
                return

    def read(self) -> bool:
        """One piece; True if there may be more."""
        if self.fd < 0 or self._stopped:
            return False
        try:
            data = os.read(self.fd, _PIECE)
        except BlockingIOError:
            self.idle = True
            return False
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            data = b""  # a terminal whose last user has gone
        if not data:
            self.close()
            self.end()
            self.command.output_closed()
            return False
        self.idle = False
        if not self.ring.ended:
            self.ring.write(data)
            self.command.trim()
            self._regulate()
            if self.stream is not None:
                self.stream.wake()
        self._short = len(data) < _PIECE
        if self._short:
            return True
        if not self._wide and self.command.terminal_fd < 0:
            # Much is coming: fewer switches between the command and the agent.
            self._wide = True
            with contextlib.suppress(OSError):
                fcntl.fcntl(self.fd, fcntl.F_SETPIPE_SZ, wire.WINDOW)
        return True

    def catch_up(self) -> None:
        """All that was written before this is in the ring, unless that is full."""
        for _ in range(wire.WINDOW // _PIECE + 1):  # a pipe holds no more; what a flooding command writes meanwhile is another turn's
            if not self.read() or self._short:
                return

    def _regulate(self) -> None:
        """Reads on only while the ring can take it."""
        full = self.ring.attached and not self.ring.ended and self.ring.pending >= max(self.command.budget, wire.WINDOW)
        if full != self._stopped and self.fd >= 0:
            self._stopped = full
            self.command.loop.modify(self.fd, 0 if full else select.EPOLLIN)

    def end(self) -> None:
        """The end is told a turn later: that of the other stream and of the command come with it more often than not, and travel in the same write."""
        if not self.ring.ended:
            self.ring.end()
            self.command.loop.soon(self._tell_end)

    def _tell_end(self) -> None:
        if self.stream is not None:
            self.stream.wake()

    def settle(self) -> bool:
        """The grace is over: ends the stream unless there is still something to read that the ring has no room for."""
        while not self.idle and self.read():
            pass
        if self._stopped:
            return False
        self.end()
        return True

    def close(self) -> None:
        """End of file: nobody can write here any more."""
        self.command.loop.unregister(self.fd)
        if self.fd == self.command.terminal_fd:
            self.command.close_terminal()
        else:
            os.close(self.fd)
        self.fd = -1

    def attach(self, stream: Stream) -> None:
        self.stream = stream
        stream.on_room = self._on_room
        stream.on_close = lambda: self.detach(stream)
        stream.wake()

    def _on_room(self) -> None:
        self.command.trim()
        self._regulate()

    def detach(self, stream: Stream) -> None:
        if self.stream is stream:
            self.stream = None
            self.ring.detach()
            self.command.trim()
            self._regulate()


class Taker(Protocol):
    """Who wants to know that a piece of input has gone."""

    def consumed(self, count: int) -> None: ...


class Input:
    """Bytes on their way into a command's stdin or terminal."""

    def __init__(self, command: Owner, fd: int) -> None:
        self.command = command
        self.fd = fd
        self.broken = False
        self.discarded = 0
        """Bytes that came when nobody could read them any more."""
        self._waiting: list[tuple[bytes, Taker | None]] = []
        self._ending = False
        self._watched = False
        if fd >= 0:
            os.set_blocking(fd, False)

    def take(self, data: bytes, taker: Taker) -> None:
        """`taker` is told how much of it went, once it has; an empty piece goes when all before it has gone."""
        self._waiting.append((data, taker))
        self.flush()

    def finish(self) -> None:
        self._ending = True
        self.flush()

    def flush(self) -> None:
        while self._waiting:
            data, taker = self._waiting[0]
            open_ = self.fd >= 0 and not self.broken
            try:
                written = os.write(self.fd, data) if open_ else len(data)
            except BlockingIOError:
                self._watch(True)
                return
            except OSError:
                self._break()
                continue
            if not open_:
                self.discarded += written
            if written < len(data):
                self._waiting[0] = (data[written:], taker)
            else:
                self._waiting.pop(0)
            if taker is not None:
                taker.consumed(written)
        self._watch(False)
        if self._ending:
            self._ending = False
            if self.command.terminal_fd >= 0:
                # VEOF as the terminal is set now; closing the master would hang it up.
                self._waiting.append((termios.tcgetattr(self.fd)[6][termios.VEOF], None))
                self.flush()
            else:
                self.close()

    def _watch(self, wanted: bool) -> None:
        """Waits for room; a terminal's descriptor is watched for output already."""
        if wanted == self._watched or self.fd < 0:
            return
        self._watched = wanted
        loop = self.command.loop
        if wanted:
            self._poll_fd = os.dup(self.fd)
            loop.register(self._poll_fd, select.EPOLLOUT, lambda _events: self.flush())
        else:
            loop.unregister(self._poll_fd)
            os.close(self._poll_fd)

    def _break(self) -> None:
        self.broken = True
        self._watch(False)
        self.command.tell(stdin="broken")

    def close(self) -> None:
        if self.fd >= 0:
            self._watch(False)
            if self.fd != self.command.terminal_fd:
                os.close(self.fd)
            self.fd = -1
            if self._waiting:
                self.flush()  # into nothing: whoever waits must not wait for ever


class Pipes:
    """The descriptors of one spawn: the child's ends are closed in any case, ours on failure. The outputs among ours are registered with the loop, to nobody
    yet."""

    def __init__(self, loop: Loop, args: Json) -> None:
        self._loop = loop
        self.child: list[int] = []
        self.ours: list[int] = []
        self.stdin: int | None = None
        self.slave: str | None = None
        try:
            if args.get("terminal"):
                self._terminal(args["terminal"])
            else:
                self._pipes(bool(args.get("stdin")))
        except BaseException:
            self.close_child()
            self.close_ours()
            raise
        self.outputs = self.ours[:2]
        for fd in self.outputs:
            os.set_blocking(fd, False)
            loop.register(fd, select.EPOLLIN, _nothing)

    def _terminal(self, size: list[int]) -> None:
        master, slave = pty.openpty()
        self.ours, self.child = [master], [slave]
        os.set_inheritable(master, False)
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", int(size[0]), int(size[1]), 0, 0))
        self.slave = os.ttyname(slave)

    def _pipes(self, stdin: bool) -> None:
        for _ in range(2):
            read, write = os.pipe2(os.O_CLOEXEC)
            self.ours.append(read)
            self.child.append(write)
        if stdin:
            self.stdin, write = os.pipe2(os.O_CLOEXEC)
            self.ours.append(write)
            self.child.append(self.stdin)

    def own(self, user: users.User) -> None:
        """The terminal belongs to the user, as login would have it (group tty, 0620)."""
        if self.slave is not None and users.foreign(user):
            os.fchown(self.child[0], user.uid, _TTY_GROUP)
            os.fchmod(self.child[0], 0o620)

    def close_child(self) -> None:
        while self.child:
            os.close(self.child.pop())

    def close_ours(self) -> None:
        while self.ours:
            fd = self.ours.pop()
            self._loop.unregister(fd)
            os.close(fd)


def _nothing(_events: int) -> None:
    """Nothing can come before the command."""
