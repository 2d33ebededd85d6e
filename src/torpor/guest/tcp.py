"""TCP connections into the sandbox, localhost listeners included, each as a stream."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct

from torpor.guest.conversation import Request, Stream
from torpor.guest.faults import Refusal, fault
from torpor.guest.loop import Loop
from torpor.guest.netconf import own_address
from torpor.wire import guest as wire

_PIECE = 65536
CONNECT_SECONDS = 5.0


class Connections:
    """The operation `connect`."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop

    def connect(self, request: Request) -> None:
        """args port, host: tries 127.0.0.1, ::1, the card's address; or `host` (an address) alone. Replies once connected; the last error counts."""
        port, host = int(request.args.get("port", 0)), str(request.args.get("host") or "")
        if not 0 < port < 65536:
            raise Refusal("invalid", f"{port} is no port")
        own = own_address()
        hosts = [host] if host else ["127.0.0.1", "::1"] + ([own] if own else [])
        _Attempt(self._loop, request, hosts, port).next(ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED)))


class _Attempt:
    """Tries addresses in turn, without blocking."""

    def __init__(self, loop: Loop, request: Request, hosts: list[str], port: int) -> None:
        self._loop = loop
        self._request = request
        self._hosts = hosts
        self._port = port
        self._error: OSError | None = None

    def next(self, error: OSError) -> None:
        """After `error` on the address before. The first one that is more than a refusal is the one to tell."""
        if self._error is None or self._error.errno == errno.ECONNREFUSED:
            self._error = error
        if not self._hosts:
            self._request.fail(self._error)
            return
        host = self._hosts.pop(0)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            connection = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        except OSError as failure:
            self.next(failure)
            return
        try:
            code = connection.connect_ex((host, self._port))
        except (OSError, ValueError) as failure:  # not an address
            connection.close()
            self.next(failure if isinstance(failure, OSError) and failure.errno else OSError(errno.EINVAL, os.strerror(errno.EINVAL)))
            return
        if code == 0:
            self._connected(connection)
        elif code == errno.EINPROGRESS:
            self._wait(connection)
        else:
            connection.close()
            self.next(OSError(code, os.strerror(code)))

    def _wait(self, connection: socket.socket) -> None:
        def settle(code: int) -> None:
            timer.cancel()
            self._loop.unregister(connection.fileno())
            if code == 0:
                self._connected(connection)
            else:
                connection.close()
                self.next(OSError(code, os.strerror(code)))

        timer = self._loop.later(CONNECT_SECONDS, lambda: settle(errno.ETIMEDOUT))
        self._loop.register(connection.fileno(), select.EPOLLOUT, lambda _events: settle(connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)))

    def _connected(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not self._request.conversation.alive:
            connection.close()
            return
        self._request.reply()
        _Connection(self._loop, self._request.stream(sender=wire.Sender(), receiver=wire.Receiver()), connection)


class _Connection:
    """Carries bytes both ways; each direction ends by itself."""

    def __init__(self, loop: Loop, stream: Stream, connection: socket.socket) -> None:
        self._loop = loop
        self._stream = stream
        self._socket = connection
        self._waiting: list[memoryview] = []
        self._ending = self._write_over = self._read_over = False
        self._events = select.EPOLLIN
        stream.on_data = self._take
        stream.on_end = self._end
        stream.on_room = self._regulate
        stream.on_close = self._close
        loop.register(connection.fileno(), self._events, self._on_events)

    def _regulate(self) -> None:
        """Watches only for what can be handled now."""
        sender = self._stream.sender
        assert sender is not None
        wanted = 0
        if not self._read_over and sender.pending < wire.WINDOW:
            wanted |= select.EPOLLIN
        if self._waiting and not self._write_over:
            wanted |= select.EPOLLOUT
        if wanted == self._events or self._socket.fileno() < 0:
            return
        if wanted and self._events:
            self._loop.modify(self._socket.fileno(), wanted)
        elif wanted:
            self._loop.register(self._socket.fileno(), wanted, self._on_events)
        else:  # a hang-up is reported even to who asks for nothing
            self._loop.unregister(self._socket.fileno())
        self._events = wanted

    def _on_events(self, events: int) -> None:
        if events & select.EPOLLOUT:
            self._write()
        if events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR) and not self._read_over:
            self._read()
        self._regulate()

    def _read(self) -> None:
        sender = self._stream.sender
        assert sender is not None
        try:
            data = self._socket.recv(_PIECE)
        except BlockingIOError:
            return
        except OSError as error:
            self._break(error)
            return
        if data:
            sender.write(data)
        else:
            self._read_over = True
            sender.end()
        self._stream.wake()

    def _take(self, data: bytes) -> None:
        self._waiting.append(memoryview(data))
        if len(self._waiting) == 1:
            self._write()
        self._regulate()

    def _end(self) -> None:
        self._ending = True
        self._write()
        self._regulate()

    def _write(self) -> None:
        while self._waiting:
            piece = self._waiting[0]
            try:
                count = len(piece) if self._write_over else self._socket.send(piece)
            except BlockingIOError:
                return
            except OSError as error:
                self._break(error)
                return
            self._stream.consumed(count)
            if count < len(piece):
                self._waiting[0] = piece[count:]
            else:
                self._waiting.pop(0)
        if self._ending and not self._write_over:
            self._write_over = True
            try:
                self._socket.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # the peer has gone: reading will say so

    def _break(self, error: OSError) -> None:
        """The connection failed: the host hears it as the end of what it reads, and as refused writes."""
        self._write_over = self._read_over = True
        if self._stream.sender is not None:
            self._stream.sender.end(wire.to_json({"error": fault(error)}))
        self._stream.wake()
        waiting, self._waiting = self._waiting, []
        for piece in waiting:
            self._stream.consumed(len(piece))

    def _close(self) -> None:
        if self._socket.fileno() >= 0:
            if not (self._read_over and self._write_over):
                # Let go in the middle: the peer gets a reset, not an end that looks whole.
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._loop.unregister(self._socket.fileno())
            self._socket.close()
