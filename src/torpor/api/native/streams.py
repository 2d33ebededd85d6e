"""Commands over WebSockets: `exec/stream` starts one, `processes/{selector}/stream` follows one from an offset on.

    client                                                         server
    {"type": "start", "cmd", "args"?, "envs"?, "cwd"?, "user"?,    {"type": "start", "pid", "tag", "exec_id"}
     "tag"?, "timeout_sec"?, "stdin"?, "encoding"?}                {"type": "stdout" | "stderr", "data", "offset"}
    {"type": "stdin", "data"}  {"type": "stdin_close"}             {"type": "exit", "exit_code", "signal"?, "timed_out"?, "oom"?}
    {"type": "signal", "signal": 15}  {"type": "stop"}             {"type": "stdin_taken", "bytes"}
                                                                   {"type": "error", "data", "code", "reason", "request_id"}

`data` is text; with `"encoding": "base64"` it is base64 both ways, and binary-safe. In text, a character that two pieces share comes whole with the second,
and what is no UTF-8 comes as U+FFFD. `bytes` counts the input of this connection that the guest took. `offset` counts the stream's bytes: whoever lost a
connection goes on with `?stdout_offset=&stderr_offset=`. A client that leaves only detaches; `stop` kills the command and all it started.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import codecs
import secrets
from typing import Annotated, Any, Literal

from fastapi import Query, WebSocket
from pydantic import Field

from torpor.api.auth import Needs, frame_of, of_socket, services_of
from torpor.api.follow import Follower
from torpor.api.native.commands import Selector, alone, environment, select
from torpor.api.native.common import CapsuleId, hub_of, reachable, router
from torpor.api.native.ids import Prefix, inner
from torpor.api.native.models import Body, Path, Short, Text, Variables
from torpor.api.native.paths import absolute
from torpor.api.native.sockets import MOST_FRAME, conversation, ended, first, parsed, race, send
from torpor.model.errors import InvalidInput
from torpor.ports.guest import ExecSpec, Exited, Guest, Output, StreamName

streams = router("streams")
NEEDS = Needs("sandboxes:exec")
Encoding = Literal["utf-8", "base64"]
Offset = Annotated[int, Query(ge=0, le=1 << 62)]


class Start(Body):
    type: Literal["start"]
    cmd: Annotated[Text, Field(min_length=1)]
    args: list[Text] | None = None
    envs: Variables | None = None
    cwd: Path | None = None
    user: Short | None = None
    tag: Short | None = None
    timeout_sec: Annotated[int | None, Field(le=86400)] = None
    stdin: bool = False
    encoding: Encoding = "utf-8"


class Texts:
    """Pieces of output as frames."""

    def __init__(self, encoding: Encoding) -> None:
        self._encoding = encoding
        self._decoders = {name: codecs.getincrementaldecoder("utf-8")("replace") for name in StreamName}
        self._next = dict.fromkeys(StreamName, -1)

    def frames(self, piece: Output) -> list[dict[str, Any]]:
        """A gap before the piece ends what was begun of a character."""
        parts = (Output(piece.stream, piece.offset + at, piece.data[at : at + MOST_FRAME]) for at in range(0, len(piece.data), MOST_FRAME))
        return [frame for frame in map(self._frame, parts) if frame["data"]]

    def _frame(self, piece: Output) -> dict[str, Any]:
        if self._encoding == "base64":
            return {"type": piece.stream.value, "data": base64.b64encode(piece.data).decode(), "offset": piece.offset}
        decoder, text = self._decoders[piece.stream], ""
        if self._next[piece.stream] not in (-1, piece.offset):
            text = decoder.decode(b"", final=True)
            decoder.reset()
        self._next[piece.stream] = piece.offset + len(piece.data)
        return {"type": piece.stream.value, "data": text + decoder.decode(piece.data), "offset": piece.offset}

    def rest(self) -> list[dict[str, Any]]:
        """What a character that never became whole leaves."""
        left = {name: decoder.decode(b"", final=True) for name, decoder in self._decoders.items()}
        return [{"type": name.value, "data": text, "offset": self._next[name]} for name, text in left.items() if text]


def exit_frame(exited: Exited) -> dict[str, Any]:
    frame: dict[str, Any] = {"type": "exit", "exit_code": exited.shell_code}
    if exited.signal is not None:
        frame["signal"] = exited.signal
    for name in ("timed_out", "oom"):
        if getattr(exited, name):
            frame[name] = True
    return frame


@streams.websocket("/capsules/{capsule_id}/exec/stream")
async def exec_stream(socket: WebSocket, capsule_id: CapsuleId) -> None:
    async with conversation(socket):
        caller = await of_socket(socket, NEEDS)
        sandbox_id = await reachable(socket, caller, capsule_id)
        start = parsed(Start, await first(socket))
        async with services_of(socket).sandboxes.use(caller, sandbox_id, "exec/stream") as guest:
            tag = start.tag or f"exec-{secrets.token_hex(4)}"
            env = await environment(services_of(socket), caller, sandbox_id, start.envs)
            async with alone(hub_of(socket), sandbox_id, guest, start.tag):
                process = await guest.exec(_spec(start, env, guest, tag))
            follower = hub_of(socket).begin(sandbox_id, guest, process)
            await _follow(socket, follower, tag, start.encoding)


def _spec(start: Start, env: dict[str, str], guest: Guest, tag: str) -> ExecSpec:
    return ExecSpec(
        argv=[start.cmd, *(start.args or ())],
        env=env,
        cwd=absolute(start.cwd, guest.default_home) if start.cwd else "",
        user=start.user or "",
        stdin=start.stdin,
        timeout=start.timeout_sec if start.timeout_sec is not None and start.timeout_sec > 0 else None,
        tag=tag,
    )


@streams.websocket("/capsules/{capsule_id}/processes/{selector}/stream")
async def process_stream(
    socket: WebSocket,
    capsule_id: CapsuleId,
    selector: Selector,
    stdout_offset: Offset = 0,
    stderr_offset: Offset = 0,
    encoding: Encoding = "utf-8",
    until: Annotated[Literal["now"] | None, Query(description="Ends when all was sent that there was to send.")] = None,
) -> None:
    async with conversation(socket):
        caller = await of_socket(socket, NEEDS)
        sandbox_id = inner(Prefix.SANDBOX, capsule_id)
        async with services_of(socket).sandboxes.use(caller, sandbox_id, "process stream") as guest:
            info = select(await guest.processes(), selector, ended=True)
            present = until == "now" and (info.exited is None or info.open)
            offsets = {"stdout_offset": stdout_offset, "stderr_offset": stderr_offset}
            follower = await hub_of(socket).join(sandbox_id, guest, info.exec_id, **offsets, present=present)
            await _follow(socket, follower, info.tag, encoding, present=present)


async def _follow(socket: WebSocket, follower: Follower, tag: str, encoding: Encoding, *, present: bool = False) -> None:
    try:
        await send(socket, type="start", pid=follower.pid, tag=tag, exec_id=follower.exec_id)
        over = asyncio.Event()
        shown = _recall(socket, follower, Texts(encoding), over) if present else _show(socket, follower, Texts(encoding), over)
        await race(shown, _listen(socket, follower, encoding, over))
    finally:
        follower.leave()


async def _recall(socket: WebSocket, follower: Follower, texts: Texts, over: asyncio.Event) -> None:
    """Sets `over` before the last frames, as _show does."""
    async for piece in follower.until_now():
        for frame in texts.frames(piece):
            await send(socket, **frame)
    over.set()
    for frame in [*texts.rest(), {"type": "now"}]:
        await send(socket, **frame)


async def _show(socket: WebSocket, follower: Follower, texts: Texts, over: asyncio.Event) -> None:
    """Sets `over` before the last frames."""
    async for piece in follower.output():
        for frame in texts.frames(piece):
            await send(socket, **frame)
    exited = await follower.wait()
    over.set()
    for frame in [*texts.rest(), exit_frame(exited)]:
        await send(socket, **frame)


async def _listen(socket: WebSocket, follower: Follower, encoding: Encoding, over: asyncio.Event) -> None:
    """What the client says. Nothing is said of input once it is over. Input waits in a line of its own, so that `stop` passes a command that does not read."""
    waiting: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=64)

    async def feed() -> None:
        taken = 0
        while (data := await waiting.get()) is not None:
            if await ended(follower.write(data)) and not over.is_set():
                taken += len(data)
                await send(socket, type="stdin_taken", bytes=taken)
        await ended(follower.close_stdin())

    feeding = asyncio.create_task(feed())
    try:
        while True:
            frame = frame_of(await socket.receive())
            match frame.get("type"):
                case "stdin":
                    await waiting.put(input_of(frame, encoding))
                case "stdin_close":
                    await waiting.put(None)
                case "signal":
                    await follower.signal(signal_of(frame))
                case "stop":
                    await follower.kill_tree()
    finally:
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)


def input_of(frame: dict[str, Any], encoding: str) -> bytes:
    """The bytes of an input frame. Raises InvalidInput."""
    data = frame.get("data")
    if not isinstance(data, str):
        raise InvalidInput(f"{frame['type']}: data must be text.")
    try:
        return base64.b64decode(data, validate=True) if encoding == "base64" else data.encode()
    except (binascii.Error, ValueError):
        raise InvalidInput(f"{frame['type']}: data is not {encoding}.") from None


def signal_of(frame: dict[str, Any]) -> int:
    """Raises InvalidInput."""
    number = frame.get("signal")
    if type(number) is not int or not 0 < number <= 64:
        raise InvalidInput("signal: a number from 1 to 64.")
    return number
