"""One guest channel, host end: the connection and its replacement, requests that are executed at most once, streams.

    connecting --HELLO--> greeting --WELCOME--> open --connection lost--> connecting ...   (the guest resumes: nothing is lost or doubled)
         |                    |                   +--- violation, close ---> ended
         +-- refused, time-out, another conversation --> ended               (everything under way raises the reason)

The guest is hostile until proven otherwise: all it can make this end hold is its windows (256 KiB per stream we opened) and answers to requests we sent.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torpor.guestlink import convert
from torpor.guestlink.errors import reply_error
from torpor.guestlink.streams import Stream
from torpor.model.errors import GuestError, GuestLost, GuestProtocolError, InvalidInput
from torpor.wire import guest as wire

Json = dict[str, Any]
_RECONNECT_TRIES = 10
_RECONNECT_SECONDS = 10.0
_MOST_REPEATS = 3
_ACKS = 64


class _Connection(asyncio.BufferedProtocol):
    """One connection of the channel; stale once another has taken its place."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.transport: asyncio.Transport | None = None
        self.reader = wire.FrameReader(self._accept, watchful=False)
        self.nonce = -1

    def _accept(self, header: wire.Header) -> bool:
        return header.type == wire.WELCOME and header.offset == self.nonce

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.reader.space()

    def buffer_updated(self, nbytes: int) -> None:
        try:
            for frame in self.reader.feed(nbytes):
                self.channel.received(self, frame)
        except wire.ProtocolError as error:
            self.channel.end(GuestProtocolError(f"The guest agent broke the protocol: {error}."))

    def pause_writing(self) -> None:
        self.channel.writable(self, False)

    def resume_writing(self) -> None:
        self.channel.writable(self, True)

    def connection_lost(self, exc: Exception | None) -> None:
        self.channel.connection_lost(self)


class Request:
    """A request on its way. `reply` is its future; streams opened with it are keyed by its number."""

    __slots__ = ("frames", "id", "late", "reply", "streams")

    def __init__(self, id_: int, reply: asyncio.Future[Json]) -> None:
        self.id = id_
        self.reply = reply
        self.frames: list[bytes] = []
        self.streams: list[Stream] = []
        self.late: Callable[[Json], None] | None = None


