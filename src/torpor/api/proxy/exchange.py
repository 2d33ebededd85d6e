"""One exchange with a server in a sandbox, over a connection of its own: a request and its answer, both streamed, at the same time where the server wants it
so; and what follows when both agree to switch protocols.

    client --ASGI--> upload --h11--> guest's TCP stream          answers begin while bodies are still sent
    client <--ASGI-- answer <--h11-- guest's TCP stream

HTTP is h11's, as a client that is strict in what it takes. Nothing is held but one piece each way: whoever is slow slows the other end.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import h11
from starlette.types import Receive, Send

from torpor.api.connection import Connection, Tunnel
from torpor.api.proxy.headers import Headers
from torpor.model.errors import GuestError, GuestLost, GuestOSError
from torpor.ports.guest import ByteStream

IDLE_SECONDS = 900.0
"""Without a byte in either direction an exchange is broken off. E2B's SDKs count on 620 at least."""
EXPECT_SECONDS = 1.0
"""How long a server may take to say `100 Continue` before the body is sent all the same, as RFC 9110 advises."""
PARTING_SECONDS = 2.0
"""How long a server has to close its end after its answer, before the connection is reset."""
_MOST_HEAD = 128 << 10
_PIECE = 128 << 10


class Broken(Exception):
    """The server in the sandbox, or the channel to it, failed. `begun`: after its answer had begun."""

    def __init__(self, why: str, begun: bool) -> None:
        super().__init__(why)
        self.begun = begun


class ClientLeft(Exception):
    """Nobody waits for the answer any more."""


Begin = Callable[[int, Headers], Awaitable[None]]
"""Sends the answer's status and head on."""


class Exchange:
    """`stream` is closed by whoever opened it."""

    def __init__(self, stream: ByteStream, receive: Receive, send: Send, begin: Begin) -> None:
        self._stream = stream
        self._receive = receive
        self._send = send
        self._begin = begin
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MOST_HEAD)
        self._go_on = asyncio.Event()
        self._moved = 0.0
        self._switched = False
        self.begun = False
        self.complete = False
        """The client has its whole answer."""
        self.bytes = 0

    async def run(self, method: str, target: bytes, headers: Headers, *, expects: bool, connection: Connection | None) -> None:
        """To its end. `connection`: the client's, where the request asks for a switch of protocols. Raises Broken, ClientLeft, and
        h11.LocalProtocolError for a request that cannot be put into HTTP."""
        self._touch()
        await self._put(self._http.send(h11.Request(method=method, target=target, headers=headers)))
        upload = asyncio.ensure_future(self._upload(expects))
        answer = asyncio.ensure_future(self._answer(connection))
        idle = asyncio.ensure_future(self._idle())
        try:
            await asyncio.wait({upload, answer, idle}, return_when=asyncio.FIRST_COMPLETED)
            for done in (answer, upload, idle):
                if done.done():
                    done.result()
                    break
        finally:
            for task in (upload, answer, idle):
                task.cancel()
            await asyncio.gather(upload, answer, idle, return_exceptions=True)
        await self._part()

    # The request

    async def _upload(self, expects: bool) -> None:
        """Sends the body on; then, as before, sees whether the client leaves. Ends by an exception only."""
        if expects:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EXPECT_SECONDS):
                    await self._go_on.wait()
        taken = True
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                if self._switched:  # the tunnel hears of its client by itself
                    await asyncio.Event().wait()
                raise ClientLeft
            if not taken:
                continue
            data = message.get("body", b"")
            try:
                for at in range(0, len(data), _PIECE):
                    await self._put(self._http.send(h11.Data(data=data[at : at + _PIECE])))
                    self._touch()
                if not message.get("more_body", False):
                    await self._put(self._http.send(h11.EndOfMessage()))
                    taken = False
            except GuestOSError:  # it reads no more; it may have answered
                taken = False

    async def _put(self, data: bytes | None) -> None:
        if data:
            try:
                await self._stream.write(data)
            except GuestLost as error:
                raise Broken(error.message, self.begun) from error

    # The answer

    async def _answer(self, connection: Connection | None) -> None:
        while True:
            event = await self._event()
            match event:
                case h11.InformationalResponse() if event.status_code == 101 and connection is not None:
                    await self._switch(connection, event)
                    return
                case h11.InformationalResponse():
                    if event.status_code == 100:
                        self._go_on.set()
                case h11.Response():
                    if not 200 <= event.status_code < 600:
                        raise Broken(f"The status {event.status_code} is none of HTTP's.", begun=False)
                    self.begun = True
                    await self._begin(event.status_code, list(event.headers))
                case h11.Data():
                    self.bytes += len(event.data)
                    await self._send({"type": "http.response.body", "body": bytes(event.data), "more_body": True})
                    self._touch()
                case h11.EndOfMessage():
                    self.complete = True
                    await self._send({"type": "http.response.body", "body": b"", "more_body": False})
                    return
                case _:
                    raise Broken("The connection was closed before an answer came.", self.begun)

    async def _event(self) -> Any:
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                self._http.receive_data(await self._stream.read(_PIECE))
                self._touch()
        except h11.RemoteProtocolError as error:
            raise Broken(str(error), self.begun) from error
        except GuestError as error:
            raise Broken(error.message, self.begun) from error
        return event

    # After a switch

    async def _switch(self, connection: Connection, event: h11.InformationalResponse) -> None:
        """Bytes both ways, each half ending by itself."""
        self.begun = self._switched = True
        tunnel = connection.take()
        head = [b"%s: %s" % pair for pair in event.headers.raw_items() if pair[0].lower() != b"connection"]
        first, _ = self._http.trailing_data
        await tunnel.write(b"\r\n".join([b"HTTP/1.1 101 Switching Protocols", b"Connection: Upgrade", *head, b"", b""]) + first)
        try:
            await asyncio.gather(self._up(tunnel), self._down(tunnel))
        except ConnectionResetError:
            raise ClientLeft from None
        except GuestError as error:
            raise Broken(error.message, begun=True) from error
        tunnel.close()

    async def _up(self, tunnel: Tunnel) -> None:
        while data := await tunnel.read():
            await self._stream.write(data)
            self._touch()
        await self._stream.close_write()

    async def _down(self, tunnel: Tunnel) -> None:
        while data := await self._stream.read(_PIECE):
            self.bytes += len(data)
            await tunnel.write(data)
            self._touch()
        tunnel.close_write()

    # Time

    def _touch(self) -> None:
        self._moved = asyncio.get_running_loop().time()

    async def _idle(self) -> None:
        loop = asyncio.get_running_loop()
        while (rest := self._moved + IDLE_SECONDS - loop.time()) > 0:  # noqa: ASYNC110 (the condition is the clock)
            await asyncio.sleep(rest)
        raise Broken(f"Nothing moved for {IDLE_SECONDS:g} s.", self.begun)

    async def _part(self) -> None:
        """Lets the server close in order: it was told that the connection ends with the answer."""
        with contextlib.suppress(GuestError, TimeoutError):
            async with asyncio.timeout(PARTING_SECONDS):
                await self._stream.close_write()
                while await self._stream.read(_PIECE):
                    pass
