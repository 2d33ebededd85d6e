"""Plain HTTP/1 through the gate: every request on a connection is read, judged by its Host, and written anew.

    guest --- h11 (server side) --- judged --- h11 (client side) --- the server of that name

Since nothing is passed on as it was spelled, no message can be one request to us and two to the server (request smuggling). One connection is for one name.
After a WebSocket has been accepted by the server, bytes are carried as they are. Refused: CONNECT, targets that are not paths, HTTP/2, Transfer-Encoding
beside Content-Length; an offer to switch to anything but WebSocket is left out.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable

import h11

from torpor.model.domains import normal
from torpor.net.gate.streams import Stream, join

LARGEST_HEAD = 65536
IDLE_SECONDS = 120.0
_HOST = re.compile(r"([^:@/\\?#\[\]]+?)(:[0-9]{0,5})?\Z")
_OFFERS = (b"upgrade", b"http2-settings")


class Refused(Exception):
    """`status`, and a sentence for whoever sits in the guest."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class Side:
    """One side of the exchange: a stream and what HTTP says of it."""

    def __init__(self, stream: Stream, role: type[h11.CLIENT] | type[h11.SERVER]) -> None:
        self.stream = stream
        self.http = h11.Connection(role, max_incomplete_event_size=LARGEST_HEAD)

    async def event(self) -> h11.Event | type[h11.PAUSED]:
        """The next one. Raises h11.RemoteProtocolError, OSError."""
        while True:
            event = self.http.next_event()
            if event is not h11.NEED_DATA:
                return event  # type: ignore[return-value]
            self.http.receive_data(await self.stream.receive())

    async def send(self, event: h11.Event) -> None:
        """In our own words: HTTP/1.1, whatever was spoken on the other side. Raises h11.LocalProtocolError, OSError."""
        if isinstance(event, (h11.Response, h11.InformationalResponse)):
            event = type(event)(status_code=event.status_code, headers=event.headers.raw_items(), reason=event.reason)
        await self.stream.send(self.http.send(event) or b"")

    def next(self) -> bool:
        """Ready for a further request; False when this connection ends with this one."""
        if self.http.our_state is not h11.DONE or self.http.their_state is not h11.DONE:
            return False
        self.http.start_next_cycle()
        return True


def name_of(request: h11.Request) -> str:
    """The name that a request is for. Raises Refused."""
    if request.http_version not in (b"1.0", b"1.1"):
        raise Refused(505, "Only HTTP/1 is understood here.")
    target = request.target
    if request.method == b"CONNECT" or not (target.startswith(b"/") or (target == b"*" and request.method == b"OPTIONS")):
        raise Refused(400, "A request here is for a path, not for another address.")
    given = [value for name, value in request.headers if name == b"host"]
    names = {name for name, _ in request.headers}
    if b"transfer-encoding" in names and b"content-length" in names:
        raise Refused(400, "Content-Length beside Transfer-Encoding.")
    if len(given) != 1:
        raise Refused(400, "A request needs one Host.")
    found = _HOST.match(given[0].decode("latin-1").strip(" \t"))
    name = normal(found[1]) if found else None
    if name is None:
        raise Refused(403, "This sandbox reaches names only, and this Host is none.")
    return name


def cleaned(request: h11.Request) -> h11.Request:
    """As HTTP/1.1, and without an offer to switch to what could not be judged any more: h2c."""
    headers = request.headers.raw_items()
    offered = [value.strip().lower() for name, value in request.headers if name == b"upgrade"]
    if offered and offered != [b"websocket"]:
        headers = [(raw, value) for raw, value in headers if raw.lower() not in _OFFERS]
        headers = [(raw, _without_offers(value) if raw.lower() == b"connection" else value) for raw, value in headers]
    return h11.Request(method=request.method, target=request.target, headers=headers)


def _without_offers(connection: bytes) -> bytes:
    kept = [option for option in (part.strip() for part in connection.split(b",")) if option.lower() not in _OFFERS]
    return b", ".join(kept) or b"keep-alive"