class Channel:
    """Use `Channel.open`; `end` or `close` ends it. All methods belong to one event loop."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.generation = 0
        self.welcome: Json = {}
        self.failure: GuestError | None = None
        self._link = secrets.randbits(53) + 1
        self._connection: _Connection | None = None
        self._greeting: asyncio.Future[Json] | None = None
        self._open = False
        self._next = 1
        self._pending: dict[int, Request] = {}
        self._streams: dict[int, Stream] = {}
        self._listeners: dict[int, Callable[[Json], None]] = {}
        self._acks: list[int] = []
        self._repeats: dict[int, int] = {}
        self._writable = asyncio.Event()
        self._reopening: asyncio.Task[None] | None = None

    # Opening

    async def open(self, generation: int, wake: Json | None, timeout: float) -> None:
        """Connects if need be and greets; with `wake` the guest begins `generation`, and what was under way in an older one ends with GuestLost.
        Raises GuestLost (no welcome in `timeout` seconds, nobody listens), GuestProtocolError. Cancelled, the channel ends."""
        self._check()
        before = self.generation
        try:
            async with asyncio.timeout(timeout):
                welcome = await self._greet(generation, wake)
        except TimeoutError:
            self.end(GuestLost(f"The guest agent said nothing within {timeout:g} s."))
            raise self._reason() from None
        except BaseException as error:
            self.end(error if isinstance(error, GuestError) else GuestLost("The opening of the guest channel was given up."))
            raise
        if self.generation != before or not welcome["resumed"]:
            self._drop_all(GuestLost("The sandbox was woken anew: this belongs to its earlier life."))
        self._go()

    async def _greet(self, generation: int, wake: Json | None) -> Json:
        """HELLO until a WELCOME comes, over new connections where one breaks. Sets `generation` and `welcome`."""
        hello: Json = {"versions": [wire.VERSION], "link": self._link}
        if wake is not None:
            hello["wake"] = wake
        for attempt in range(_RECONNECT_TRIES):
            connection = self._connection or await self._connect()
            self._open = False
            self._greeting = asyncio.get_running_loop().create_future()
            connection.nonce = secrets.randbits(55)
            connection.reader.hunting = True
            frame = wire.encode(wire.HELLO, 0, generation, connection.nonce, wire.to_json(hello))
            assert connection.transport is not None
            connection.transport.write(frame)
            try:
                welcome = await self._greeting
            except ConnectionError:
                if attempt + 1 == _RECONNECT_TRIES:
                    raise GuestLost("The guest channel breaks again and again.") from None
                continue
            finally:
                self._greeting = None
            return self._welcomed(welcome)
        raise AssertionError

    def _welcomed(self, welcome: Json) -> Json:
        if error := welcome.get("error"):
            kind = error.get("kind") if isinstance(error, dict) else None
            if kind == "version":
                raise GuestProtocolError("The guest agent speaks no protocol version that this program knows.")
            raise GuestProtocolError(f"The guest agent refused the greeting: {str(error)[:300]}.")
        if welcome.get("version") != wire.VERSION or not isinstance(welcome.get("resumed"), bool):
            raise GuestProtocolError("The guest agent's welcome makes no sense.")
        self.welcome = welcome
        self.generation = welcome["generation"]
        return welcome

    async def _connect(self) -> _Connection:
        connection = _Connection(self)
        folder, name = os.path.split(os.fspath(self.path))
        try:
            # By the folder's descriptor: an address of a unix socket holds 107 bytes, a home may lie deeper.
            directory = os.open(folder or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                await asyncio.get_running_loop().create_unix_connection(lambda: connection, f"/proc/self/fd/{directory}/{name}")
            finally:
                os.close(directory)
        except OSError as error:
            raise GuestLost(f"Nobody listens on the guest channel: {error.strerror or error}.") from None
        assert connection.transport is not None
        connection.transport.set_write_buffer_limits(high=256 << 10)
        self._connection = connection
        self._repeats.clear()
        self._writable.set()
        return connection

    def _go(self) -> None:
        """The conversation is open: what waits is sent."""
        self._open = True
        for stream in self._streams.values():
            self._pump(stream)

    # What the connection reports

    def connection_lost(self, connection: _Connection) -> None:
        if connection is not self._connection:
            return
        self._connection = None
        self._writable.clear()
        if self._greeting is not None and not self._greeting.done():
            self._greeting.set_exception(ConnectionResetError())
        elif self._open and self.failure is None:
            self._open = False
            for stream in self._streams.values():
                if stream.sender is not None:
                    stream.sender.hold()
            self._reopening = asyncio.get_running_loop().create_task(self._reopen())

    async def _reopen(self) -> None:
        """The same conversation over a new connection."""
        try:
            async with asyncio.timeout(_RECONNECT_SECONDS):
                welcome = await self._greet(self.generation, None)
            if not welcome["resumed"]:
                raise GuestLost("The guest agent has forgotten this conversation.")
        except TimeoutError:
            self.end(GuestLost("The guest channel broke and could not be opened again."))
            return
        except GuestError as error:
            self.end(error)
            return
        self._open = True
        for request in self._pending.values():
            for frame in request.frames:
                self._send(frame)
        for stream in self._streams.values():
            self._send((stream.receiver or wire.Receiver()).resumption(stream.number, self.generation))
        self._send(wire.Receiver().resumption(wire.ALL_NAMED, self.generation))

    def writable(self, connection: _Connection, on: bool) -> None:
        if connection is not self._connection:
            return
        if on:
            self._writable.set()
            if self._open:
                for stream in list(self._streams.values()):
                    self._pump(stream)
        else:
            self._writable.clear()

    def received(self, connection: _Connection, frame: wire.Frame) -> None:
        """Raises wire.ProtocolError."""
        if connection is not self._connection or self.failure is not None:
            return
        if frame.type == wire.WELCOME:
            self._on_welcome(frame)
        elif self._greeting is not None:
            self._early(frame)
        elif frame.generation == self.generation:
            self._dispatch(frame)

    def _on_welcome(self, frame: wire.Frame) -> None:
        if self._greeting is None or self._greeting.done():
            raise wire.ProtocolError("a welcome out of turn")
        self._greeting.set_result(wire.from_json(frame.payload) | {"generation": frame.generation})

    def _early(self, frame: wire.Frame) -> None:
        """Frames right behind the welcome, before the waiting task ran."""
        asyncio.get_running_loop().call_soon(self._late_dispatch, frame)

    def _late_dispatch(self, frame: wire.Frame) -> None:
        try:
            if self.failure is None and frame.generation == self.generation:
                self._dispatch(frame)
        except wire.ProtocolError as error:
            self.end(GuestProtocolError(f"The guest agent broke the protocol: {error}."))

    def _dispatch(self, frame: wire.Frame) -> None:
        id_ = frame.stream // 2
        if not 0 < id_ < self._next:
            raise wire.ProtocolError(f"{wire.TYPE_NAMES[frame.type]} for request {id_}, which was never sent")
        if frame.type == wire.REPLY:
            self._on_reply(id_, wire.from_json(frame.payload))
        elif frame.type == wire.EVENT:
            fields = wire.from_json(frame.payload)
            if (listener := self._listeners.get(id_)) is not None:
                listener(fields)
        elif frame.type in (wire.DATA, wire.END, wire.CREDIT, wire.RESUME, wire.CLOSE):
            self._on_stream(frame)
        else:
            raise wire.ProtocolError(f"{wire.TYPE_NAMES[frame.type]} is not the guest's to send")

    def _on_reply(self, id_: int, fields: Json) -> None:
        request = self._pending.get(id_)
        if request is None:
            self._repeated(id_)
            return
        error = reply_error(fields)
        for stream, start in zip(request.streams, convert.offsets(fields, "starts"), strict=False):
            stream.begin_at(start)
        del self._pending[id_]
        self._ack(id_)
        if error is not None:
            for stream in request.streams:
                stream.fail(error)
        if request.reply.done():
            if error is None and request.late is not None:
                request.late(fields)
        elif error is not None:
            request.reply.set_exception(error)
        else:
            request.reply.set_result(fields)

    def _ack(self, id_: int) -> None:
        self._acks.append(id_)
        if len(self._acks) >= _ACKS:
            acks, self._acks = self._acks, []
            self._send(wire.encode(wire.DONE, 0, self.generation, 0, wire.to_json({"done": acks})))

    def _repeated(self, id_: int) -> None:
        """An answer to what was answered or given up: around a reconnect it may come again, but not for ever."""
        self._repeats[id_] = self._repeats.get(id_, 0) + 1
        if self._repeats[id_] > _MOST_REPEATS:
            raise wire.ProtocolError(f"request {id_} is answered again and again")
        self._ack(id_)

    def _on_stream(self, frame: wire.Frame) -> None:
        stream = self._streams.get(frame.stream)
        if stream is None:
            return  # closed here, and the guest does not know yet
        if frame.type in (wire.DATA, wire.END):
            stream.receive(frame)
        elif frame.type == wire.CLOSE:
            self._streams.pop(frame.stream, None)
            stream.gone()
        else:
            stream.window(frame)
            self._pump(stream)

    # Sending

    def _send(self, frame: bytes) -> None:
        if self._open and self._connection is not None and self._connection.transport is not None:
            self._connection.transport.write(frame)

    def _pump(self, stream: Stream) -> None:
        """Sends what the stream's window and the connection take."""
        sender = stream.sender
        while sender is not None and self._open and self._writable.is_set() and sender.wants():
            frame = sender.pull(stream.number, self.generation, stream.most)
            if frame is None:
                return
            self._send(frame)

    def flush(self, stream: Stream) -> None:
        """The stream has something to send."""
        self._pump(stream)

    def grant(self, stream: Stream) -> None:
        """Reopens the stream's window."""
        assert stream.receiver is not None
        self._send(stream.receiver.grant(stream.number, self.generation))

    def close_stream(self, stream: Stream) -> None:
        """Tells the guest that nobody uses the stream any more. Idempotent."""
        if self._streams.pop(stream.number, None) is not None:
            self._send(wire.encode(wire.CLOSE, stream.number, self.generation))

    def start(self, op: str, args: Json, *, listener: Callable[[Json], None] | None = None, **streams: tuple[bool, bool]) -> Request:
        """Sends a request. `streams` by channel name (main, stderr): (we send, we receive). Raises InvalidInput when too large, GuestLost."""
        self._check()
        acks, self._acks = self._acks, []
        payload = wire.to_json(args | {"op": op} | ({"done": acks} if acks else {}))
        if len(payload) > wire.MAX_REQUEST:
            self._acks = acks
            raise InvalidInput(f"The request is {len(payload)} bytes long; the guest takes {wire.MAX_REQUEST}.")
        id_, self._next = self._next, self._next + 1
        request = Request(id_, asyncio.get_running_loop().create_future())
        step = wire.MAX_PAYLOAD
        for at in range(0, len(payload), step):
            more = wire.FLAG_MORE if at + step < len(payload) else 0
            request.frames.append(wire.encode(wire.REQUEST, id_ * 2, self.generation, at, payload[at : at + step], more))
        for name, (sends, receives) in streams.items():
            stream = Stream(self, id_ * 2 + (wire.STDERR if name == "stderr" else wire.MAIN), sends=sends, receives=receives)
            self._streams[stream.number] = stream
            request.streams.append(stream)
        if listener is not None:
            self._listeners[id_] = listener
        self._pending[id_] = request
        for frame in request.frames:
            self._send(frame)
        return request

    async def finish(self, request: Request) -> Json:
        """Waits for the reply; raises what the guest answered. Cancelled: an answer that still comes goes to `request.late`, the request's streams close."""
        try:
            return await request.reply
        except BaseException:
            request.frames.clear()
            for stream in request.streams:
                stream.close()
            self._listeners.pop(request.id, None)
            raise

    async def call(self, op: str, **args: Any) -> Json:
        """A request without streams. It is sent when the connection takes it. Raises GuestLost, GuestProtocolError, and the errors of replies."""
        return await self.finish(self.start(op, args))

    def unlisten(self, request: Request) -> None:
        self._listeners.pop(request.id, None)

    # Ending

    def _reason(self) -> GuestError:
        return self.failure if self.failure is not None else GuestLost("The guest channel was closed.")

    def _check(self) -> None:
        if self.failure is not None:
            raise self._reason()

    def _drop_all(self, reason: GuestError) -> None:
        """Everything under way ends with `reason`."""
        pending, self._pending = list(self._pending.values()), {}
        streams, self._streams = list(self._streams.values()), {}
        listeners, self._listeners = list(self._listeners.values()), {}
        for stream in streams:
            stream.fail(reason)
        for request in pending:
            if not request.reply.done():
                request.reply.set_exception(reason)
                request.reply.exception()  # it may have been given up: then nobody else looks
        for listener in listeners:
            listener({"lost": reason})

    def end(self, reason: GuestError) -> None:
        """Closes the connection for good. Idempotent; the first reason counts."""
        if self.failure is not None:
            return
        self.failure = reason
        self._open = False
        connection, self._connection = self._connection, None
        if self._greeting is not None and not self._greeting.done():
            self._greeting.set_exception(reason)
        self._drop_all(reason)
        if connection is not None and connection.transport is not None:
            connection.transport.abort()
        if self._reopening is not None and self._reopening is not asyncio.current_task():
            self._reopening.cancel()
