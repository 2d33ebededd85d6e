"""The Connect protocol over HTTP/1.1 (connectrpc.com/docs/protocol), the server's side: unary calls, and streams in one direction.

    POST /process.Process/List     application/json | application/proto                      one message each way
    POST /process.Process/Start    application/connect+json | application/connect+proto      envelopes each way, an end-of-stream envelope last

A call may have a deadline (Connect-Timeout-Ms). On a stream that says nothing, keepalives are sent. A stream whose sandbox is lost ends without its last
envelope, by a broken connection.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from torpor.api.e2b.envd.codec import CODECS, END, Codec, deflate, envelope, payloads, whole
from torpor.api.e2b.envd.faults import STATUS, Fault, fault_of
from torpor.api.e2b.envd.messages import Message
from torpor.api.e2b.envd.session import Session
from torpor.api.streaming import Streamed
from torpor.model.errors import GuestLost, TorporError

_UNARY, _STREAM = "application/", "application/connect+"
_ENCODINGS = ("", "identity", "gzip")
_MILLISECONDS = re.compile(r"\d{1,10}\Z")
_SHORTEST_KEEPALIVE = 1.0

Unary = Callable[[Session, Message], Awaitable[Message]]
ServerStream = Callable[[Session, Message], AsyncGenerator[Message, None]]
ClientStream = Callable[[Session, AsyncIterator[Message]], Awaitable[Message]]


@dataclass(frozen=True, slots=True)
class Method:
    """Exactly one of the three is set. `keepalive`: the message that says nothing, of a stream from the server."""

    request: Any
    unary: Unary | None = None
    server: ServerStream | None = None
    client: ClientStream | None = None
    keepalive: Message | None = None


Methods = Mapping[str, Method]


def failed(fault: Fault) -> JSONResponse:
    """The answer of a unary call that failed."""
    return JSONResponse({"code": fault.code, "message": fault.message}, STATUS[fault.code])


async def answer(method: Method, request: Request, session: Session) -> Response:
    """The response to a call. Raises Gone."""
    if request.method != "POST":
        return Response(status_code=405, headers={"Allow": "POST"})
    prefix = _UNARY if method.unary is not None else _STREAM
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    codec = CODECS.get(kind.removeprefix(prefix)) if kind.startswith(prefix) else None
    if codec is None:
        return Response(status_code=415, headers={"Accept-Post": ", ".join(prefix + name for name in CODECS)})
    if method.unary is not None:
        return await _answer_unary(method, method.unary, codec, request, session)
    if method.client is not None:
        return await _answer_client_stream(method, method.client, codec, request, session)
    # The whole request is read before the answer begins: from then on, whatever comes from the client can only be its leaving.
    try:
        gzipped = _ask(request, session, "connect-content-encoding")
        first: Message = None
        async for payload in payloads(request.stream(), gzipped=gzipped):
            if first is not None:
                raise Fault("invalid_argument", "more than one message where one is due")
            first = codec.decode(method.request, payload)
        if first is None:
            raise Fault("invalid_argument", "no message where one is due")
    except Fault as fault:
        return Response(_end(fault), headers=_stream_headers(codec, request))
    stream = _stream(method, first, codec, request, session)
    try:
        await anext(stream)  # up to its first message: a sandbox that is not there is no stream
    except BaseException:
        await stream.aclose()
        raise
    return Streamed(stream, headers=_stream_headers(codec, request))


def _ask(request: Request, session: Session, encoding: str) -> bool:
    """Takes what the headers say of the call; whether its messages may be gzip'ed. Raises Fault."""
    headers = request.headers
    if headers.get("connect-protocol-version", "1") != "1":
        raise Fault("invalid_argument", "only version 1 of the Connect protocol is spoken here")
    if (given := headers.get("connect-timeout-ms")) is not None:
        if not _MILLISECONDS.match(given):
            raise Fault("invalid_argument", "Connect-Timeout-Ms must be a number of at most ten digits")
        session.until(int(given) / 1000)
    if (interval := headers.get("keepalive-ping-interval", "")).isdigit():
        session.keepalive = max(_SHORTEST_KEEPALIVE, float(interval[:9]))
    found = headers.get(encoding, "").strip().lower()
    if found not in _ENCODINGS:
        raise Fault("unimplemented", f"the encoding {found[:40]!r} is not understood; gzip and identity are")
    return found == "gzip"


