"""Large bodies through the proxy: whole, unaltered, and with flat memory."""

from __future__ import annotations

import asyncio
import hashlib
import os
import ssl
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from proxy_world import DOMAIN, ProxyWorld, bytes_server, open_proxy

from torpor.apps.certs import ensure
from torpor.model.records import Exposure

SIZES = [256 << 20, pytest.param(4 << 30, marks=pytest.mark.soak)]
ROOM = 48 << 20
"""What the whole process (client, server, proxy) may grow by while either passes through it."""
BLOCK = os.urandom(1 << 20)


@pytest.fixture
async def proxy(tmp_path: Path) -> AsyncIterator[ProxyWorld]:
    async with open_proxy(tmp_path, domain=DOMAIN) as world:
        yield world


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Watch:
    """The most that the process had beyond what it had at first."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self.first = self.most = resident()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._over.wait(0.02):
            self.most = max(self.most, resident())

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def grown(self) -> int:
        return self.most - self.first


async def download(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """As many bytes as the path says."""
    size = int((await reader.readuntil(b"\r\n\r\n")).split(b" ")[1][1:])
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
    for _ in range(size // len(BLOCK)):
        writer.write(BLOCK)
        await writer.drain()


async def upload(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    digest, rest = hashlib.blake2b(), int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    while rest:
        piece = await reader.read(min(rest, 1 << 18))
        digest.update(piece)
        rest -= len(piece)
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + digest.hexdigest().encode())


def whole(size: int) -> str:
    digest = hashlib.blake2b()
    for _ in range(size // len(BLOCK)):
        digest.update(BLOCK)
    return digest.hexdigest()


@pytest.mark.parametrize("size", SIZES)
async def test_down(proxy: ProxyWorld, size: int) -> None:
    sandbox, digest = await proxy.sandbox(), hashlib.blake2b()
    async with bytes_server(download) as port:
        with Watch() as watch:
            async with proxy.to(sandbox, port).stream("GET", f"/{size}") as answer:
                async for piece in answer.aiter_raw():
                    digest.update(piece)
    assert digest.hexdigest() == whole(size)
    print(f"grown by {watch.grown >> 20} MiB")
    assert watch.grown < ROOM


@pytest.mark.parametrize("size", SIZES)
async def test_up(proxy: ProxyWorld, size: int) -> None:
    async def body() -> AsyncIterator[bytes]:
        for _ in range(size // len(BLOCK)):
            yield BLOCK

    sandbox = await proxy.sandbox()
    async with bytes_server(upload) as port:
        with Watch() as watch:
            answer = await proxy.to(sandbox, port).post("/", content=body(), headers={"Content-Length": str(size)})
    assert answer.text == whole(size)
    print(f"grown by {watch.grown >> 20} MiB")
    assert watch.grown < ROOM


async def test_through_tls_on_both_sides(tmp_path: Path) -> None:
    """The client's, with a certificate of `torpor certs`, and one that a server in the sandbox speaks itself."""
    made = ensure(tmp_path / "certs", DOMAIN)
    inside = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    inside.load_cert_chain(made.certificate, made.key)
    outside = ssl.create_default_context(cafile=str(made.authority))

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % length)
        while length:
            piece = await reader.read(1 << 16)
            length -= len(piece)
            writer.write(piece)
            await writer.drain()

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"I speak no TLS.\r\n")

    content = BLOCK * 8
    (tmp_path / "world").mkdir()
    async with (
        open_proxy(tmp_path / "world", domain=DOMAIN, certificate=(str(made.certificate), str(made.key))) as proxy,
        bytes_server(echo, tls=inside) as port,
        bytes_server(plain) as other,
    ):
        sandbox = await proxy.sandbox(exposure=Exposure(public_ports=True, tls_ports=(port, other)))
        async with httpx.AsyncClient(verify=outside, trust_env=False, timeout=100) as client:
            for host in (proxy.host_of(sandbox, port), f"api.{DOMAIN}", DOMAIN):
                how = {"headers": {"Host": host}, "extensions": {"sni_hostname": host}}
                url = f"https://127.0.0.1:{proxy.port}/health"
                answer = await (client.post(url, content=content, **how) if host.startswith(str(port)) else client.get(url, **how))
                assert answer.status_code == 200
                assert (answer.content == content) == host.startswith(str(port))
        assert (await proxy.to(sandbox, other).get("/")).json()["code"] == 502
