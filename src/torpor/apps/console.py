"""The terminal or the pipes of this process: raw mode, size, standard input, and output to the last byte. Standard library only: the commands of the command
line that load it must be there at once."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import termios
import threading
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Each of them ends a command that is followed."""
PIECE = 65536


def on_terminal() -> bool:
    return os.isatty(0) and os.isatty(1)


def size() -> tuple[int, int]:
    """Columns and rows. Raises OSError when the terminal has hung up."""
    found = os.get_terminal_size(1)
    return found.columns or 80, found.lines or 24


@contextmanager
def raw() -> Iterator[None]:
    """Raw mode inside, the old mode afterwards. What was typed ahead is kept."""
    before = termios.tcgetattr(0)
    tty.setraw(0, termios.TCSADRAIN)
    try:
        yield
    finally:
        with suppress(termios.error):  # it has hung up
            termios.tcsetattr(0, termios.TCSADRAIN, before)


class Stdin:
    """Our standard input, read by a thread of its own: a regular file or a slow terminal cannot be waited for otherwise."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[bytes] = asyncio.Queue()
        self._room = threading.Semaphore(4)
        threading.Thread(target=self._read, name="stdin", daemon=True).start()

    def _read(self) -> None:
        while True:
            self._room.acquire()
            try:
                data = os.read(0, PIECE)
            except OSError:
                data = b""
            try:
                self._loop.call_soon_threadsafe(self._pieces.put_nowait, data)
            except RuntimeError:
                return
            if not data:
                return

    async def next(self) -> bytes:
        """b'' at the end of input."""
        data = await self._pieces.get()
        self._room.release()
        return data


def write_all(descriptor: int, data: bytes) -> None:
    """Raises BrokenPipeError when nobody reads any more; a terminal that hung up says EIO."""
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(descriptor, view) :]
    except OSError as error:
        if error.errno == errno.EIO:
            raise BrokenPipeError(error.errno, error.strerror) from error
        raise