async def _answer_unary(method: Method, serve: Unary, codec: Codec, request: Request, session: Session) -> Response:
    try:
        gzipped = _ask(request, session, "content-encoding")
        async with asyncio.timeout_at(session.deadline):
            message = codec.decode(method.request, await whole(request.stream(), gzipped=gzipped))
            payload = codec.encode(await serve(session, message))
    except _EXPECTED as error:
        return failed(_fault(error))
    headers = {"Content-Type": _UNARY + codec.name, "Vary": "Accept-Encoding"}
    if _accepts_gzip(request.headers.get("accept-encoding", "")) and (small := deflate(payload)) is not None:
        return Response(small, headers=headers | {"Content-Encoding": "gzip"})
    return Response(payload, headers=headers)


async def _answer_client_stream(method: Method, serve: ClientStream, codec: Codec, request: Request, session: Session) -> Response:
    async def messages() -> AsyncIterator[Message]:
        async for payload in payloads(request.stream(), gzipped=gzipped):
            yield codec.decode(method.request, payload)

    try:
        gzipped = _ask(request, session, "connect-content-encoding")
        async with asyncio.timeout_at(session.deadline):
            body = envelope(codec.encode(await serve(session, messages()))) + _end(None)
    except _EXPECTED as error:
        body = _end(_fault(error))
    return Response(body, headers=_stream_headers(codec, request))


_EXPECTED = (TimeoutError, Fault, TorporError)


def _fault(error: BaseException) -> Fault:
    """What a call that failed so answers. Raises the error where the sandbox is lost."""
    if isinstance(error, GuestLost):
        raise error
    if isinstance(error, Fault):
        return error
    return fault_of(error) if isinstance(error, TorporError) else Fault("deadline_exceeded", "the deadline of this call is over")


def _stream_headers(codec: Codec, request: Request) -> dict[str, str]:
    headers = {"Content-Type": _STREAM + codec.name, "Connect-Accept-Encoding": "gzip"}
    if _accepts_gzip(request.headers.get("connect-accept-encoding", "")):
        headers["Connect-Content-Encoding"] = "gzip"
    return headers


def _accepts_gzip(header: str) -> bool:
    return "gzip" in (part.partition(";")[0].strip().lower() for part in header.split(","))


async def _stream(method: Method, message: Message, codec: Codec, request: Request, session: Session) -> AsyncGenerator[bytes, None]:
    """Nothing first, once there is a message; then the envelopes of the answer. Raises what breaks the connection: Gone, GuestLost, faults of our own."""
    compress = _accepts_gzip(request.headers.get("connect-accept-encoding", ""))
    assert method.server is not None
    fault: Fault | None = None
    begun = False
    try:
        async with aclosing(method.server(session, message)) as produced:
            async for each in _timed(produced, session, method.keepalive):
                if not begun:
                    begun = True
                    yield b""
                yield envelope(codec.encode(each), compress=compress)
    except _EXPECTED as error:
        fault = _fault(error)
    if not begun:
        yield b""
    yield _end(fault)


async def _timed(produced: AsyncGenerator[Message, None], session: Session, keepalive: Message | None) -> AsyncIterator[Message]:
    """As `produced`, with a keepalive wherever it says nothing for long. Raises TimeoutError at the deadline."""
    loop = asyncio.get_running_loop()
    pending: asyncio.Future[Message] | None = None
    try:
        while True:
            pending = asyncio.ensure_future(_next(produced))
            quiet_at = loop.time() + session.keepalive
            while not pending.done():
                until = min(quiet_at if keepalive is not None else float("inf"), session.deadline if session.deadline is not None else float("inf"))
                await asyncio.wait((pending,), timeout=max(0.0, until - loop.time()) if until < float("inf") else None)
                if pending.done():
                    break
                if session.deadline is not None and loop.time() >= session.deadline:
                    raise TimeoutError
                if keepalive is not None and loop.time() >= quiet_at:
                    quiet_at = loop.time() + session.keepalive
                    yield keepalive
            message = pending.result()
            if message is None:
                return
            yield message
    finally:
        if pending is not None and not pending.done():
            pending.cancel()
            await asyncio.gather(pending, return_exceptions=True)


async def _next(produced: AsyncGenerator[Message, None]) -> Message | None:
    return await anext(produced, None)


def _end(fault: Fault | None) -> bytes:
    """The envelope that ends a stream."""
    end = {"error": {"code": fault.code, "message": fault.message}} if fault is not None else {}
    return envelope(json.dumps(end, separators=(",", ":")).encode(), END)
