"""What the WebSockets of the native dialect share: JSON text frames, a first frame in time, errors as a frame and a close code.

Close codes: 1000 the command ended; 4000 + an HTTP status for what a request would have been refused with (4401, 4404, 4409, ...); 1001 the server goes down.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import WebSocket
from pydantic import BaseModel, ValidationError
from starlette.websockets import WebSocketDisconnect, WebSocketState

from torpor.api.auth import Disconnected, frame_of
from torpor.api.errors import body_of, row_of
from torpor.api.middleware import request_id_of
from torpor.log import Log
from torpor.model.errors import InvalidInput, TorporError

log = Log()

START_SECONDS = 10.0
PING_SECONDS = 30.0
MOST_FRAME = 32 << 10
"""Bytes of output in one frame."""

M = TypeVar("M", bound=BaseModel)


async def send(socket: WebSocket, **frame: Any) -> None:
    """Waits while the client does not read: that is the back-pressure. Raises WebSocketDisconnect."""
    await socket.send_text(json.dumps(frame))


@asynccontextmanager
async def conversation(socket: WebSocket) -> AsyncIterator[None]:
    """Accepts; afterwards closes, saying what went wrong. A client that left is no error."""
    await socket.accept()
    try:
        yield
        await _close(socket, 1000)
    except (Disconnected, WebSocketDisconnect):
        log.debug("socket_left")
    except TorporError as error:
        await _refuse(socket, error)


async def _refuse(socket: WebSocket, error: TorporError) -> None:
    row = row_of(error)
    if not row.shown:
        log.error("socket_failed", error=str(error), kind=type(error).__name__)
    detail = body_of(error, request_id_of(socket.scope))["error"]
    try:
        await send(socket, type="error", data=detail["message"], fatal=True, **{name: detail[name] for name in ("code", "reason", "request_id")})
        await _close(socket, 4000 + row.status)
    except WebSocketDisconnect:
        log.debug("socket_left")


async def _close(socket: WebSocket, code: int) -> None:
    if socket.application_state is not WebSocketState.DISCONNECTED and socket.client_state is not WebSocketState.DISCONNECTED:
        await socket.close(code)


async def first(socket: WebSocket) -> dict[str, Any]:
    """The frame that says what is wanted. Raises InvalidInput when none comes in time, or something else does."""
    try:
        async with asyncio.timeout(START_SECONDS):
            return frame_of(await socket.receive())
    except TimeoutError:
        raise InvalidInput(f"No first frame came within {START_SECONDS:.0f} s.") from None


def parsed(model: type[M], frame: dict[str, Any]) -> M:
    """Raises InvalidInput naming the field."""
    try:
        return model.model_validate(frame)
    except ValidationError as error:
        first_problem = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first_problem["loc"])
        raise InvalidInput(f"{where or 'frame'}: {first_problem['msg']}.") from None


async def race(*works: Coroutine[Any, Any, None]) -> None:
    """Runs them until the first ends or fails, then ends the others."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            await task
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def pings(socket: WebSocket) -> None:
    """A frame now and then, so that what lies between does not take the connection for dead."""
    while True:
        await asyncio.sleep(PING_SECONDS)
        await send(socket, type="ping")


async def ended(work: Awaitable[None]) -> bool:
    """Waits for input to be taken; a command that reads no more is no error of the one who types. Whether it was taken."""
    try:
        await work
    except TorporError as error:
        log.debug("input_refused", error=str(error))
        return False
    return True
