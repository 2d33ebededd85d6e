"""Commands in a sandbox: run to their end, started with streams both ways, left in the background, connected to again, listed, signalled."""

from __future__ import annotations

import asyncio
import base64
import inspect
import json
import math
import secrets
import signal as signals
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, cast

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from torpor.client.answers import Background, Output, ProcessState, Result, read, read_list
from torpor.client.attachment import PATIENCE, PIECE, Attachment
from torpor.client.errors import BadAnswer, ClientError, CommandFailed
from torpor.client.transport import Http, segment

Command = str | Sequence[str]
"""A line for /bin/sh, or a program and its arguments."""
OnOutput = Callable[[Output], Awaitable[None] | None]
Input = bytes | str | Iterable[bytes] | AsyncIterable[bytes]


def argv_of(command: Command) -> tuple[str, list[str]]:
    """Program and arguments. Raises ValueError for nothing."""
    words = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
    if not words or not words[0]:
        raise ValueError("The command is empty.")
    return words[0], words[1:]


def _seconds(timeout: float | None) -> int | None:
    """The API counts whole seconds."""
    return None if timeout is None else max(1, math.ceil(timeout))


class AsyncProcess(Attachment):
    """A command that is followed. As a context, leaving it leaves the command running.

    When the connection breaks, or the server restarts, it goes on where it broke off, for up to `reattach` seconds: no byte of output is lost or doubled,
    unless the command said more than 1 MiB meanwhile (`Output.lost`). If input was under way then, the command is killed and InputLost raised.
    """

    def __init__(
        self,
        http: Http,
        sandbox_id: str,
        start: Mapping[str, Any] | None,
        selector: str,
        offsets: tuple[int, int],
        patience: float,
        *,
        until: str = "",
    ) -> None:
        super().__init__(http, sandbox_id, patience)
        self._until = until
        self._first = start
        self._selector = selector
        self._offsets = {"stdout": offsets[0], "stderr": offsets[1]}
        self._writing = asyncio.Lock()
        self._closing = False

    async def _start(self) -> ClientConnection:
        socket = await self._dial("/exec/stream")
        try:
            await socket.send(json.dumps(self._first))
        except ConnectionClosed:
            await socket.close()
            raise
        return socket

    async def _resume(self) -> ClientConnection:
        where = f"stdout_offset={self._offsets['stdout']}&stderr_offset={self._offsets['stderr']}"
        where += f"&until={self._until}" if self._until else ""
        return await self._dial(f"/processes/{segment(self.tag or self._selector)}/stream?{where}&encoding=base64")

    def _output(self, frame: dict[str, Any]) -> Output | None:
        return self._piece(str(frame["type"]), frame) if frame.get("type") in ("stdout", "stderr") else None

    def output(self) -> AsyncIterator[Output]:
        """Pieces of both streams as they come, until the command's end. One reader. A command waits when its output is not read and 1 MiB is full. Raises
        InvalidState when the sandbox was paused, ConnectionLost when the server did not come back; the command runs on then."""
        return self.pieces()

    async def wait(self, *, on_stdout: OnOutput | None = None, on_stderr: OnOutput | None = None) -> Result:
        """Reads what is left of the output and returns how it ended. What goes to a function is not kept in the result. Raises as `output`."""
        kept = {"stdout": bytearray(), "stderr": bytearray()}
        to = {"stdout": on_stdout, "stderr": on_stderr}
        async with aclosing(cast("Any", self.pieces())) as pieces:
            async for piece in pieces:
                function = to[piece.stream]
                if function is None:
                    kept[piece.stream] += piece.data
                else:
                    told = function(piece)
                    if inspect.isawaitable(told):
                        await told
        end = await self._ended()
        return Result(end.exit_code, bytes(kept["stdout"]), bytes(kept["stderr"]), end.timed_out, end.oom, end.signal)

    async def write(self, data: bytes | str) -> None:
        """Gives the command input; it must have been started with `stdin`. Returns when all of it is under way, at most 256 KiB ahead of what the sandbox took:
        a command that does not read makes it wait. After the command's end it does nothing. Raises InputLost, ConnectionLost."""
        given = memoryview(data.encode() if isinstance(data, str) else data)
        async with self._writing:
            for at in range(0, len(given), PIECE):
                piece = bytes(given[at : at + PIECE])
                await self._give(piece, {"type": "stdin", "data": base64.b64encode(piece).decode()})

    async def close_stdin(self) -> None:
        """End of file."""
        async with self._writing:
            async with self._moved:  # so that no end of file overtakes, on a new connection, what was on its way
                await self._moved.wait_for(lambda: self._over or self._sent == self._taken)
            self._closing = True
            await self._say({"type": "stdin_close"})

    async def _after_return(self) -> None:
        if self._closing:
            await self._say({"type": "stdin_close"})

    async def signal(self, number: int) -> None:
        """Signals the command's process group."""
        await self._say({"type": "signal", "signal": int(number)})

    async def kill(self) -> None:
        """Kills the command and all it started. Returns when the server was told; `wait` tells when it is so."""
        await self._say({"type": "stop"})


