"""Servers on loopback that behave as servers of tenants might."""

from __future__ import annotations

import asyncio
import datetime
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from torpor.notify.client import Client
from torpor.notify.guard import Guard, Place, networks
from torpor.ports.notify import Message

LOOPBACK = Guard(networks("127.0.0.0/8,::1/128"))
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
MESSAGE = Message("dlv-1", b'{"event":"capsule.created"}', "A sandbox was created", "Event: capsule.created\nActor: user <@everyone> *x*")


@dataclass(frozen=True)
class Seen:
    """A request as it came."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


Behaviour = Callable[[Seen, asyncio.StreamWriter], Awaitable[None]]


async def answer_ok(seen: Seen, writer: asyncio.StreamWriter) -> None:
    writer.write(OK)


def answering(text: bytes) -> Behaviour:
    async def answer(seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(text)

    return answer


@dataclass
class Web:
    """`port` of a server on 127.0.0.1; what it saw; what it does."""

    behaviour: Behaviour = answer_ok
    port: int = 0
    seen: list[Seen] = field(default_factory=list)
    connections: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with suppress(OSError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            method, target, _ = head[0].split(" ", 2)
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
            seen = Seen(method, target, headers, await reader.readexactly(int(headers.get("content-length", "0"))))
            self.seen.append(seen)
            await self.behaviour(seen, writer)
            await writer.drain()
        writer.close()


@asynccontextmanager
async def web(behaviour: Behaviour = answer_ok, tls: ssl.SSLContext | None = None) -> AsyncIterator[Web]:
    served = Web(behaviour)
    server = await asyncio.start_server(served.serve, "127.0.0.1", 0, ssl=tls)
    served.port = server.sockets[0].getsockname()[1]
    try:
        yield served
    finally:
        server.close()


def everything_at(port: int) -> Callable[[str, int], Awaitable[list[Place]]]:
    """A resolver for which every name is that server."""

    async def resolve(host: str, asked: int) -> list[Place]:
        return [("127.0.0.1", port)]

    return resolve


def client_of(served: Web, authorities: str = "") -> Client:
    return Client(Guard(LOOPBACK.allowed, everything_at(served.port)), authorities)


def certificate(folder: Path, *names: str) -> tuple[ssl.SSLContext, str]:
    """A server's context with a certificate for these names that signs itself, and the file to trust it by."""
    key = ec.generate_private_key(ec.SECP256R1())
    me = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "loopback")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(me)
        .issuer_name(me)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([*(x509.DNSName(name) for name in names), x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = folder / "cert.pem", folder / "key.pem"
    files[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*map(str, files))
    return context, str(files[0])
