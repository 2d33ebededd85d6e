"""The DNS relay: carries a guest's questions from its gateway address to the host's own resolvers, and the answers back.

    guest -> 192.0.0.1:53 (sockets in the slot, held by this process) -> resolvers of /etc/resolv.conf, asked from the host

The guest never learns or reaches a resolver's address, which is often private (10.x, 127.0.0.53, fd00::). The file is read again whenever it changes, so
running sandboxes follow the host to another network. While no host agent runs, names are not resolved; established connections are not concerned.

Nothing of a message is interpreted beyond its first three bytes (RFC 1035 4.1.1), unless the slot's sandbox may reach certain names: then the name in each
question is read (net.dns), and those that it may not reach do not exist for it, so that questions carry nothing to anybody else. Per slot at most `QUESTIONS`
UDP questions and `STREAMS` TCP connections are under way; the slot's rules bound their rate.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from torpor.model.domains import Domains
from torpor.net import dns
from torpor.net.plan import DNS_PORT

QUESTIONS = 32
STREAMS = 8
ANSWER_SECONDS = 2.0
STREAM_SECONDS = 30.0
LARGEST = 65535
HEADER = 12

Resolver = tuple[socket.AddressFamily, Any]
"""Family and socket address."""


def parse_resolvers(text: str) -> tuple[str, ...]:
    """Addresses of the `nameserver` lines, in order; resolv.conf(5) says 127.0.0.1 when there is none."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            found.append(words[1])
    return tuple(found) or ("127.0.0.1",)


class HostResolvers:
    """The host's resolvers, read again when the file changes. What is no numeric address is left out."""

    def __init__(self, path: Path, port: int = DNS_PORT) -> None:
        self._path = path
        self._port = port
        self._seen: tuple[int, int, int] | None = None
        self._resolvers: tuple[Resolver, ...] = ()

    def __call__(self) -> Sequence[Resolver]:
        try:
            found = self._path.stat()
            mark = (found.st_mtime_ns, found.st_ino, found.st_size)
            if mark != self._seen:
                self._resolvers, self._seen = self._read(self._path.read_text(errors="replace")), mark
        except FileNotFoundError:
            self._resolvers, self._seen = self._read(""), None
        return self._resolvers

    def _read(self, text: str) -> tuple[Resolver, ...]:
        resolvers: list[Resolver] = []
        for address in parse_resolvers(text):
            with contextlib.suppress(socket.gaierror):
                family, _, _, _, where = socket.getaddrinfo(address, self._port, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST)[0]
                resolvers.append((family, where))
        return tuple(resolvers)


def failure(question: bytes) -> bytes:
    """The SERVFAIL answer to a question: its header with QR set, RCODE 2 and no records."""
    return question[:2] + bytes([question[2] | 0x80, 2]) + bytes(8)