class AsyncCommands:
    """The commands of one sandbox."""

    def __init__(self, http: Http, sandbox_id: str) -> None:
        self._http = http
        self._sandbox_id = sandbox_id
        self._path = f"/v1/capsules/{segment(sandbox_id)}"

    async def run(
        self,
        command: Command,
        *,
        envs: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        stdin: Input | None = None,
        timeout: float | None = None,
        on_stdout: OnOutput | None = None,
        on_stderr: OnOutput | None = None,
        check: bool = False,
        tag: str | None = None,
        reattach: float = PATIENCE,
    ) -> Result:
        """Runs a command to its end. `timeout` seconds (whole ones, rounded up) after which it and all it started are killed; the result then says
        `timed_out`. A stream that goes to a function is not kept. With `check`, an exit code other than 0 is CommandFailed. When this is cancelled or
        interrupted, the command is killed. Never run twice: a connection that breaks before the start is known of is ConnectionLost."""
        process = await self.start(command, envs=envs, cwd=cwd, user=user, stdin=stdin is not None, timeout=timeout, tag=tag, reattach=reattach)
        async with process:
            feeding = asyncio.create_task(_feed(process, stdin)) if stdin is not None else None
            try:
                result = await process.wait(on_stdout=on_stdout, on_stderr=on_stderr)
            except BaseException as error:
                if not isinstance(error, ClientError):
                    await asyncio.shield(_end(process))
                raise
            finally:
                if feeding is not None:
                    feeding.cancel()
                    await asyncio.gather(feeding, return_exceptions=True)
        if feeding is not None and not feeding.cancelled() and (failure := feeding.exception()) is not None:
            raise failure
        if check and result.exit_code != 0:
            raise CommandFailed(f"The command ended with {result.exit_code}: {result.stderr.strip()[-500:] or 'it said nothing on stderr'}", result)
        return result

    async def start(
        self,
        command: Command,
        *,
        envs: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        stdin: bool = False,
        timeout: float | None = None,
        tag: str | None = None,
        reattach: float = PATIENCE,
    ) -> AsyncProcess:
        """Starts a command and follows it. `tag` finds it again (one is made up unless given); `stdin`: whether it will be given input. Raises NotFound for a
        program that is not there, InvalidState for a sandbox that does not run."""
        program, arguments = argv_of(command)
        frame: dict[str, Any] = {"type": "start", "cmd": program, "args": arguments, "envs": dict(envs) if envs else None, "cwd": cwd, "user": user}
        frame |= {"tag": tag or f"exec-{secrets.token_hex(8)}", "timeout_sec": _seconds(timeout), "stdin": stdin, "encoding": "base64"}
        process = AsyncProcess(self._http, self._sandbox_id, {name: value for name, value in frame.items() if value is not None}, "", (0, 0), reattach)
        return await process.begin()

    async def background(
        self,
        command: Command,
        *,
        envs: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        stdin: bytes | str | None = None,
        timeout: float | None = None,
        tag: str | None = None,
    ) -> Background:
        """Starts a command and leaves it alone; `connect` follows it later. `stdin`: up to 64 KiB that it may read."""
        program, arguments = argv_of(command)
        body: dict[str, Any] = {"cmd": program, "args": arguments, "envs": dict(envs) if envs else None, "cwd": cwd, "user": user, "background": True}
        body |= {"tag": tag, "timeout_sec": _seconds(timeout)}
        if stdin is not None:
            given = stdin.encode() if isinstance(stdin, str) else stdin
            body |= {"stdin": base64.b64encode(given).decode(), "stdin_encoding": "base64"}
        answer = await self._http.ask("POST", f"{self._path}/exec", json={name: value for name, value in body.items() if value is not None})
        return read(Background, answer.tree())

    async def connect(self, process: int | str, *, stdout_offset: int = 0, stderr_offset: int = 0, reattach: float = PATIENCE) -> AsyncProcess:
        """Follows a command by its pid or tag, from these bytes of its streams on as far as the sandbox remembers them (the last 1 MiB); one that has ended
        too. Raises NotFound."""
        found = AsyncProcess(self._http, self._sandbox_id, None, str(process), (stdout_offset, stderr_offset), reattach)
        return await found.begin(attach=True)

    async def logs(self, process: int | str, *, stdout_offset: int = 0, stderr_offset: int = 0, reattach: float = PATIENCE) -> AsyncIterator[Output]:
        """What the sandbox remembers of a command's output up to now (the last 1 MiB of each stream), from these bytes on; ends when all of it was read, also
        while the command runs. Raises NotFound, and as `AsyncProcess.output`."""
        offsets = (stdout_offset, stderr_offset)
        async with await AsyncProcess(self._http, self._sandbox_id, None, str(process), offsets, reattach, until="now").begin(attach=True) as found:
            async with aclosing(cast("Any", found.pieces())) as pieces:
                async for piece in pieces:
                    yield piece

    async def list(self, *, ended: bool = False) -> list[ProcessState]:
        """The commands that were started through the API and run; with `ended`, also those that ended, as far as they are remembered."""
        tree = (await self._http.ask("GET", f"{self._path}/processes", params={"ended": "true"} if ended else None)).tree()
        if not isinstance(tree, dict):
            raise BadAnswer("The server sent no list of processes.")
        return read_list(ProcessState, tree.get("processes"))

    async def kill(self, process: int | str, *, signal: int = 9) -> None:
        """Kills a command and all it started; with SIGTERM, asks it to end. Raises NotFound when it does not run, ValueError for another signal (connect, then
        `signal`, sends any)."""
        if signal not in (signals.SIGKILL, signals.SIGTERM):
            raise ValueError("SIGKILL or SIGTERM")
        name = signals.Signals(signal).name
        await self._http.ask("DELETE", f"{self._path}/processes/{segment(str(process))}", params={"signal": name}, repeatable=False)


async def threaded(given: Iterable[bytes]) -> AsyncIterator[bytes]:
    """Pieces of a plain iterable, made in a thread: it may block."""
    found = iter(given)
    while (piece := await asyncio.to_thread(lambda: next(found, None))) is not None:
        yield piece


async def _feed(process: AsyncProcess, given: Input) -> None:
    if isinstance(given, (bytes, str)):
        await process.write(given)
    elif isinstance(given, AsyncIterable):
        async for piece in given:
            await process.write(piece)
    else:
        async for piece in threaded(given):
            await process.write(piece)
    await process.close_stdin()


async def _end(process: AsyncProcess) -> None:
    """Kills, and waits until it is so; for as long as a server takes that is there."""
    try:
        async with asyncio.timeout(10):
            await process.kill()
            await process.wait()
    except (ClientError, TimeoutError):
        pass
