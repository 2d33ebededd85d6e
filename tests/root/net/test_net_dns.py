"""Names: the relay between a guest's gateway address and the host's resolvers."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from net_world import RESOLVER, Guest, OpenPool, Start, World

from torpor.net import namespaces
from torpor.net.plan import GATEWAY
from torpor.net.pool import SlotPool
from torpor.net.resolver import QUESTIONS

pytestmark = pytest.mark.root

QUESTION = bytes.fromhex("abcd01000001000000000000") + b"\x07example\x03com\x00\x00\x01\x00\x01"


def answer(question: bytes, mark: bytes) -> bytes:
    return question[:2] + b"\x81\x80" + question[4:] + mark


@contextlib.contextmanager
def resolver(address: str, mark: bytes, silent: bool = False) -> Iterator[list[bytes]]:
    """A resolver on the host that answers each question with the question and its mark; yields what it was asked."""
    asked: list[bytes] = []
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind((address, 53))
    tcp = socket.create_server((address, 53))

    def serve_udp() -> None:
        while True:
            question, where = udp.recvfrom(65535)
            if not question:
                return
            asked.append(question)
            if not silent:
                udp.sendto(answer(question, mark), where)

    def serve_tcp() -> None:
        while True:
            stream, _ = tcp.accept()
            with stream:
                length = stream.recv(2)
                if not length:
                    return
                question = stream.recv(int.from_bytes(length))
                reply = answer(question, mark * 1000)
                stream.sendall(len(reply).to_bytes(2) + reply)

    threads = [threading.Thread(target=serve_udp), threading.Thread(target=serve_tcp)]
    for thread in threads:
        thread.start()
    try:
        yield asked
    finally:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stopper:
            stopper.sendto(b"", (address, 53))
        socket.create_connection((address, 53)).close()
        for thread in threads:
            thread.join()
        udp.close()
        tcp.close()


async def ask_by_tcp(guest: Guest) -> bytes:
    def work() -> bytes:
        with socket.create_connection((str(GATEWAY), 53), timeout=60) as stream:
            stream.sendall(len(QUESTION).to_bytes(2) + QUESTION)
            reply = b""
            while piece := stream.recv(65535):
                reply += piece
            return reply

    return await guest.namespace.do(work)


async def test_a_resolver_on_the_hosts_loopback_answers_the_guest(world: World, pool: SlotPool, start: Start) -> None:
    _, guest = await start(pool)
    with resolver(RESOLVER, b"A"):
        assert await guest.ask(str(GATEWAY), QUESTION) == answer(QUESTION, b"A")


async def test_long_answers_come_by_tcp(world: World, pool: SlotPool, start: Start) -> None:
    _, guest = await start(pool)
    with resolver(RESOLVER, b"long"):
        reply = await ask_by_tcp(guest)
    assert reply[2:] == answer(QUESTION, b"long" * 1000)


async def test_a_change_of_the_hosts_resolver_reaches_running_guests(world: World, pool: SlotPool, start: Start) -> None:
    _, guest = await start(pool)
    with resolver(RESOLVER, b"A"), resolver("192.168.50.1", b"B"):
        assert (await guest.ask(str(GATEWAY), QUESTION)).endswith(b"A")
        replacement = world.scratch / "new"
        replacement.write_text("nameserver 192.168.50.1\n")
        os.replace(replacement, world.scratch / "resolv.conf")
        assert (await guest.ask(str(GATEWAY), QUESTION)).endswith(b"B")


async def test_the_next_resolver_is_asked_when_one_refuses_or_is_silent(world: World, pool: SlotPool, start: Start) -> None:
    (world.scratch / "resolv.conf").write_text("nameserver 127.0.0.99\nnameserver 192.168.50.1\nnameserver 127.0.0.53\n")
    _, guest = await start(pool)
    with resolver("192.168.50.1", b"", silent=True) as silent, resolver(RESOLVER, b"third"):
        assert (await guest.ask(str(GATEWAY), QUESTION)).endswith(b"third")
        assert silent == [QUESTION]


async def test_with_no_resolver_the_guest_is_told_at_once(world: World, pool: SlotPool, start: Start) -> None:
    _, guest = await start(pool)
    reply = await guest.ask(str(GATEWAY), QUESTION)
    assert reply[:2] == QUESTION[:2]
    assert reply[3] & 15 == 2
    with contextlib.suppress(ConnectionResetError):
        assert await ask_by_tcp(guest) == b""


async def test_what_is_no_question_is_not_passed_on(world: World, pool: SlotPool, start: Start) -> None:
    _, guest = await start(pool)
    with resolver(RESOLVER, b"A") as asked:
        for junk in (b"", b"short", answer(QUESTION, b"an answer")):
            await guest.send(str(GATEWAY), junk, port=53)
        await guest.ask(str(GATEWAY), QUESTION)
        assert asked == [QUESTION]


async def test_resolvers_are_not_reached_but_through_the_gateway(world: World, pool: SlotPool, start: Start) -> None:
    _, guest = await start(pool)
    with resolver("192.168.50.1", b"B") as asked, pytest.raises(OSError):
        await guest.ask("192.168.50.1", QUESTION)
    assert not [question for question in asked if question]


async def test_a_flood_of_questions_keeps_its_bounds_and_ends(world: World, open_pool: OpenPool, start: Start) -> None:
    _, guest = await start(await open_pool(pool=0))  # no slot is being made meanwhile, which opens files too
    with resolver(RESOLVER, b"", silent=True):

        def flood() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                for number in range(2000):
                    sender.sendto(number.to_bytes(2) + QUESTION[2:], (str(GATEWAY), 53))

        before = len(os.listdir("/proc/self/fd"))
        await guest.namespace.do(flood)
        assert len(os.listdir("/proc/self/fd")) <= before + QUESTIONS
    with resolver(RESOLVER, b"A"):
        assert (await ask_again_and_again(guest)).endswith(b"A")


async def test_questions_take_no_room_in_the_slots_connection_table(world: World, pool: SlotPool, start: Start) -> None:
    slot, guest = await start(pool)
    with resolver(RESOLVER, b"A"):
        await guest.ask(str(GATEWAY), QUESTION)

    def tracked() -> str:
        namespaces.enter_file(slot.netns)
        return Path("/proc/thread-self/net/nf_conntrack").read_text()

    assert "udp" not in await namespaces.in_own_thread(tracked)


async def ask_again_and_again(guest: Guest) -> bytes:
    """As a stub resolver does, which takes a lost datagram for granted."""
    for _ in range(30):
        with contextlib.suppress(TimeoutError):
            return await guest.ask(str(GATEWAY), QUESTION, timeout=1)
    raise AssertionError("no answer to 30 questions")


async def test_dns_works_again_for_a_guest_that_outlived_the_host_agent(world: World, open_pool: OpenPool, start: Start) -> None:
    first = await open_pool(pool=0)
    slot, guest = await start(first)
    await first.close()
    second = await open_pool(in_use=[slot.name], pool=0)
    assert second.adopt(slot.name) == slot
    with resolver(RESOLVER, b"A"):
        assert (await guest.ask(str(GATEWAY), QUESTION)).endswith(b"A")
        assert (await ask_by_tcp(guest))[2:] == answer(QUESTION, b"A" * 1000)
    guest.close()
    await second.release(slot)