class Exchange:
    """All requests of one connection. `enter(name)` judges and connects: raises Refused; it is asked anew for each request, `again(name)` of a known one."""

    def __init__(self, guest: Stream, enter: Callable[[str], Awaitable[Stream]], again: Callable[[str], None], on_half: Callable[[], None]) -> None:
        self._guest = Side(guest, h11.SERVER)
        self._enter = enter
        self._again = again
        self._on_half = on_half
        self._server: Side | None = None
        self._name = ""

    async def run(self, first: bytes, seconds: float) -> None:
        """`first`: what the guest has said already; `seconds`: for the rest of its first head. Raises OSError, h11.ProtocolError when it can only be broken
        off."""
        self._guest.http.receive_data(first)
        try:
            while True:
                request = await self._request(seconds)
                if request is None:
                    return
                await self._admit(request)
                if not await self._perform(request):
                    return
                seconds = IDLE_SECONDS
        except Refused as refusal:
            await self._refuse(refusal)
        except h11.RemoteProtocolError as error:
            if self._guest.http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
                raise
            ours = self._guest.http.their_state is h11.ERROR
            await self._refuse(
                Refused(error.error_status_hint, "No HTTP that is understood here.") if ours else Refused(502, "The server's answer is no HTTP.")
            )

    async def _request(self, seconds: float) -> h11.Request | None:
        """None when the guest has said its last, or the server has gone meanwhile."""
        asking = asyncio.ensure_future(self._guest.event())
        watching = asyncio.ensure_future(self._server.event()) if self._server is not None else None
        both = {asking} | ({watching} if watching is not None else set())
        try:
            await asyncio.wait(both, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if not asking.done() or (watching is not None and watching.done()):
                return None
            event = asking.result()
            return event if isinstance(event, h11.Request) else None
        finally:
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)

    async def _admit(self, request: h11.Request) -> None:
        name = name_of(request)
        if self._server is None:
            self._name, self._server = name, Side(await self._enter(name), h11.CLIENT)
            return
        self._again(name)
        if name != self._name:
            raise Refused(421, f"This connection is for {self._name}.")

    async def _perform(self, request: h11.Request) -> bool:
        """One request and its answer; False when the connection ends with it."""
        assert self._server is not None
        server = self._server
        await server.send(cleaned(request))
        upload, answer = asyncio.ensure_future(self._upload(server)), asyncio.ensure_future(self._answer(server))
        try:
            await asyncio.wait({upload, answer}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                upload.result()
            switched = await answer
        finally:
            for task in (upload, answer):
                task.cancel()
            await asyncio.gather(upload, answer, return_exceptions=True)
        if switched:
            await self._carry(server)
            return False
        return self._guest.next() and server.next()

    async def _upload(self, server: Side) -> None:
        """The body, if there is one; then stays to see whether the guest goes away before the answer has come. A guest that breaks off its body leaves the
        server with half a request, which is broken off too. A server that takes no more of it may still answer."""
        event: object = None
        while not isinstance(event, h11.EndOfMessage):
            event = await self._guest.event()
            if not isinstance(event, (h11.Data, h11.EndOfMessage)):
                raise ConnectionResetError("the guest broke off")
            try:
                await server.send(event)
            except OSError:
                return
        if self._guest.http.their_state is h11.DONE and not self._guest.http.trailing_data[0]:
            data = await self._guest.stream.receive()
            self._guest.http.receive_data(data)
            if not data:
                self._on_half()

    async def _answer(self, server: Side) -> bool:
        """True when the server has switched to WebSocket."""
        while not isinstance(event := await server.event(), h11.EndOfMessage):
            if not isinstance(event, (h11.InformationalResponse, h11.Response, h11.Data)):
                raise ConnectionResetError("the server broke off")
            await self._guest.send(event)
            if self._guest.http.our_state is h11.SWITCHED_PROTOCOL:
                return True
        await self._guest.send(event)
        return False

    async def _carry(self, server: Side) -> None:
        await server.stream.send(self._guest.http.trailing_data[0])
        await self._guest.stream.send(server.http.trailing_data[0])
        await join(self._guest.stream, server.stream, self._on_half)

    async def _refuse(self, refusal: Refused) -> None:
        if self._guest.http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            raise ConnectionResetError("refused in the middle of an answer")
        body = f"torpor: {refusal.text}\n".encode()
        headers = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body))), ("Connection", "close")]
        await self._guest.send(h11.Response(status_code=refusal.status, headers=headers, reason=b"Refused"))
        await self._guest.send(h11.Data(data=body))
        await self._guest.send(h11.EndOfMessage())
