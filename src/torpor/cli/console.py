"""This terminal, or these pipes, and a command in a sandbox: input, output, size, signals.

On a terminal the command has one of the same size, and this one is raw: Ctrl-C and the rest are keys for the sandbox. Elsewhere standard input is passed on,
and SIGINT, SIGTERM and SIGHUP kill the command.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import termios
import threading
import tty
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import aclosing, contextmanager, suppress
from typing import Any, cast

from torpor.cli.show import Screen
from torpor.client.answers import Output
from torpor.client.commands import AsyncProcess
from torpor.client.errors import ClientError
from torpor.client.terminals import AsyncTerminal

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PIECE = 65536


def on_terminal() -> bool:
    return os.isatty(0) and os.isatty(1)


def size() -> tuple[int, int]:
    """Columns and rows."""
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


class _Signals:
    """While it is a context, the first of SIGNALS kills the command; `exit_code` is then theirs."""

    def __init__(self, kill: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._kill = kill
        self._killing: set[asyncio.Task[None]] = set()
        self.exit_code = 0

    def __enter__(self) -> _Signals:
        for number in SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, self.come, number)
        return self

    def __exit__(self, *_: object) -> None:
        for number in SIGNALS:
            asyncio.get_running_loop().remove_signal_handler(number)
        for task in self._killing:
            task.cancel()

    def come(self, number: int) -> None:
        if not self.exit_code:
            self.exit_code = 128 + number
            self._killing.add(asyncio.create_task(self._kill()))


async def follow(process: AsyncProcess, screen: Screen, *, stdin: bool) -> int:
    """A command whose streams are ours, to its end. The exit code, 128 + a signal's number when one came. Whatever happens here, the command is killed."""

    async def feed() -> None:
        source = Stdin()
        while data := await source.next():
            await process.write(data)
        await process.close_stdin()

    feeding = asyncio.create_task(feed()) if stdin else None
    with _Signals(process.kill) as signals:
        try:
            async with aclosing(cast("Any", process.output())) as pieces:
                async for piece in pieces:
                    await show(piece, screen)
            result = await process.wait()
        except BaseException as error:
            if not isinstance(error, ClientError):
                await _quietly(process.kill())
            raise
        finally:
            await _stop(feeding)
    return signals.exit_code or result.exit_code


async def show(piece: Output, screen: Screen) -> None:
    if piece.lost:
        screen.note(f"{piece.lost} bytes of {piece.stream} are gone: the sandbox remembers the last MiB.")
    await asyncio.to_thread(write_all, 1 if piece.stream == "stdout" else 2, piece.data)


async def live(terminal: AsyncTerminal) -> int:
    """This terminal is that one, until its command ends. A terminal of ours that hangs up ends the command."""
    loop = asyncio.get_running_loop()
    resizing: set[asyncio.Task[None]] = set()

    def resize() -> None:
        with suppress(OSError):
            columns, rows = size()
            resizing.add(asyncio.create_task(_quietly(terminal.resize(cols=columns, rows=rows))))

    async def feed() -> None:
        source = Stdin()
        while data := await source.next():
            await terminal.write(data)

    with raw(), _Signals(terminal.kill) as signals:
        loop.add_signal_handler(signal.SIGWINCH, resize)
        resize()
        feeding = asyncio.create_task(feed())
        try:
            async with aclosing(cast("Any", terminal.output())) as output:
                async for data in output:
                    await asyncio.to_thread(write_all, 1, data)
            code = (await terminal.wait()).exit_code
        except BrokenPipeError:
            signals.come(signal.SIGHUP)
            code = (await terminal.wait()).exit_code
        except BaseException as error:
            if not isinstance(error, ClientError):
                await _quietly(terminal.kill())
            raise
        finally:
            loop.remove_signal_handler(signal.SIGWINCH)
            await _stop(feeding, *resizing)
    return signals.exit_code or code


async def _quietly(work: Awaitable[None]) -> None:
    """What is said to a command that may have ended, or to a server that may be gone."""
    with suppress(ClientError, TimeoutError):
        async with asyncio.timeout(10):
            await work


async def _stop(*tasks: asyncio.Task[None] | None) -> None:
    running = [task for task in tasks if task is not None]
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
