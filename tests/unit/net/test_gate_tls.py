"""TLS through a gate: judged by the server name alone, and by every hello that a server may go by."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from gate_world import GateWorld, certificate, everything, gate_world, trusting

from torpor.model.domains import Domains
from torpor.net.gate import hello

NAMES = ["a.test", "b.test", "evil.test", "www.c.test"]
RETRY = (
    b"\x16\x03\x03\x00\x34\x02\x00\x00\x30\x03\x03"
    + bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
    + b"\x00\x13\x02\x00\x00\x08\x00\x2b\x00\x02\x03\x04\x00\x00"
)


@pytest.fixture
async def world() -> AsyncIterator[GateWorld]:
    async with gate_world(["a.test", "b.test", "*.c.test"], NAMES) as made:
        yield made


async def talk(world: GateWorld, context: ssl.SSLContext, name: str | None) -> bytes:
    reader, writer = await world.connect(context, name)
    writer.write(b"hello")
    return await reader.readexactly(5)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)


def client_hello(name: str | None) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    out = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name).do_handshake()
    return out.read()


@pytest.mark.parametrize("name", ["a.test", "www.c.test", "A.TEST"])
async def test_an_allowed_name_reaches_its_server_with_its_own_certificate(world: GateWorld, tmp_path: Path, name: str) -> None:
    await world.serve(echo, certificate(tmp_path, *NAMES))
    assert await talk(world, trusting(tmp_path), name) == b"hello"
    assert world.names.asked == [name.lower()]


@pytest.mark.parametrize("name", ["evil.test", "www.a.test", "c.test", "a.test.evil.test"])
async def test_another_name_is_an_alert(world: GateWorld, tmp_path: Path, name: str) -> None:
    await world.serve(echo, certificate(tmp_path, *NAMES))
    with pytest.raises(ssl.SSLError, match=r"(?i)access.denied"):
        await talk(world, trusting(tmp_path), name)
    assert not world.names.asked


async def test_no_name_or_an_address_is_an_alert(world: GateWorld, tmp_path: Path) -> None:
    await world.serve(echo, certificate(tmp_path, *NAMES))
    lax = ssl._create_unverified_context()
    for name in (None, "127.0.0.1"):
        with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"):
            await talk(world, lax, name or "")
    assert not world.names.asked


async def test_a_hello_that_can_be_read_in_two_ways_is_an_alert(world: GateWorld) -> None:
    said = client_hello("a.test")
    assert await world.say(said[:5] + b"\x02" + said[6:]) == hello.alert(hello.DECODE_ERROR)
    assert await world.say(b"\x16\x03\x01\x00\x05nonsense") == hello.alert(hello.DECODE_ERROR)
    assert not world.names.asked


async def test_a_name_that_nobody_answers_for(world: GateWorld) -> None:
    assert await world.say(client_hello("gone.c.test")) == hello.alert(hello.INTERNAL_ERROR)


async def test_a_hello_byte_by_byte(world: GateWorld) -> None:
    got = asyncio.get_running_loop().create_future()

    async def server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.set_result(await reader.readexactly(len(said)))

    await world.serve(server)
    said = client_hello("a.test")
    _, writer = await world.connect()
    for byte in said:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0)
    assert await got == said


async def test_a_real_retry_is_carried_through(world: GateWorld, tmp_path: Path) -> None:
    """The server wants a curve for which OpenSSL's first hello has no share."""
    context = certificate(tmp_path, *NAMES)
    context.set_ecdh_curve("secp384r1")
    await world.serve(echo, context)
    assert await talk(world, trusting(tmp_path), "a.test") == b"hello"


@pytest.mark.parametrize(("name", "expected"), [("b.test", hello.ACCESS_DENIED), ("evil.test", hello.ACCESS_DENIED), (None, hello.UNRECOGNIZED_NAME)])
@pytest.mark.parametrize("between", [b"", b"\x14\x03\x03\x00\x01\x01", b"\x17\x03\x03\x00\x03abc\x14\x03\x03\x00\x01\x01"])
@pytest.mark.parametrize("at_once", [True, False])
async def test_a_second_hello_for_another_name_does_not_arrive(world: GateWorld, name: str | None, expected: int, between: bytes, at_once: bool) -> None:
    first, second = client_hello("a.test"), between + client_hello(name)
    got: list[bytes] = []

    async def server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.append(await reader.readexactly(len(first)))
        writer.write(RETRY)
        got.append(await everything(reader))

    await world.serve(server)
    reader, writer = await world.connect()
    writer.write(first + (second if at_once else b""))
    assert await reader.readexactly(len(RETRY)) == RETRY
    if not at_once:
        writer.write(second)
    assert await everything(reader) == hello.alert(expected)
    assert b"".join(got) in (first, first + between)


async def test_a_second_hello_for_the_same_name_arrives(world: GateWorld) -> None:
    said = client_hello("a.test") + b"\x14\x03\x03\x00\x01\x01" + client_hello("A.test") + b"and on"
    got: list[bytes] = []

    async def server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.append(await reader.readuntil(b"\x00"))
        writer.write(RETRY)
        got.append(await reader.readuntil(b"and on"))
        writer.write(b"done")

    await world.serve(server)
    assert await world.say(said) == RETRY + b"done"
    assert b"".join(got) == said


async def test_nothing_of_the_guests_passes_before_the_servers_answer(world: GateWorld) -> None:
    """Else it could send the hello that a retry asks for before anybody knew of the retry."""
    first = client_hello("a.test")
    got: list[bytes] = []

    async def server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.append(await reader.read(65536))
        writer.write(b"\x15\x03\x03\x00\x02\x02\x28")

    await world.serve(server)
    assert await world.say(first + b"\x17\x03\x03\x00\x05early") == b"\x15\x03\x03\x00\x02\x02\x28"
    assert got == [first]


async def test_a_change_of_the_rules_ends_what_is_open(world: GateWorld, tmp_path: Path) -> None:
    await world.serve(echo, certificate(tmp_path, *NAMES))
    kept, cut = await world.connect(trusting(tmp_path), "a.test"), await world.connect(trusting(tmp_path), "www.c.test")
    await world.gate.change(Domains(["a.test"]))
    assert await everything(cut[0]) == b""
    kept[1].write(b"still")
    assert await kept[0].readexactly(5) == b"still"
