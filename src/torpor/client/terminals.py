"""Terminals in a sandbox: a command with a PTY, which outlives whoever looks at it."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any, cast

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from torpor.client.answers import Exit, Output
from torpor.client.attachment import PATIENCE, PIECE, Attachment
from torpor.client.commands import Command, argv_of
from torpor.client.transport import Http


class AsyncTerminal(Attachment):
    """A terminal that is looked at. As a context, leaving it leaves the session running: `connect` with its `tag` and `offset` takes it up again.

    When the connection breaks, or the server restarts, it goes on where it broke off, for up to `reattach` seconds. Keys typed in the moment of the break may
    be lost.
    """

    def __init__(self, http: Http, sandbox_id: str, start: Mapping[str, Any] | None, tag: str, offset: int, patience: float) -> None:
        super().__init__(http, sandbox_id, patience)
        self._first = start
        self._tag = tag
        self._offsets = {"stdout": offset, "stderr": 0}
        self._size: dict[str, Any] | None = None

    async def _start(self) -> ClientConnection:
        return await self._open(dict(self._first or {}))

    async def _resume(self) -> ClientConnection:
        return await self._open({"type": "connect", "tag": self._tag, "offset": self._offsets["stdout"], "encoding": "base64"})

    async def _open(self, frame: dict[str, Any]) -> ClientConnection:
        socket = await self._dial("/pty")
        try:
            await socket.send(json.dumps(frame))
        except ConnectionClosed:
            await socket.close()
            raise
        return socket

    async def _after_return(self) -> None:
        if self._size is not None:
            await self._say(self._size)

    def _output(self, frame: dict[str, Any]) -> Output | None:
        return self._piece("stdout", frame) if frame.get("type") == "output" else None

    @property
    def offset(self) -> int:
        """How many bytes of the session have come, read or not."""
        return self._offsets["stdout"]

    async def output(self) -> AsyncIterator[bytes]:
        """What the terminal shows, until its command ends. One reader. Raises as AsyncProcess.output."""
        async with aclosing(cast("Any", self.pieces())) as pieces:
            async for piece in pieces:
                yield piece.data

    async def wait(self) -> Exit:
        """Reads and drops what is left of the output, and returns how the command ended."""
        async for _ in self.pieces():
            pass
        return await self._ended()

    async def write(self, data: bytes | str) -> None:
        """Types."""
        given = data.encode() if isinstance(data, str) else data
        for at in range(0, len(given), PIECE):
            await self._say({"type": "input", "data": base64.b64encode(given[at : at + PIECE]).decode()})

    async def resize(self, *, cols: int, rows: int) -> None:
        self._size = {"type": "resize", "cols": cols, "rows": rows}
        await self._say(self._size)

    async def kill(self) -> None:
        """Kills the command and all it started."""
        await self._say({"type": "kill"})


class AsyncTerminals:
    """The terminals of one sandbox."""

    def __init__(self, http: Http, sandbox_id: str) -> None:
        self._http = http
        self._sandbox_id = sandbox_id

    async def open(
        self,
        command: Command = ("/bin/bash",),
        *,
        cols: int = 80,
        rows: int = 24,
        envs: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        tag: str | None = None,
        reattach: float = PATIENCE,
    ) -> AsyncTerminal:
        """Starts a command on a terminal of this size. Raises NotFound for a program that is not there, InvalidState for a sandbox that does not run."""
        program, arguments = argv_of(command)
        name = tag or f"pty-{secrets.token_hex(8)}"
        frame = {"type": "start", "cmd": program, "args": arguments, "cols": cols, "rows": rows, "envs": dict(envs) if envs else None, "cwd": cwd}
        frame |= {"user": user, "tag": name, "encoding": "base64"}
        given = {field: value for field, value in frame.items() if value is not None}
        return await AsyncTerminal(self._http, self._sandbox_id, given, name, 0, reattach).begin()

    async def connect(self, tag: str, *, offset: int = 0, reattach: float = PATIENCE) -> AsyncTerminal:
        """Takes up a session by its tag, from this byte on as far as the sandbox remembers (the last 1 MiB). Several may look at one. Raises NotFound."""
        return await AsyncTerminal(self._http, self._sandbox_id, None, tag, offset, reattach).begin(attach=True)