class Relay:
    """Serves one slot's sockets until `close`, which closes them."""

    def __init__(self, udp: socket.socket, tcp: socket.socket, resolvers: Callable[[], Sequence[Resolver]]) -> None:
        self._udp = udp
        self._tcp = tcp
        self._resolvers = resolvers
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._questions = 0
        self._streams: set[asyncio.Task[None]] = set()
        self._names: Domains | None = None
        self._loop.add_reader(udp.fileno(), self._on_question)
        self._loop.add_reader(tcp.fileno(), self._on_stream)

    async def close(self) -> None:
        """Idempotent. Questions under way are dropped; when it returns, no socket of the slot is open here."""
        for listener in (self._udp, self._tcp):
            if listener.fileno() >= 0:
                self._loop.remove_reader(listener.fileno())
                listener.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    @property
    def names(self) -> Domains | None:
        """Which names are resolved; None for all."""
        return self._names

    def restrict(self, names: Domains | None) -> None:
        """From now on. TCP connections that are open were opened under other rules and are broken off."""
        self._names = names
        for stream in self._streams:
            stream.cancel()

    def _refusal(self, question: bytes) -> bytes | None:
        """The answer to what is not to be asked; None for what may be."""
        if self._names is None:
            return None
        name = dns.asked_name(question)
        if name is None:
            return dns.refusal(question, dns.FORMAT_ERROR)
        return None if self._names.cover(name) else dns.refusal(question, dns.NO_SUCH_NAME)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _on_question(self) -> None:
        for _ in range(QUESTIONS):
            try:
                question, guest = self._udp.recvfrom(LARGEST)
            except OSError:  # nothing more to read, or an ICMP error about an answer that the guest no longer wanted
                return
            if len(question) < HEADER or question[2] & 0x80 or self._questions >= QUESTIONS:
                continue
            if refusal := self._refusal(question):
                self._tell(refusal, guest)
                continue
            self._questions += 1
            self._start(self._answer(question, guest))

    async def _answer(self, question: bytes, guest: Any) -> None:
        try:
            answer = None
            for family, where in self._resolvers():
                answer = await self._ask(family, where, question)
                if answer is not None:
                    break
            if self._udp.fileno() >= 0:
                self._tell(answer or failure(question), guest)
        finally:
            self._questions -= 1

    def _tell(self, answer: bytes, guest: Any) -> None:
        with contextlib.suppress(OSError):  # the slot's own queue is full: as good as a lost datagram
            self._udp.sendto(answer, guest)

    async def _ask(self, family: socket.AddressFamily, where: Any, question: bytes) -> bytes | None:
        """One resolver's answer, None when it has none. A connected socket with a port of its own per question: the kernel drops what others send."""
        try:
            with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as asker:
                asker.connect(where)
                asker.send(question)
                async with asyncio.timeout(ANSWER_SECONDS):
                    while True:
                        answer = await self._loop.sock_recv(asker, LARGEST)
                        if answer[:2] == question[:2]:
                            return answer
        except OSError:  # refused, unreachable, or timed out
            return None

    def _on_stream(self) -> None:
        try:
            guest, _ = self._tcp.accept()
        except OSError:  # gone again before we came to it
            return
        if len(self._streams) >= STREAMS:
            guest.close()
            return
        stream = self._start(self._carry(guest))
        self._streams.add(stream)
        stream.add_done_callback(self._streams.discard)

    async def _carry(self, guest: socket.socket) -> None:
        with guest:
            guest.setblocking(False)
            with contextlib.suppress(OSError):  # no time left, or no descriptors
                async with asyncio.timeout(STREAM_SECONDS):
                    await self._join(guest)

    async def _join(self, guest: socket.socket) -> None:
        for family, where in self._resolvers():
            with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as resolver:
                try:
                    async with asyncio.timeout(ANSWER_SECONDS):
                        await self._loop.sock_connect(resolver, where)
                except OSError:
                    continue
                if self._names is not None:
                    await self._one_by_one(guest, resolver)
                    return
                try:
                    async with asyncio.TaskGroup() as both:
                        both.create_task(self._pour(guest, resolver))
                        both.create_task(self._pour(resolver, guest))
                except* OSError:  # either end broke off: the other is closed with it
                    pass
                return

    async def _one_by_one(self, guest: socket.socket, resolver: socket.socket) -> None:
        """Each question is read before it is passed on (RFC 1035 4.2.2: two bytes of length before each message)."""
        while question := await self._message(guest):
            answer = self._refusal(question) if len(question) >= HEADER else b""
            if answer is None:
                await self._loop.sock_sendall(resolver, len(question).to_bytes(2) + question)
                answer = await self._message(resolver)
            if not answer:
                return
            await self._loop.sock_sendall(guest, len(answer).to_bytes(2) + answer)

    async def _message(self, source: socket.socket) -> bytes:
        """b'' at the end, also in the middle of one."""
        data, wanted = b"", 2
        while len(data) < wanted:
            piece = await self._loop.sock_recv(source, wanted - len(data))
            if not piece:
                return b""
            data += piece
            if len(data) == wanted == 2:
                wanted += int.from_bytes(data)
        return data[2:]

    async def _pour(self, source: socket.socket, target: socket.socket) -> None:
        while data := await self._loop.sock_recv(source, LARGEST):
            await self._loop.sock_sendall(target, data)
        target.shutdown(socket.SHUT_WR)
