"""This terminal, or these pipes, and a command in a sandbox: input, output, size, signals.

On a terminal the command has one of the same size, and this one is raw: Ctrl-C and the rest are keys for the sandbox. Elsewhere standard input is passed on,
and SIGINT, SIGTERM and SIGHUP kill the command.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import aclosing, suppress
from typing import Any, cast

from torpor.apps.console import SIGNALS, Stdin, raw, size, write_all
from torpor.cli.show import Screen
from torpor.client.answers import Output
from torpor.client.commands import AsyncProcess
from torpor.client.errors import ClientError
from torpor.client.terminals import AsyncTerminal


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
