"""Terminals over a WebSocket.

    client first   {"type": "start", "cmd"?, "args"?, "cols"?, "rows"?, "envs"?, "cwd"?, "user"?, "tag"?, "encoding"?}
              or   {"type": "connect", "tag", "offset"?, "encoding"?}
    client then    {"type": "input", "data"}, or a binary frame; {"type": "resize", "cols", "rows"}; {"type": "kill"}; {"type": "pong"}
    server         {"type": "started", "tag", "pid"}; {"type": "output", "data", "offset"}, or a binary frame; {"type": "exit", "exit_code"};
                   {"type": "error", "data", "fatal"}; {"type": "ping"}

A session outlives its connection: `connect` finds it by its tag and replays what its ring still has from `offset` on. Several may be connected to one.

Output in binary frames, or as base64 in `data`? `"encoding": "binary" | "base64"` says so. The dialect's SDK does not say: its versions up to 0.1 read text
frames only, later ones binary frames only, and both send the same first frame. They are told apart by what they do next: later ones answer a ping at once
and type in binary frames. So a ping goes out first, and output waits for the client's next frame, at most DECIDE_SECONDS.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
from typing import Annotated, Any, Literal

from fastapi import WebSocket
from pydantic import Field
from starlette.types import Message

from torpor.api.auth import Needs, frame_of, of_socket, services_of
from torpor.api.follow import Follower, Hub
from torpor.api.native.commands import alone, environment, select
from torpor.api.native.common import CapsuleId, hub_of, reachable, router
from torpor.api.native.models import Body, Path, Short, Text, Variables
from torpor.api.native.paths import absolute
from torpor.api.native.sockets import MOST_FRAME, conversation, ended, first, parsed, pings, race, send
from torpor.api.native.streams import exit_frame, input_of
from torpor.model.errors import InvalidInput
from torpor.ports.guest import ExecSpec, Guest, Terminal

pty = router("streams")
NEEDS = Needs("sandboxes:exec")
DECIDE_SECONDS = 0.5
Encoding = Literal["binary", "base64"]
Cells = Annotated[int, Field(ge=1, le=65535)]


class Start(Body):
    type: Literal["start"]
    cmd: Annotated[Text, Field(min_length=1)] = "/bin/bash"
    args: list[Text] | None = None
    cols: Cells = 80
    rows: Cells = 24
    envs: Variables | None = None
    cwd: Path | None = None
    user: Short | None = None
    tag: Short | None = None
    encoding: Encoding | None = None


class Connect(Body):
    type: Literal["connect"]
    tag: Annotated[Short, Field(min_length=1)]
    offset: Annotated[int, Field(ge=0, le=1 << 62)] = 0
    encoding: Encoding | None = None


class Resize(Body):
    cols: Cells
    rows: Cells


class Session:
    """One connection to one terminal."""

    def __init__(self, socket: WebSocket, follower: Follower, encoding: Encoding | None) -> None:
        self._socket = socket
        self._follower = follower
        self._fixed = encoding is not None
        self._binary = encoding == "binary"
        self._decided = asyncio.Event()
        self._input: asyncio.Queue[bytes] = asyncio.Queue(maxsize=64)
        if self._fixed:
            self._decided.set()

    async def run(self) -> None:
        """Until the command ends. Raises Disconnected when the client leaves."""
        if not self._fixed:
            await send(self._socket, type="ping")
        await race(self._show(), self._listen(), self._type(), pings(self._socket))

    async def _show(self) -> None:
        try:
            async with asyncio.timeout(DECIDE_SECONDS):
                await self._decided.wait()
        except TimeoutError:
            self._decided.set()
        async for piece in self._follower.output():
            for at in range(0, len(piece.data), MOST_FRAME):
                await self._send_output(piece.data[at : at + MOST_FRAME], piece.offset + at)
        await send(self._socket, **exit_frame(await self._follower.wait()))

    async def _send_output(self, data: bytes, offset: int) -> None:
        if self._binary:
            await self._socket.send_bytes(data)
        else:
            await send(self._socket, type="output", data=base64.b64encode(data).decode(), offset=offset)

    def _decide(self, *, binary: bool) -> None:
        if not self._fixed:
            self._binary = self._binary or binary
        self._decided.set()

    async def _listen(self) -> None:
        while True:
            message = await self._socket.receive()
            if message.get("bytes") is not None:
                self._decide(binary=True)
                await self._input.put(message["bytes"])
            else:
                await self._take(message)

    async def _take(self, message: Message) -> None:
        frame = frame_of(message)
        match frame.get("type"):
            case "input":
                self._decide(binary=False)
                await self._input.put(input_of(frame, "base64"))
            case "resize":
                size = parsed(Resize, frame)
                await self._follower.resize(Terminal(size.rows, size.cols))
            case "kill":
                await self._follower.kill_tree()
            case "pong":
                self._decide(binary=True)

    async def _type(self) -> None:
        """Input in its own line: a resize or a kill passes a program that does not read. What was typed together goes together."""
        while True:
            data = await self._input.get()
            while not self._input.empty():
                data += self._input.get_nowait()
            await ended(self._follower.write(data))


@pty.websocket("/capsules/{capsule_id}/pty")
async def terminal(socket: WebSocket, capsule_id: CapsuleId) -> None:
    async with conversation(socket):
        caller = await of_socket(socket, NEEDS)
        sandbox_id = await reachable(socket, caller, capsule_id)
        wanted = _wanted(await first(socket))
        async with services_of(socket).sandboxes.use(caller, sandbox_id, "pty") as guest:
            if isinstance(wanted, Start):
                tag = wanted.tag or f"pty-{secrets.token_hex(4)}"
                env = await environment(services_of(socket), caller, sandbox_id, wanted.envs)
                async with alone(hub_of(socket), sandbox_id, guest, wanted.tag):
                    follower = await _start(hub_of(socket), sandbox_id, guest, wanted, env, tag)
            else:
                tag = wanted.tag
                info = select([each for each in await guest.processes() if each.terminal], tag, ended=True)
                follower = await hub_of(socket).join(sandbox_id, guest, info.exec_id, stdout_offset=wanted.offset)
            try:
                await send(socket, type="started", tag=tag, pid=follower.pid, exec_id=follower.exec_id)
                await Session(socket, follower, wanted.encoding).run()
            finally:
                follower.leave()


def _wanted(frame: dict[str, Any]) -> Start | Connect:
    match frame.get("type"):
        case "start":
            return parsed(Start, frame)
        case "connect":
            return parsed(Connect, frame)
    raise InvalidInput("The first frame must be start or connect.")


async def _start(hub: Hub, sandbox_id: str, guest: Guest, start: Start, env: dict[str, str], tag: str) -> Follower:
    spec = ExecSpec(
        argv=[start.cmd, *(start.args or ())],
        env=env,
        cwd=absolute(start.cwd, guest.default_home) if start.cwd else "",
        user=start.user or "",
        terminal=Terminal(start.rows, start.cols),
        tag=tag,
    )
    return hub.begin(sandbox_id, guest, await guest.exec(spec))
