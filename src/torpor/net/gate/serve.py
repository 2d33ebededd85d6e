"""The gate of one slot: takes the guest's connections, finds out what each is for, and ends those that a change of the rules no longer allows.

    taken -> first bytes -> name -> judged -> looked up -> connected -> carried -> closed
               |             |        |          |
               +-------------+--------+----------+--> refused: told in its own protocol where it has one, else reset

Bounds: MOST connections, one piece each way, HEAD_SECONDS until the name is known, CONNECT_SECONDS until the server is reached; a connection with one way ended
and nothing on the other for HALF_SECONDS is broken off, one whose peer does not answer keep-alives too.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from ipaddress import IPv4Address

import h11

from torpor.model.addresses import is_public
from torpor.model.domains import Domains
from torpor.net.gate import hello, http, tls
from torpor.net.gate.lookup import Lookup, Unknown
from torpor.net.gate.streams import Stream

MOST = 256
HEAD_SECONDS, CONNECT_SECONDS, TRY_SECONDS, HALF_SECONDS, SWEEP_SECONDS = 30.0, 10.0, 4.0, 300.0, 30.0
_SO_ORIGINAL_DST = 80  # linux/netfilter_ipv4.h


class Denied(Exception):
    """The rules do not allow this name."""


class Unreachable(Exception):
    """No server of that name was reached."""


def wanted_place(connection: socket.socket) -> tuple[str, int]:
    """Where the guest meant to connect to, before its connection was led here. Raises OSError."""
    port, address = struct.unpack_from(">2xH4s", connection.getsockopt(socket.IPPROTO_IP, _SO_ORIGINAL_DST, 16))
    return str(IPv4Address(address)), port


class Connection:
    """One of the guest's, from its acceptance to its end."""

    def __init__(self, gate: Gate, guest: socket.socket, port: int) -> None:
        self._gate = gate
        self._loop = asyncio.get_running_loop()
        self._guest = Stream(guest, self._touch)
        self._server: Stream | None = None
        self._port = port
        self.name = ""
        self.half = False
        self.touched = self._loop.time()

    def _touch(self) -> None:
        self.touched = self._loop.time()

    def _halve(self) -> None:
        self.half = True

    async def run(self) -> None:
        gently = False
        try:
            gently = await self._serve()
        except (OSError, h11.ProtocolError):
            gently = False
        finally:
            if not gently:
                self._guest.abort()
            if self._server is not None:
                self._server.close() if gently else self._server.abort()
        if gently:
            await self._guest.close_gently()

    async def _serve(self) -> bool:
        """True when the guest was told everything."""
        deadline = self._loop.time() + HEAD_SECONDS
        async with asyncio.timeout(HEAD_SECONDS):
            first = await self._guest.receive()
        if not first:
            return True
        if first[0] == hello.HANDSHAKE:
            return await self._tls(first, deadline)
        await http.Exchange(self._guest, self._enter_http, self._again_http, self._halve).run(first, deadline - self._loop.time())
        return True

    async def _tls(self, first: bytes, deadline: float) -> bool:
        try:
            async with asyncio.timeout_at(deadline):
                name, records, rest = await tls.read_hello(self._guest, first)
            await tls.carry(self._guest, self._enter, name, records, rest, self._halve)
        except tls.Refused as refusal:
            await self._guest.send(hello.alert(refusal.alert))
        except Denied:
            await self._guest.send(hello.alert(hello.ACCESS_DENIED))
        except Unreachable:
            await self._guest.send(hello.alert(hello.INTERNAL_ERROR))
        return True

    async def _enter(self, name: str) -> Stream:
        """Raises Denied, Unreachable."""
        self._gate.judge(name)
        self.name = name  # from now on a change of the rules ends it
        self._server = Stream(await self._gate.dial(name, self._port), self._touch)
        return self._server

    async def _enter_http(self, name: str) -> Stream:
        self._again_http(name)
        try:
            return await self._enter(name)
        except Unreachable as error:
            raise http.Refused(502, f"{error}.") from None

    def _again_http(self, name: str) -> None:
        try:
            self._gate.judge(name)
        except Denied as error:
            raise http.Refused(403, f"{error}.") from None


class Gate:
    """Serves `listener` until `close`. `wanted`: tells where a connection was meant to go, for tests without a redirect; `public`: whether an address may be
    connected to."""

    def __init__(
        self,
        listener: socket.socket,
        lookup: Lookup,
        domains: Domains,
        wanted: Callable[[socket.socket], tuple[str, int]] = wanted_place,
        public: Callable[[IPv4Address], bool] = is_public,
    ) -> None:
        self._listener = listener
        self._lookup = lookup
        self._domains = domains
        self._wanted = wanted
        self._public = public
        self._loop = asyncio.get_running_loop()
        self._open: dict[asyncio.Task[None], Connection] = {}
        self._sweep: asyncio.TimerHandle | None = None
        listener.setblocking(False)
        self._loop.add_reader(listener, self._take)

    @property
    def connections(self) -> int:
        return len(self._open)

    def judge(self, name: str) -> None:
        """Raises Denied."""
        if not self._domains.cover(name):
            raise Denied(f"This sandbox may not reach {name[:100]}")

    async def dial(self, name: str, port: int) -> socket.socket:
        """A connection to a server of that name: the address that is connected to is the one that was judged. Raises Unreachable."""
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                for address in await self._lookup.find(name):
                    if self._public(address) and (connection := await self._connect(str(address), port)) is not None:
                        return connection
        except (Unknown, TimeoutError) as error:
            raise Unreachable(str(error) or f"{name} does not answer") from None
        raise Unreachable(f"{name} does not answer on port {port}")

    async def _connect(self, address: str, port: int) -> socket.socket | None:
        connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            async with asyncio.timeout(TRY_SECONDS):
                await self._loop.sock_connect(connection, (address, port))
        except OSError:  # TimeoutError is one
            connection.close()
            return None
        except BaseException:
            connection.close()
            raise
        return connection

    async def change(self, domains: Domains) -> None:
        """When it returns, the new rules hold, for open connections too."""
        self._domains = domains
        ended = [task for task, connection in self._open.items() if connection.name and not domains.cover(connection.name)]
        for task in ended:
            task.cancel()
        await asyncio.gather(*ended, return_exceptions=True)

    async def close(self) -> None:
        self._loop.remove_reader(self._listener)
        self._listener.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        if self._sweep is not None:
            self._sweep.cancel()

    def _take(self) -> None:
        try:
            guest, _ = self._listener.accept()
        except OSError:  # gone again, or no descriptors left
            return
        try:
            address, port = self._wanted(guest)
            if len(self._open) >= MOST or not self._public(IPv4Address(address)):
                raise ConnectionRefusedError
            connection = Connection(self, guest, port)
        except OSError:
            with contextlib.suppress(OSError):
                guest.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            guest.close()
            return
        task = self._loop.create_task(connection.run())
        self._open[task] = connection
        task.add_done_callback(lambda done: self._open.pop(done, None))
        if self._sweep is None:
            self._sweep = self._loop.call_later(SWEEP_SECONDS, self._sweep_halves)

    def _sweep_halves(self) -> None:
        self._sweep = None
        now = self._loop.time()
        for task, connection in self._open.items():
            if connection.half and connection.touched + HALF_SECONDS <= now:
                task.cancel()
        if self._open:
            self._sweep = self._loop.call_later(SWEEP_SECONDS, self._sweep_halves)
