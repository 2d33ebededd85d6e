"""The daemon's end of the keeper, against a keeper that is slow to read."""

from __future__ import annotations

import asyncio
import socket

import pytest

from torpor.proc import link as links
from torpor.proc.keeper import protocol
from torpor.proc.link import KeeperLink


async def test_many_requests_while_the_keeper_does_not_read_are_all_answered() -> None:
    ours, keepers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    keepers.setblocking(False)
    loop = asyncio.get_running_loop()
    link = KeeperLink(ours, lambda *_: None, lambda: None)
    asks = [asyncio.ensure_future(link.ask({"op": "find", "name": "x" * 60_000})) for _ in range(30)]
    full = loop.create_future()
    loop.call_soon(loop.call_soon, full.set_result, None)  # every request has tried to send by then, and most found the socket full
    await full

    async def answer() -> None:
        for _ in asks:
            message = protocol.decode(await loop.sock_recv(keepers, protocol.PACKET))
            await loop.sock_sendall(keepers, protocol.encode({"op": "found", "id": message["id"], "alive": True}))

    async with asyncio.timeout(100):
        await asyncio.gather(answer(), *asks)
    assert sorted(ask.result()[0]["id"] for ask in asks) == list(range(1, 31))
    link.close()
    keepers.close()


async def test_a_keeper_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "ANSWER_SECONDS", 0.05)
    ours, keepers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    lost = []
    link = KeeperLink(ours, lambda *_: None, lambda: lost.append(True))
    with pytest.raises(ConnectionResetError, match="said nothing"):
        await link.ask({"op": "spawn"})
    assert lost == [True]
    with pytest.raises(ConnectionResetError):
        await link.ask({"op": "find"})
    assert keepers.recv(protocol.PACKET)
    assert keepers.recv(protocol.PACKET) == b""
    keepers.close()
