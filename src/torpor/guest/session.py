"""The agent's end of the protocol: one port, one conversation at a time.

A conversation is what one host process and one generation say to each other: its requests (executed at most once) and its streams. A HELLO with the same
generation and the same link number resumes it after a broken connection; any other HELLO ends it and begins the next.
"""

from __future__ import annotations

import errno
import io
import os
import select
from collections.abc import Callable
from typing import Any

from torpor.guest.conversation import Conversation, Request, Stream
from torpor.guest.faults import Refusal, fault
from torpor.guest.loads import Load, LoadSender
from torpor.guest.loop import Loop, Timer
from torpor.wire import guest as wire

_READS_A_TURN = 32
_BYTES_A_TURN = 262144
_SHRINK_AFTER = 2.0
"""Seconds after large frames until the memory they took goes back."""
Json = dict[str, Any]


Operation = Callable[[Request], Json | None]
"""Returns the reply's fields, or None to answer later; raises OSError or Refusal."""


Welcome = Callable[[int, Json, Callable[[Json], None]], None]
"""(generation, hello, done): applies a wake, sets the session's generation, then calls `done` with the WELCOME's fields, now or later; or raises."""


class Session:
    """`operations` by name; `welcome` answers hellos; `resumed(conversation)` sends lost events again."""

    def __init__(self, loop: Loop, operations: dict[str, Operation], welcome: Welcome, resumed: Callable[[Conversation], None]) -> None:
        self.loop = loop
        self.operations = operations
        self.welcome = welcome
        self.resumed = resumed
        self.generation = 0
        self.conversation = Conversation(0, 0)
        self._port = -1
        self._raw: io.FileIO
        """The port, for calls that say None instead of raising when it would block: an exception costs as much as several frames."""
        self._is_socket = False
        self._reader = wire.FrameReader(lambda header: header.type == wire.HELLO, watchful=True, lends=True)
        self._shrinking: Timer | None = None
        self._rest: memoryview | None = None
        self._load: Load | None = None
        """What comes out of a pipe, after `_rest`."""
        self._writable = True
        self._hung = False
        """The port has no host just now: that is told once, not for ever."""
        self._reading = False
        self._deaf = False
        """The host broke the rules: nothing is heard but its next hello."""
        self._hello_nonce = -1

    def use_port(self, fd: int, *, is_socket: bool) -> None:
        """Speaks through `fd` (non-blocking) from now on; a previous socket is closed."""
        self._drop_port()
        self._port, self._is_socket = fd, is_socket
        self._raw = io.FileIO(fd, "r+", closefd=False)
        self._reader.reset()
        self._forget_rest()
        self._writable, self._hung = True, False
        self.loop.register(fd, select.EPOLLIN, self._on_port)

    def flush(self) -> None:
        """Writes what there is as far as the port takes it. The loop calls this at the end of each turn."""
        while self._port >= 0 and self._writable:
            if self._rest is None and self._load is None and not self._gather():
                return
            try:
                went = self._write() if self._rest is not None else self._splice()
            except OSError as error:
                self._broken(error)
                return
            if not went:
                self._writable = False
                self._arm()

    def _write(self) -> bool:
        """Writes what is left of a chunk; False when there is no room."""
        assert self._rest is not None
        written = self._raw.write(self._rest)
        if written is None:
            return False
        self._rest = self._rest[written:] if written < len(self._rest) else None
        return True

    def _splice(self) -> bool:
        """Moves a load on; False when there is no room."""
        load = self._load
        assert load is not None
        try:
            if (filler := load.go_on(self._port)) is not None:
                self._rest = filler
        except BlockingIOError:
            return False
        if load.left == 0:
            self._load = None
            load.sent()
        return True

    def _forget_rest(self) -> None:
        self._rest = None
        if self._load is not None:
            self._load.drop()
            self._load = None

    def _gather(self) -> bool:
        """Finds what is to be written next: control frames together up to one write's size, then a frame of each stream in turn. False: nothing."""
        conversation = self.conversation
        if conversation.control:
            parts, size = [conversation.control.popleft()], 0
            size = len(parts[0])
            while conversation.control and size + len(conversation.control[0]) <= 32768:
                size += len(conversation.control[0])
                parts.append(conversation.control.popleft())
            while conversation.ready and not conversation.quiet and (small := self._pull(conversation.ready[0], 32768 - size)) is not None:
                size += len(small)
                parts.append(small)
            self._rest = memoryview(b"".join(parts) if len(parts) > 1 else parts[0])
            return True
        while conversation.ready and not conversation.quiet:
            stream = conversation.ready.popleft()
            stream.queued = False
            sender = stream.sender
            if sender is None or conversation.streams.get(stream.number) is not stream:
                continue
            head: bytes | None
            if isinstance(sender, LoadSender) and (loaded := sender.pull_load(stream.number, conversation.generation)) is not None:
                head, self._load = loaded
            else:
                head = sender.pull(stream.number, conversation.generation, wire.GUEST_PAYLOAD)
            stream.wake()
            if head is not None:
                self._rest = memoryview(head)
                return True
        return False

    def _pull(self, stream: Stream, room: int) -> bytes | None:
        """A frame of the first ready stream if all it has to say fits beside control frames: short answers then need one write."""
        sender = stream.sender
        if sender is None or stream.conversation.streams.get(stream.number) is not stream or sender.top - sender.position + 2 * wire.HEADER.size > room:
            return None
        frame = sender.pull(stream.number, stream.conversation.generation, room - wire.HEADER.size)
        if not sender.wants():
            stream.conversation.ready.popleft()
            stream.queued = False
        return frame

    def _on_port(self, events: int) -> None:
        if bool(events & select.EPOLLHUP) != self._hung and not self._is_socket:
            self._hung = not self._hung
            self._arm()
        if events & select.EPOLLOUT and not self._writable:
            self._writable = True
            self._arm()
        if events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
            self._read()

    def _arm(self) -> None:
        """What the port's events are to be. Room is waited for only when a write found none: else each write would cost a turn of its own."""
        self.loop.modify(self._port, select.EPOLLIN | (0 if self._writable else select.EPOLLOUT) | (select.EPOLLET if self._hung else 0))

    def _read(self) -> None:
        """Reads a bounded number of pieces, then lets others have their turn."""
        port, taken = self._port, 0
        for _ in range(_READS_A_TURN):
            if port != self._port or port < 0:
                return
            pages = self._reader.pages()
            try:
                count = os.readv(port, pages) if pages else self._raw.readinto(self._reader.space())
            except BlockingIOError:
                return
            except OSError as error:
                self._broken(error)
                return
            if count is None:
                return  # nothing is there
            if count == 0:
                if self._is_socket:
                    self._drop_port()
                return
            for frame in self._reader.feed(count):
                if self._deaf and frame.type != wire.HELLO:
                    continue
                try:
                    self._take(frame)
                    self._deaf = False
                except wire.ProtocolError:
                    self._deaf = True
            if count < wire.PAGE * max(1, len(pages)):
                return  # most likely all: a read that finds nothing costs more than asking epoll again
            taken += count
            if taken >= _BYTES_A_TURN:
                break
        if not self._reading:
            self._reading = True
            self.loop.soon(self._read_on)

    def _read_on(self) -> None:
        self._reading = False
        self._read()

    def _broken(self, error: OSError) -> None:
        """A port of virtio-serial outlives everything; a socket is dropped and the host comes again."""
        if self._is_socket:
            self._drop_port()
        elif error.errno not in (errno.EPIPE, errno.EINTR):
            raise error

    def _drop_port(self) -> None:
        if self._port >= 0:
            self.loop.unregister(self._port)
            if self._is_socket:
                os.close(self._port)
        self._port = -1

    def _take(self, frame: wire.Frame) -> None:
        conversation = self.conversation
        if frame.type == wire.HELLO:
            self._hello(frame)
        elif frame.generation != conversation.generation or not conversation.alive:
            return
        elif frame.type == wire.REQUEST:
            self._request(frame)
        elif frame.type == wire.DONE:
            self._done(wire.from_json(frame.payload).get("done", []))
        else:
            self._stream(frame)

    def _hello(self, frame: wire.Frame) -> None:
        """Answers when the wake is through; a later hello takes the place of one that still waits."""
        hello = wire.from_json(frame.payload)
        link = int(hello.get("link", 0))
        self._forget_rest()
        self._hello_nonce = frame.offset
        self.conversation.control.clear()
        self.conversation.ready.clear()

        def greet(fields: Json) -> None:
            if self._hello_nonce == frame.offset:
                self._greet(frame.offset, link, fields)

        try:
            if wire.VERSION not in hello.get("versions", []):
                raise Refusal("version", "no common version")
            self.welcome(frame.generation, hello, greet)
        except Exception as error:
            greet({"error": fault(error)})

    def _greet(self, nonce: int, link: int, fields: Json) -> None:
        old, failed = self.conversation, "error" in fields
        resumed = not failed and old.alive and old.link == link and old.generation == self.generation
        if not resumed and not failed:
            old.end()
            self.conversation = Conversation(self.generation, link)
        fields |= {"version": wire.VERSION, "resumed": resumed}
        self.conversation.control.append(wire.encode(wire.WELCOME, 0, self.generation, nonce, wire.to_json(fields)))
        if resumed:
            self._resume(old)

    def _resume(self, conversation: Conversation) -> None:
        """Every stream waits until the host names it."""
        conversation.awaited.clear()
        for stream in conversation.streams.values():
            stream.queued = stream.named = False
            if stream.sender is not None:
                stream.sender.hold()
        self.resumed(conversation)

    def _on_resume(self, frame: wire.Frame) -> None:
        """The host names a stream, or has named all."""
        conversation = self.conversation
        stream = conversation.streams.get(frame.stream)
        if stream is not None:
            self._window(stream, frame)
            stream.resume()
        elif frame.stream == wire.ALL_NAMED:
            for other in [s for s in conversation.streams.values() if not s.named]:
                self._close(other)
        elif conversation.answers.get(frame.stream // 2, b"") is None:
            conversation.awaited.add(frame.stream)
        else:
            conversation.send(wire.encode(wire.CLOSE, frame.stream, conversation.generation))

    @staticmethod
    def _close(stream: Stream) -> None:
        stream.release()
        if stream.on_close is not None:
            stream.on_close()

    def _request(self, frame: wire.Frame) -> None:
        conversation, id_ = self.conversation, frame.stream // 2
        known = conversation.answers.get(id_)
        if id_ in conversation.answers:
            if known is not None:
                conversation.send(known)
            return
        payload = frame.payload
        if frame.flags & wire.FLAG_MORE or id_ in conversation.fragments:
            whole = conversation.fragments.setdefault(id_, bytearray())
            if frame.offset != len(whole):
                if frame.offset != 0:
                    raise wire.ProtocolError("a fragment is missing")
                whole.clear()
            whole += payload
            if sum(map(len, conversation.fragments.values())) > 4 * wire.MAX_REQUEST:
                raise wire.ProtocolError("fragments beyond all bounds")
            if frame.flags & wire.FLAG_MORE:
                return
            payload = bytes(conversation.fragments.pop(id_))
        args = wire.from_json(payload)
        self._done(args.pop("done", []))
        conversation.answers[id_] = None
        request = Request(conversation, id_, args)
        try:
            operation = self.operations.get(str(args.get("op")))
            if operation is None:
                raise Refusal("invalid", f"no operation {args.get('op')!r}")
            fields = operation(request)
        except Exception as error:
            request.fail(error)
        else:
            if fields is not None:
                request.reply(**fields)

    def _done(self, ids: Any) -> None:
        if not isinstance(ids, list):
            raise wire.ProtocolError("what is done is no list")
        for id_ in ids:
            if isinstance(id_, int) and self.conversation.answers.get(id_) is not None:
                del self.conversation.answers[id_]

    def _stream(self, frame: wire.Frame) -> None:
        conversation = self.conversation
        stream = conversation.streams.get(frame.stream)
        if frame.type == wire.RESUME:
            self._on_resume(frame)
        elif stream is None:
            return  # its request failed, or it was closed
        elif frame.type == wire.DATA and stream.receiver is not None:
            stream.receiver.data(frame.offset, len(frame.lent if frame.lent is not None else frame.payload))
            if frame.lent is not None:
                self._lent(stream, frame.lent)
            elif stream.on_data is not None:
                stream.on_data(frame.payload)
        elif frame.type == wire.END and stream.receiver is not None:
            if stream.receiver.end(frame.offset) and stream.on_end is not None:
                stream.on_end()
        elif frame.type == wire.CREDIT:
            self._window(stream, frame)
        elif frame.type == wire.CLOSE:
            self._close(stream)

    def _lent(self, stream: Stream, lent: wire.Lent) -> None:
        if self._shrinking is None:
            self._shrinking = self.loop.later(_SHRINK_AFTER, self._shrink)
        if stream.on_lent is not None:
            stream.on_lent(lent)
            return
        data = bytes(lent.view)
        lent.release()
        if stream.on_data is not None:
            stream.on_data(data)

    def _shrink(self) -> None:
        self._shrinking = None if self._reader.shrink() else self.loop.later(_SHRINK_AFTER, self._shrink)

    @staticmethod
    def _window(stream: Stream, frame: wire.Frame) -> None:
        if stream.sender is None:
            return
        consumed, limit = wire.window_pair(frame.payload)
        if frame.type == wire.CREDIT:
            stream.sender.credit(consumed, limit)
        else:
            stream.sender.resume(frame.offset, consumed, limit)
        if stream.on_room is not None:
            stream.on_room()
        stream.wake()
