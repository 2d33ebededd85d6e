"""Reading a large file: a thread fills pipes with its pages, the loop sends them on."""

from __future__ import annotations

import errno
import os

from torpor.guest.conversation import Request
from torpor.guest.faults import fault
from torpor.guest.loads import Load, LoadSender, Pipe
from torpor.guest.loop import Loop
from torpor.wire import guest as wire

_PIPES = 4
"""As many as a window has room for: a thread's turn costs as much as the pages of one."""
FROM = 65536
"""Bytes from which on a pipe is worth its making."""


class Download:
    """Sends `length` bytes of an open file from `offset` on, or up to its end, on the request's stream; `first` is a pipe with the first `filled` of them.
    Owns the file and the pipe. What changes in the file meanwhile may or may not be seen; after a broken connection it is read again from where the host
    says."""

    def __init__(self, loop: Loop, request: Request, file: int, offset: int, length: int, first: Pipe, filled: int) -> None:
        self._loop = loop
        self._file = file
        self._offset = offset
        self._length = length
        self._free: list[Pipe] = []
        self._made = 1
        self._busy = self._over = False
        self._life = 0
        """Counts rewinds: what was filled before one is not for after it."""
        self._sender = LoadSender()
        self._sender.rewound = self._rewind
        self._stream = request.stream(sender=self._sender)
        self._stream.on_room = self._step
        self._stream.on_close = self._stop
        self._filled([first], self._life, [filled], None)

    def _step(self) -> None:
        sender, at = self._sender, self._sender.top
        rest = self._length - at
        sizes: list[int] = []
        while rest and sender.limit - at >= (most := min(wire.BULK_PAYLOAD, rest)) and len(sizes) < len(self._free) + _PIPES - self._made:
            sizes.append(most)
            at, rest = at + most, rest - most
        if self._busy or self._over or sender.ended:
            return
        if self._length == sender.top:
            self._end()
        elif sizes:
            self._fill(sizes)

    def _fill(self, sizes: list[int]) -> None:
        try:
            while len(self._free) < len(sizes):
                self._free.append(Pipe())
                self._made += 1
        except OSError as error:
            if self._made == 0:
                self._end(error)
                return
            del sizes[len(self._free) :]  # with those that there are; one comes back when it was sent
            if not sizes:
                return
        pipes = [self._free.pop() for _ in sizes]
        life, begin = self._life, self._offset + self._sender.top
        self._busy = True

        def work() -> list[int]:
            at, counts = begin, []
            for pipe, size in zip(pipes, sizes, strict=True):
                counts.append(pipe.fill(self._file, at, size))
                at += counts[-1]
                if counts[-1] < size:
                    break
            return counts

        self._loop.in_thread(work, lambda counts, error: self._filled(pipes, life, counts, error))

    def _filled(self, pipes: list[Pipe], life: int, counts: list[int] | None, error: BaseException | None) -> None:
        self._busy = False
        if self._over or life != self._life or counts is None:
            for pipe in pipes:
                self._discard(pipe)
            if self._over:
                self._close()
            elif life == self._life:
                self._end(error)
        else:
            counts += [0] * (len(pipes) - len(counts))
            for pipe, count in zip(pipes, counts, strict=True):
                if count:
                    self._sender.add(Load(pipe, count, self._done))
                else:
                    self._free.append(pipe)
            if counts[-1] == 0:
                self._end()
        self._step()
        self._stream.wake()

    def _end(self, error: BaseException | None = None) -> None:
        self._sender.end(wire.to_json({"error": fault(error)}) if error is not None else b"")
        self._stream.wake()

    def _done(self, load: Load, whole: bool) -> None:
        if whole and not self._over:
            self._free.append(load.pipe)
        else:
            self._discard(load.pipe)
        if load.failure is not None:
            self._life += 1
            self._end(load.failure)
        self._step()

    def _discard(self, pipe: Pipe) -> None:
        """One that may not be empty is not used again."""
        pipe.close()
        self._made -= 1

    def _rewind(self, _offset: int) -> None:
        self._life += 1
        self._step()

    def _stop(self) -> None:
        """The host has closed the stream, or the conversation ended."""
        if not self._over:
            self._over = True
            self._sender.drop()
            if not self._busy:
                self._close()

    def _close(self) -> None:
        for pipe in self._free:
            pipe.close()
        self._free.clear()
        file = self._file
        self._loop.in_thread(lambda: os.close(file), _closed)


def _closed(_result: None, error: BaseException | None) -> None:
    if error is not None:
        raise error


def first_load(file: int, offset: int, most: int) -> tuple[Pipe, int] | None:
    """A pipe with the beginning of what is to be sent, or None where the file system knows no splice(2). Blocks."""
    pipe = Pipe()
    try:
        return pipe, pipe.fill(file, offset, min(wire.BULK_PAYLOAD, most))
    except OSError as error:
        pipe.close()
        if error.errno != errno.EINVAL:
            raise
        return None
    except BaseException:
        pipe.close()
        raise
