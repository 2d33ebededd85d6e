"""A gate on the loopback: a guest that connects to it, servers that keep what they were asked, and names that lead to them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

import h11
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from torpor.model.domains import Domains
from torpor.net.gate.lookup import Unknown
from torpor.net.gate.serve import Gate

LOCAL = IPv4Address("127.0.0.1")
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Names:
    """Stands in for the look-up."""

    def __init__(self, known: Sequence[str]) -> None:
        self.known = known
        self.asked: list[str] = []

    async def find(self, name: str) -> tuple[IPv4Address, ...]:
        self.asked.append(name)
        if name not in self.known:
            raise Unknown(f"nobody answers for {name}")
        return (LOCAL,)


class HttpServer:
    """Reads strictly and keeps each request with its body; `script` says what else it does with one."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, str, bytes]] = []
        self.heads: list[bytes] = []
        self.script: Callable[[h11.Request, bytes, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[bool]] | None = None

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        request, body = None, b""
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                data = await reader.read(65536)
                self.heads.append(data)
                http.receive_data(data)
            elif isinstance(event, h11.Request):
                request, body = event, b""
                if http.they_are_waiting_for_100_continue:
                    writer.write(http.send(h11.InformationalResponse(status_code=100, headers=[])))
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                assert request is not None
                headers = dict(request.headers)
                self.requests.append((request.method.decode(), headers.get(b"host", b"").decode(), request.target.decode(), body))
                if self.script is not None and await self.script(request, body, reader, writer):
                    return
                said = f"{headers.get(b'host', b'').decode()}{request.target.decode()} {len(body)}".encode()
                head = h11.Response(status_code=200, headers=[("X-Kept", "As-It-Was"), ("Content-Length", str(len(said)))])
                writer.write(http.send(head) + http.send(h11.Data(data=said)) + http.send(h11.EndOfMessage()))
                await writer.drain()
                if http.our_state is not h11.DONE or http.their_state is not h11.DONE:
                    return
                http.start_next_cycle()
            else:
                return


class GateWorld:
    """`port`: where the guest's connections were meant to go, and so where the server is."""

    def __init__(self, gate: Gate, address: tuple[str, int], names: Names) -> None:
        self.gate, self.address, self.names = gate, address, names
        self.server = HttpServer()
        self.port = 0
        self._stack = contextlib.AsyncExitStack()

    async def serve(self, handler: Handler, tls: ssl.SSLContext | None = None) -> int:
        """A server on a port of its own; guests connect to it from now on."""
        tasks: set[asyncio.Task[None]] = set()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            try:
                await handler(reader, writer)
            except (OSError, h11.RemoteProtocolError, asyncio.IncompleteReadError):
                return
            finally:
                writer.close()
                tasks.discard(task)

        async def end() -> None:
            server.close()
            for task in list(tasks):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=tls)
        self._stack.push_async_callback(end)
        self.port = server.sockets[0].getsockname()[1]
        return self.port

    async def connect(self, tls: ssl.SSLContext | None = None, name: str | None = None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(*self.address, ssl=tls, server_hostname=name if tls else None)
        self._stack.callback(writer.close)
        return reader, writer

    async def say(self, data: bytes) -> bytes:
        """A connection on which this is said; all that is answered. A reset ends it like an end, also before anything was said."""
        try:
            reader, writer = await self.connect()
        except ConnectionError:
            return b""
        writer.write(data)
        return await everything(reader)

    async def close(self) -> None:
        await self._stack.aclose()
        await self.gate.close()


async def everything(reader: asyncio.StreamReader) -> bytes:
    said = b""
    with contextlib.suppress(ConnectionError):
        while piece := await reader.read(65536):
            said += piece
    return said


@contextlib.asynccontextmanager
async def gate_world(domains: Sequence[str], known: Sequence[str]) -> AsyncIterator[GateWorld]:
    """`known`: the names that exist, all at the loopback."""
    listener = socket.create_server(("127.0.0.1", 0))
    names = Names(known)
    world: GateWorld
    gate = Gate(listener, names, Domains(domains), wanted=lambda _: ("93.184.216.34", world.port), public=lambda _: True)  # type: ignore[arg-type]
    world = GateWorld(gate, listener.getsockname(), names)
    try:
        yield world
    finally:
        await world.close()


def certificate(directory: Path, *names: str) -> ssl.SSLContext:
    """A server's, signed by itself; `directory/cert.pem` is what a client trusts."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, names[0])])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number(), now - timedelta(days=1), now + timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (directory / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    (directory / "key.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "cert.pem", directory / "key.pem")
    return context


def trusting(directory: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(directory / "cert.pem"))
