"""A conversation with a command or a terminal over a WebSocket, which outlives its connection: when that goes, it is taken up on another one at the byte
where it broke off.

    connected --frames--> pieces --> the reader             a full line of pieces stops the reading, and so, in the end, the command
        |  lost (network, server restarts)
        v
    away ----tries until the patience is over---> connected, or failed

Not taken up: what the server refuses (the sandbox was paused, the command is not known any more), and a command whose input was under way, of which some may
not have arrived.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import random
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator
from typing import Any, Self

import websockets
from websockets.asyncio.client import ClientConnection, connect

from torpor.client.answers import Exit, Output, SandboxState, read
from torpor.client.errors import ApiError, BadAnswer, ClientError, ConnectionLost, InputLost, InvalidState, NotFound, Unreachable, refusal
from torpor.client.transport import CONNECT_SECONDS, Http, segment

HELD_BYTES = 1 << 20
"""Output that waits for the reader before no more is taken from the connection."""
MOST_FRAME = 4 << 20
PIECE = 32 << 10
"""Bytes of input in one frame."""
WINDOW = 256 << 10
"""Bytes of input that may be under way."""
PATIENCE = 60.0
"""Seconds that a connection is tried for before a conversation is given up."""
_GONE = ("paused", "pausing", "stopping", "stopped", "error")

_BROKEN = (websockets.ConnectionClosed, websockets.InvalidMessage, OSError, EOFError, TimeoutError)


class Away(Exception):
    """There is no connection at present, and it is worth trying again."""


class Attachment(ABC):
    """What terminals and commands have in common. Made by `begin`; used as a context, or closed with `close`."""

    def __init__(self, http: Http, sandbox_id: str, patience: float) -> None:
        self._http = http
        self._sandbox_id = sandbox_id
        self._patience = patience
        self._pid = 0
        self._tag = ""
        self._exec_id = ""
        self._socket: ClientConnection | None = None
        self._connected = asyncio.Event()
        self._pieces: deque[Output] = deque()
        self._held = 0
        self._moved = asyncio.Condition()
        self._exit: Exit | None = None
        self._failure: ClientError | None = None
        self._all_told = False  # until=now: that was all
        self._pump: asyncio.Task[None] | None = None
        self._offsets = {"stdout": 0, "stderr": 0}
        self._sent = 0  # bytes of input, over all connections
        self._taken = 0  # of them: what the guest took
        self._before = 0  # of them: over earlier connections

    @property
    def pid(self) -> int:
        return self._pid

    @property
    def tag(self) -> str:
        return self._tag

    @property
    def exec_id(self) -> str:
        """Names the command in its sandbox for good: pids and tags may come again."""
        return self._exec_id

    # The two kinds differ in these

    @abstractmethod
    async def _start(self) -> ClientConnection:
        """The first connection, up to and without the frame that says it has started."""

    @abstractmethod
    async def _resume(self) -> ClientConnection:
        """Another one, from where the offsets stand."""

    @abstractmethod
    def _output(self, frame: dict[str, Any]) -> Output | None:
        """The piece in a frame, None when it has none."""

    # Connections

    async def _dial(self, path: str) -> ClientConnection:
        """Raises Unreachable, ConnectionLost, ApiError."""
        where = self._http.where
        try:
            return await connect(
                where.websocket(f"/v1/capsules/{segment(self._sandbox_id)}{path}"),
                additional_headers={"X-API-Key": where.key, "User-Agent": "torpor-client"},
                user_agent_header=None,
                compression=None,
                max_size=MOST_FRAME,
                open_timeout=CONNECT_SECONDS * 3,
                ping_interval=20,
                ping_timeout=60,
                ssl=where.tls,
                proxy=None if where.loopback else True,
            )
        except websockets.InvalidStatus as error:
            raise refusal(error.response.status_code, "", f"The server answered with status {error.response.status_code}.") from None
        except (ConnectionRefusedError, websockets.ProxyError) as error:
            raise Unreachable(f"No connection to the server: {error}.", mend="Is it running, and is this its address?") from None
        except (*_BROKEN, websockets.InvalidHandshake) as error:
            raise ConnectionLost(f"The connection to the server did not come about: {error or type(error).__name__}.") from None

    async def begin(self, *, attach: bool = False) -> Self:
        """Starts it, or with `attach` takes up what runs already. Returns when the server has said what it is."""
        try:
            socket = await (self._resume() if attach else self._start())
        except websockets.ConnectionClosed as error:
            raise _closed(error) from None
        try:
            await self._greeted(socket)
        except BaseException:
            await socket.close()
            raise
        self._live(socket)
        self._pump = asyncio.create_task(self._run(socket), name=f"torpor-{self.tag}")
        return self

    def _live(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._before = self._taken
        self._connected.set()

    async def _greeted(self, socket: ClientConnection) -> None:
        """Reads the frame that says it has started. Raises what the server says instead, ConnectionLost, BadAnswer."""
        while True:
            try:
                frame = _frame(await socket.recv())
            except websockets.ConnectionClosed as error:
                raise _closed(error) from None
            match frame.get("type"):
                case "start" | "started":
                    break
                case "error":
                    raise await _refused(socket, frame)
        pid, tag, exec_id = frame.get("pid"), frame.get("tag"), frame.get("exec_id")
        if type(pid) is not int or not isinstance(tag, str) or not isinstance(exec_id, str):
            raise BadAnswer("The server said that a command started, but not which.")
        if self._exec_id and exec_id != self._exec_id:
            raise NotFound("The command that was followed is not known any more.", status=404)
        self._pid, self._tag, self._exec_id = pid, tag, exec_id

    async def _run(self, socket: ClientConnection) -> None:
        """Until the command ends, or cannot be followed any more."""
        try:
            while True:
                try:
                    await self._receive(socket)
                    break
                except Away:
                    self._connected.clear()
                    await socket.close()
                    socket = await self._again()
                    if self._sent > self._taken:
                        await _quietly(socket, {"type": "stop"})
                        raise InputLost(
                            "The connection broke while the command was given input; it was killed, for some of that may not have arrived."
                        ) from None
                    self._live(socket)
                    await self._after_return()
        except ClientError as error:
            await self._end(failure=error)
        except asyncio.CancelledError:
            await self._end(failure=ConnectionLost("This conversation was closed."))
            raise
        except Exception as error:  # so that a reader never waits for what cannot come
            await self._end(failure=BadAnswer(f"What the server sent cannot be read: {error!r}."))
        finally:
            await socket.close()

    @abstractmethod
    async def _after_return(self) -> None:
        """Tells a new connection what it must know."""

    async def _again(self) -> ClientConnection:
        """A connection where the last one broke off. Raises what makes that hopeless, ConnectionLost when the patience is over."""
        deadline, pause = time.monotonic() + self._patience, 0.05
        while True:
            try:
                await self._look()
                socket = await self._resume()
                try:
                    await self._greeted(socket)
                except BaseException:
                    await socket.close()
                    raise
                return socket
            except (ClientError, websockets.ConnectionClosed) as error:
                if isinstance(error, ClientError) and not _passing(error):
                    raise
                if time.monotonic() > deadline:
                    raise ConnectionLost(f"The connection broke and did not come back within {self._patience:.0f} s; the command runs on: {error}") from None
            await asyncio.sleep(pause * random.uniform(1.0, 1.5))
            pause = min(1.0, pause * 2)

    async def _look(self) -> None:
        """To attach to a sandbox that somebody paused would wake it, or be refused. Raises InvalidState."""
        answer = await self._http.ask("GET", f"/v1/capsules/{segment(self._sandbox_id)}")
        state = read(SandboxState, answer.tree()).state
        if state in _GONE:
            raise InvalidState(f"The sandbox is {state}.", status=409, code="invalid_state", reason="not_running")

    # Frames

    async def _receive(self, socket: ClientConnection) -> None:
        """Raises Away, or what the server says."""
        while True:
            try:
                frame = _frame(await socket.recv())
            except _BROKEN:
                raise Away from None
            match frame.get("type"):
                case "exit":
                    await self._end(exited=_exit_of(frame))
                    return
                case "now":
                    await self._end(all_told=True)
                    return
                case "error":
                    error = await _refused(socket, frame)
                    if _passing(error) or error.status == 413:  # too slow a reader begins again from where it stands
                        raise Away
                    raise error
                case "stdin_taken":
                    await self._take_note(frame)
                case _:
                    piece = self._output(frame)
                    if piece is not None:
                        await self._offer(piece)

    async def _take_note(self, frame: dict[str, Any]) -> None:
        if type(frame.get("bytes")) is int:
            async with self._moved:
                self._taken = max(self._taken, min(self._sent, self._before + frame["bytes"]))
                self._moved.notify_all()

    def _piece(self, stream: str, frame: dict[str, Any]) -> Output | None:
        data, offset, before = _data(frame), frame.get("offset"), self._offsets[stream]
        if type(offset) is not int or offset < 0:
            raise BadAnswer("The server sent output without its offset.")
        if offset < before:
            data, offset = data[before - offset :], before
        if not data:
            return None
        self._offsets[stream] = offset + len(data)
        return Output(stream, data, offset, offset - before)

    async def _offer(self, piece: Output) -> None:
        async with self._moved:
            self._pieces.append(piece)
            self._held += len(piece.data)
            self._moved.notify_all()
            await self._moved.wait_for(lambda: self._held < HELD_BYTES)

    async def _end(self, *, exited: Exit | None = None, failure: ClientError | None = None, all_told: bool = False) -> None:
        async with self._moved:
            self._exit, self._failure, self._all_told = self._exit or exited, self._failure or failure, self._all_told or all_told
            self._moved.notify_all()
        self._connected.set()

    # For the reader

    @property
    def _over(self) -> bool:
        return self._exit is not None or self._failure is not None or self._all_told

    async def pieces(self) -> AsyncIterator[Output]:
        """Pieces in order until the end. Raises what ended the conversation before the command ended."""
        while True:
            async with self._moved:
                await self._moved.wait_for(lambda: bool(self._pieces) or self._over)
                if not self._pieces:
                    break
                piece = self._pieces.popleft()
                self._held -= len(piece.data)
                self._moved.notify_all()
            yield piece
        if self._exit is None and not self._all_told and self._failure is not None:
            raise self._failure

    async def _ended(self) -> Exit:
        async with self._moved:
            await self._moved.wait_for(lambda: self._over)
        if self._exit is None:
            assert self._failure is not None
            raise self._failure
        return self._exit

    async def _say(self, frame: dict[str, Any]) -> None:
        """Sends a frame that may come twice; over a new connection when this one breaks. After the command's end it does nothing."""
        while not self._over:
            await self._connected.wait()
            socket = self._socket
            if self._over or socket is None:
                break
            try:
                await socket.send(json.dumps(frame))
                return
            except websockets.ConnectionClosed:
                if self._socket is socket and self._connected.is_set():
                    self._connected.clear()
        if self._failure is not None and self._exit is None:
            raise self._failure

    async def _give(self, data: bytes, frame: dict[str, Any]) -> None:
        """Sends input, once: where the connection breaks it is the pump that says whether some was lost. Waits while much of it is under way."""
        while True:
            await self._connected.wait()
            async with self._moved:
                await self._moved.wait_for(lambda: self._over or self._sent - self._taken < WINDOW)
            if self._over:
                break
            if self._connected.is_set() and self._socket is not None:
                self._sent += len(data)
                try:
                    await self._socket.send(json.dumps(frame))
                except websockets.ConnectionClosed:
                    await self._ended()
                return
        if self._failure is not None and self._exit is None:
            raise self._failure

    async def close(self) -> None:
        """Leaves; the command runs on, and can be connected to again."""
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.gather(self._pump, return_exceptions=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _frame(message: str | bytes) -> dict[str, Any]:
    try:
        tree = json.loads(message)
        if isinstance(tree, dict):
            return tree
    except (ValueError, RecursionError):
        pass
    raise BadAnswer("The server sent a frame that is no JSON object.")


def _data(frame: dict[str, Any]) -> bytes:
    try:
        return base64.b64decode(frame["data"], validate=True)
    except (KeyError, TypeError, ValueError, binascii.Error):
        raise BadAnswer("The server sent output that is not base64.") from None


def _exit_of(frame: dict[str, Any]) -> Exit:
    code, number = frame.get("exit_code"), frame.get("signal")
    if type(code) is not int:
        raise BadAnswer("The server said that a command ended, but not how.")
    return Exit(code, number if type(number) is int else None, frame.get("timed_out") is True, frame.get("oom") is True)


async def _refused(socket: ClientConnection, frame: dict[str, Any]) -> ApiError:
    """The error of a frame; its status is in the close code that follows."""
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            await socket.wait_closed()
    except TimeoutError:
        pass
    status = (socket.close_code or 0) - 4000
    code, reason, message, request_id = (str(frame.get(name) or "")[:4000] for name in ("code", "reason", "data", "request_id"))
    return refusal(status if 400 <= status < 600 else 502, code, message, reason, request_id)


def _closed(error: websockets.ConnectionClosed) -> ClientError:
    code = error.rcvd.code - 4000 if error.rcvd is not None else 0
    if 400 <= code < 600:
        return refusal(code, "", f"The server refused with status {code}.")
    return ConnectionLost("The connection to the server broke before the command was known to have started; it may have, or not.")


def _passing(error: ClientError) -> bool:
    """Whether another try has a chance: the server is away, or just back and has not found its sandboxes again."""
    return isinstance(error, (Unreachable, ConnectionLost)) or (isinstance(error, ApiError) and error.status in (429, 502, 503))


async def _quietly(socket: ClientConnection, frame: dict[str, Any]) -> None:
    try:
        await socket.send(json.dumps(frame))
        await socket.close()
    except websockets.ConnectionClosed:
        pass
