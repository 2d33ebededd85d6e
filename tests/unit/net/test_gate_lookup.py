"""Where a name is, by the gate's own look-up: what is kept, for how long, and what is never believed."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable
from ipaddress import IPv4Address

import pytest

from torpor.net import dns
from torpor.net.gate import lookup
from torpor.net.gate.lookup import Lookup, Unknown

PUBLIC = "93.184.216.34"


def answer(question: bytes, *addresses: str, seconds: int = 60, code: int = 0, cut: bool = False) -> bytes:
    records = b"".join(b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, seconds, 4) + IPv4Address(address).packed for address in addresses)
    return question[:2] + struct.pack(">HHHHH", 0x8180 | code | (0x200 if cut else 0), 1, len(addresses), 0, 0) + question[12:] + records


class Relay(asyncio.DatagramProtocol):
    """`say`: the answers to a datagram; `at_length`: the one by TCP."""

    def __init__(self) -> None:
        self.asked: list[str | None] = []
        self.say: Callable[[bytes], list[bytes]] = lambda question: [answer(question, PUBLIC)]
        self.at_length: Callable[[bytes], bytes] = lambda question: b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.asked.append(dns.asked_name(data))
        for said in self.say(data):
            self.transport.sendto(said, addr)  # type: ignore[attr-defined]

    async def stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        question = await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
        said = self.at_length(question)
        writer.write(len(said).to_bytes(2) + said)
        writer.close()


@pytest.fixture
async def relay() -> AsyncIterator[Relay]:
    made = Relay()
    server = await asyncio.start_server(made.stream, "127.0.0.1", 0)
    made.where = server.sockets[0].getsockname()  # type: ignore[attr-defined]
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: made, local_addr=made.where)  # type: ignore[attr-defined]
    yield made
    transport.close()
    server.close()


@pytest.fixture
def now() -> list[float]:
    return [1000.0]


@pytest.fixture
def found(relay: Relay, now: list[float]) -> Lookup:
    return Lookup(relay.where, lambda: now[0])  # type: ignore[attr-defined]


async def test_an_answer_is_kept_as_long_as_it_holds(relay: Relay, found: Lookup, now: list[float]) -> None:
    for later in (0, 59, 2):
        now[0] += later
        assert await found.find("a.test") == (IPv4Address(PUBLIC),)
    assert relay.asked == ["a.test", "a.test"]


async def test_what_holds_for_a_day_is_asked_for_sooner(relay: Relay, found: Lookup, now: list[float]) -> None:
    relay.say = lambda question: [answer(question, PUBLIC, seconds=86400)]
    await found.find("a.test")
    now[0] += lookup.LONGEST
    await found.find("a.test")
    assert len(relay.asked) == 2


@pytest.mark.parametrize("inside", ["10.0.0.1", "127.0.0.1", "169.254.169.254", "192.0.0.1", "0.0.0.0", "198.18.0.1", "224.0.0.1", "255.255.255.255"])
async def test_an_address_inside_is_never_one(relay: Relay, found: Lookup, inside: str) -> None:
    relay.say = lambda question: [answer(question, inside)]
    with pytest.raises(Unknown):
        await found.find("a.test")
    relay.say = lambda question: [answer(question, inside, PUBLIC)]
    assert await found.find("b.test") == (IPv4Address(PUBLIC),)


async def test_what_does_not_fit_is_asked_for_by_tcp(relay: Relay, found: Lookup) -> None:
    relay.say = lambda question: [answer(question, cut=True)]
    relay.at_length = lambda question: answer(question, *[f"93.184.216.{number}" for number in range(1, 60)])
    assert len(await found.find("a.test")) == lookup.MOST_ADDRESSES
    relay.at_length = lambda question: answer(question, PUBLIC)[:-1]
    with pytest.raises(Unknown):
        await found.find("b.test")


async def test_nonsense_and_answers_to_others_are_passed_over(relay: Relay, found: Lookup) -> None:
    def say(question: bytes) -> list[bytes]:
        other = bytes([question[0] ^ 1, question[1]]) + question[2:]
        return [b"", b"nonsense", answer(other, "8.8.8.8"), answer(dns.ask(int.from_bytes(question[:2]), "b.test"), "8.8.8.8"), answer(question, PUBLIC)]

    relay.say = say
    assert await found.find("a.test") == (IPv4Address(PUBLIC),)


async def test_a_name_that_does_not_exist_is_asked_for_again_soon(relay: Relay, found: Lookup, now: list[float]) -> None:
    relay.say = lambda question: [answer(question, code=dns.NO_SUCH_NAME)]
    for _ in range(2):
        with pytest.raises(Unknown):
            await found.find("a.test")
    now[0] += lookup.SHORTEST
    relay.say = lambda question: [answer(question, PUBLIC)]
    assert await found.find("a.test") == (IPv4Address(PUBLIC),)
    assert len(relay.asked) == 2


async def test_what_was_known_is_known_while_nobody_answers(relay: Relay, found: Lookup, now: list[float]) -> None:
    await found.find("a.test")
    relay.say = lambda question: [answer(question, code=dns.SERVER_FAILURE)]
    now[0] += lookup.STALE_SECONDS
    assert await found.find("a.test") == (IPv4Address(PUBLIC),)
    with pytest.raises(Unknown):
        await found.find("b.test")
    now[0] += 60
    with pytest.raises(Unknown):
        await found.find("a.test")


async def test_no_relay_at_all_is_told_at_once() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        nobody = taken.getsockname()
    with pytest.raises(Unknown):
        await Lookup(nobody).find("a.test")


async def test_only_so_much_is_kept(found: Lookup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "KEPT", 3)
    for number in range(10):
        await found.find(f"{number}a.test")
    assert list(found._kept) == ["7a.test", "8a.test", "9a.test"]
