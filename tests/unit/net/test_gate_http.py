"""Plain HTTP through a gate: which requests reach the server, and that no spelling gets a second one past it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import h11
import pytest
from gate_world import GateWorld, everything, gate_world
from hypothesis import given, settings
from hypothesis import strategies as st

from torpor.model.domains import Domains
from torpor.net.gate import serve


@pytest.fixture
async def world() -> AsyncIterator[GateWorld]:
    async with gate_world(
        ["a.test", "b.test", "*.c.test", "xn--mnchen-3ya.test"], ["a.test", "b.test", "evil.test", "www.c.test", "xn--mnchen-3ya.test"]
    ) as made:
        await made.serve(made.server)
        yield made


def get(host: str, path: str = "/", more: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n".encode()


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


async def one_answer(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
    return head + await reader.readexactly(length)


@pytest.mark.parametrize("host", ["a.test", "A.TEST", "a.test.", "a.test:80", "A.Test.:8080", "www.c.test", "xn--mnchen-3ya.test"])
async def test_an_allowed_host_is_reached_however_it_is_spelled(world: GateWorld, host: str) -> None:
    answer = await world.say(get(host, "/x?y", "Connection: close\r\nX-Mixed: Case\r\n"))
    assert status(answer) == 200
    assert b"X-Kept: As-It-Was" in answer
    assert answer.endswith(f"{host}/x?y 0".encode())
    assert b"X-Mixed: Case" in world.server.heads[0]


REFUSED = {
    "another": (get("evil.test"), 403),
    "below an exact one": (get("www.a.test"), 403),
    "the star's own": (get("c.test"), 403),
    "an address": (get("127.0.0.1"), 403),
    "a number": (get("2130706433"), 403),
    "hexadecimal": (get("0x7f.1"), 403),
    "version six": (get("[::1]"), 403),
    "a user": (get("a.test@evil.test"), 403),
    "a path": (get("a.test/evil.test"), 403),
    "a nul": (get("a.test\0.evil.test"), 400),
    "none": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "none, 1.0": (b"GET / HTTP/1.0\r\n\r\n", 400),
    "empty": (get(""), 403),
    "two": (get("a.test", more="Host: evil.test\r\n"), 400),
    "utf-8": (get("münchen.test"), 403),
    "absolute": (get("a.test", "http://evil.test/"), 400),
    "absolute, the same": (get("a.test", "http://a.test/"), 400),
    "connect": (b"CONNECT evil.test:443 HTTP/1.1\r\nHost: a.test\r\n\r\n", 400),
    "http/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "folded": (b"GET / HTTP/1.1\r\nHost: a.test\r\n evil.test\r\n\r\n", 403),
    "both lengths": (get("a.test", more="Content-Length: 3\r\nTransfer-Encoding: chunked\r\n") + b"0\r\n\r\n", 400),
    "ssh": (b"SSH-2.0-OpenSSH_9\r\n\r\n", 400),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_what_is_refused_reaches_nobody(world: GateWorld, case: str) -> None:
    data, expected = REFUSED[case]
    answer = await world.say(data)
    assert status(answer) == expected
    assert answer.partition(b"\r\n\r\n")[2].startswith(b"torpor: ")
    assert not world.server.requests
    assert not world.names.asked


async def test_every_request_of_a_connection_is_judged(world: GateWorld) -> None:
    reader, writer = await world.connect()
    for path in ("/1", "/2"):
        writer.write(get("a.test", path))
        assert (await one_answer(reader)).endswith(f"a.test{path} 0".encode())
    writer.write(get("evil.test"))
    assert status(await everything(reader)) == 403
    assert {host for _, host, _, _ in world.server.requests} == {"a.test"}


async def test_a_connection_is_for_one_name(world: GateWorld) -> None:
    answer = await world.say(get("a.test") + get("b.test"))
    assert [status(b"HTTP/1.1" + part) for part in answer.split(b"HTTP/1.1")[1:]] == [200, 421]
    assert [host for _, host, _, _ in world.server.requests] == ["a.test"]


async def test_a_name_that_is_not_there_and_a_server_that_is_not(world: GateWorld) -> None:
    assert status(await world.say(get("gone.c.test"))) == 502
    world.port = 1
    assert status(await world.say(get("a.test"))) == 502


SMUGGLED = "GET /smuggled HTTP/1.1\r\nHost: evil.test\r\n\r\n"
TRICKS = {
    "lengths": f"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 0\r\nContent-Length: {len(SMUGGLED)}\r\n\r\n{SMUGGLED}",
    "length list": f"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 0, {len(SMUGGLED)}\r\n\r\n{SMUGGLED}",
    "signed length": f"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: +{len(SMUGGLED)}\r\n\r\n{SMUGGLED}",
    "unknown coding": f"POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: xchunked\r\n\r\n{SMUGGLED}",
    "codings": f"POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n{SMUGGLED}",
    "space before colon": f"POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding : chunked\r\nContent-Length: {len(SMUGGLED)}\r\n\r\n{SMUGGLED}",
    "chunk, then another": f"POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{SMUGGLED}",
    "chunk extension": f"POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n1;a\nb\r\nx\r\n0\r\n\r\n{SMUGGLED}",
    "trailer": f"POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nHost: evil.test\r\n\r\n{SMUGGLED}",
    "bare line feeds": f"POST / HTTP/1.1\nHost: a.test\nContent-Length: 0\n\n{SMUGGLED}",
    "carriage return": f"GET / HTTP/1.1\r\nHost: a.test\rX: evil.test\r\n\r\n{SMUGGLED}",
    "expectation": f"POST / HTTP/1.1\r\nHost: a.test\r\nExpect: 100-continue\r\nContent-Length: {len(SMUGGLED)}\r\n\r\n{SMUGGLED}{SMUGGLED}",
    "upgrade": f"GET / HTTP/1.1\r\nHost: a.test\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n{SMUGGLED}",
    "h2c": f"GET / HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQA\r\n\r\n{SMUGGLED}",
    "get with a body": f"GET / HTTP/1.1\r\nHost: a.test\r\nContent-Length: {len(SMUGGLED)}\r\n\r\n{SMUGGLED}{SMUGGLED}",
    "head": f"HEAD / HTTP/1.1\r\nHost: a.test\r\n\r\n{SMUGGLED}",
}


@pytest.mark.parametrize("trick", TRICKS)
async def test_no_second_request_slips_past(world: GateWorld, trick: str) -> None:
    """The server reads what arrives by the letter; nothing in it may be for another name."""
    await world.say(TRICKS[trick].encode("latin-1"))
    assert all((host, path) == ("a.test", "/") for _, host, path, _ in world.server.requests), world.server.requests
    assert not any(name == "evil.test" for name in world.names.asked)
    sent = b"".join(world.server.heads).lower()
    assert b"h2c" not in sent
    assert b"http2-settings" not in sent


FRAGMENTS = st.sampled_from(
    [
        "GET / HTTP/1.1", "POST / HTTP/1.1", "GET http://evil.test/ HTTP/1.1", "POST / HTTP/1.0", "GET /smuggled HTTP/1.1", "Host: a.test", "Host: evil.test",
        "host:evil.test", " evil.test", "Host : evil.test", "Content-Length: 0", "Content-Length: 60", "Content-Length: 5", "Transfer-Encoding: chunked",
        "Transfer-Encoding:\tchunked", "Transfer-Encoding: Chunked, chunked", "Connection: keep-alive", "Connection: close, Host", "Upgrade: websocket",
        "Expect: 100-continue", "0", "5", "3c", "hello", "", "", "\0", "\v", "\r",
    ]
)  # fmt: skip
ENDS = st.sampled_from(["\r\n"] * 8 + ["\n", "\r", "", "\r\r\n"])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(FRAGMENTS, ENDS), max_size=25))
def test_no_mixture_of_pieces_reaches_another_name(pieces: list[tuple[str, str]]) -> None:
    data = ("GET / HTTP/1.1\r\nHost: a.test\r\n" + "".join(piece + end for piece, end in pieces) + "\r\n\r\n").encode("latin-1")

    async def say() -> None:
        async with gate_world(["a.test"], ["a.test", "evil.test"]) as world:
            await world.serve(world.server)
            reader, writer = await world.connect()
            writer.write(data)
            writer.write_eof()
            await everything(reader)
            assert not [host for _, host, _, _ in world.server.requests if host != "a.test"]
            assert set(world.names.asked) <= {"a.test"}

    asyncio.run(say())


async def test_bodies_go_both_ways_and_an_expectation_is_met(world: GateWorld) -> None:
    body = bytes(range(256)) * 8000
    reader, writer = await world.connect()
    writer.write(f"POST /up HTTP/1.1\r\nHost: a.test\r\nExpect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n".encode())
    assert status(await reader.readuntil(b"\r\n\r\n")) == 100
    writer.write(body)
    assert (await one_answer(reader)).endswith(f"a.test/up {len(body)}".encode())
    writer.write(b"PUT /chunked HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
    assert (await one_answer(reader)).endswith(b"a.test/chunked 5")
    assert world.server.requests[0][3] == body


async def test_an_answer_without_a_length_and_an_old_client(world: GateWorld) -> None:
    async def old(request: h11.Request, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.0 200 OK\r\nServer: old\r\n\r\n" + b"x" * 100_000)
        await writer.drain()
        return True

    world.server.script = old
    assert (await world.say(get("a.test"))).count(b"x") == 100_000
    answer = await world.say(b"GET / HTTP/1.0\r\nHost: a.test\r\n\r\n")
    assert answer.endswith(b"x" * 100_000)
    assert b"chunked" not in answer


async def test_a_websocket_is_carried_once_the_server_has_taken_it(world: GateWorld) -> None:
    async def take(request: h11.Request, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nhello")
        while data := await reader.read(100):
            writer.write(data)
        return True

    world.server.script = take
    reader, writer = await world.connect()
    writer.write(get("a.test", "/ws", "Connection: Upgrade\r\nUpgrade: WebSocket\r\n") + b"early")
    assert status(await reader.readuntil(b"\r\n\r\n")) == 101
    writer.write(b" late")
    assert await reader.readexactly(15) in (b"helloearly late", b"earlyhello late")
    writer.write_eof()
    assert await reader.read() == b""


async def test_a_guest_that_ends_its_half_still_gets_the_answer(world: GateWorld) -> None:
    reader, writer = await world.connect()
    writer.write(get("a.test", "/half"))
    writer.write_eof()
    assert (await everything(reader)).endswith(b"a.test/half 0")


async def test_a_server_that_leaves_takes_the_guests_connection_with_it(world: GateWorld) -> None:
    async def leave(request: h11.Request, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        return True

    world.server.script = leave
    reader, writer = await world.connect()
    writer.write(get("a.test"))
    assert (await one_answer(reader)).endswith(b"ok")
    assert await reader.read() == b""


async def test_a_server_that_speaks_something_else(world: GateWorld) -> None:
    async def nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"\0\1\2\3\r\n\r\n")

    await world.serve(nonsense)
    assert status(await world.say(get("a.test"))) == 502


async def test_a_body_that_breaks_off_is_not_passed_on_as_a_whole(world: GateWorld) -> None:
    reader, writer = await world.connect()
    writer.write(b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 10\r\n\r\nhalf")
    writer.write_eof()
    assert status(await everything(reader)) == 400
    assert not world.server.requests


async def test_a_refusal_of_a_long_upload_arrives(world: GateWorld) -> None:
    """The server answers before it has read the body, and reads no more."""

    async def no(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()

    await world.serve(no)
    reader, writer = await world.connect()
    writer.write(b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1000000\r\n\r\n" + bytes(1000))
    assert status(await reader.readuntil(b"\r\n\r\n")) == 413


# Rules that change, bounds


async def test_a_change_ends_what_is_open_and_no_longer_allowed(world: GateWorld) -> None:
    kept_reader, kept = await world.connect()
    cut_reader, cut = await world.connect()
    kept.write(get("a.test"))
    cut.write(get("b.test"))
    await one_answer(kept_reader)
    await one_answer(cut_reader)
    await world.gate.change(Domains(["a.test"]))
    with pytest.raises(ConnectionResetError):
        await cut_reader.read(1)
    kept.write(get("a.test", "/still"))
    assert (await one_answer(kept_reader)).endswith(b"a.test/still 0")
    assert status(await world.say(get("b.test"))) == 403
    await world.gate.change(Domains(["*"]))
    assert status(await world.say(get("evil.test", more="Connection: close\r\n"))) == 200


async def test_one_connection_too_many_is_reset(world: GateWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "MOST", 2)
    first, writer = await world.connect()
    second, _ = await world.connect()
    assert await world.say(get("a.test")) == b""
    writer.write(get("a.test", more="Connection: close\r\n"))
    assert status(await everything(first)) == 200
    assert not second.at_eof()


async def test_a_silent_guest_is_reset(world: GateWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "HEAD_SECONDS", 0.01)
    reader, _ = await world.connect()
    with pytest.raises(ConnectionResetError):
        await reader.read(1)


async def test_half_a_connection_does_not_stay_for_ever(world: GateWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "HALF_SECONDS", 0.0)
    monkeypatch.setattr(serve, "SWEEP_SECONDS", 0.01)
    silent = asyncio.Event()

    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await silent.wait()

    await world.serve(never)
    reader, writer = await world.connect()
    writer.write(get("a.test"))
    writer.write_eof()
    with pytest.raises(ConnectionResetError):
        await reader.read(1)
    assert not world.gate.connections
    silent.set()


async def test_a_server_that_does_not_read_slows_the_guest_down(world: GateWorld) -> None:
    """What a gate holds of a connection is one piece each way: the rest stays with the sender."""
    stuck = asyncio.Event()

    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        await stuck.wait()

    await world.serve(never)
    guest = socket.create_connection(world.address)
    guest.setblocking(False)
    guest.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    guest.send(b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1000000000\r\n\r\n")
    sent = blocked = 0
    while blocked < 1000:  # turns of the loop in a row without a byte taken
        assert sent < 64 << 20
        try:
            sent += guest.send(bytes(65536))
            blocked = 0
        except BlockingIOError:
            blocked += 1
        await asyncio.sleep(0)
    stuck.set()
    guest.close()
