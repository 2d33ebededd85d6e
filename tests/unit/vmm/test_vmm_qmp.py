"""The QMP client against a scripted monitor."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from torpor.model.errors import GuestLost, VmmError
from torpor.vmm.qemu.qmp import QmpClient, connect, listen


class Monitor:
    """The other end, driven by the test line by line."""

    def __init__(self) -> None:
        ours, self.theirs = socket.socketpair()
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.lost = 0
        self.client = QmpClient(ours, lambda name, data: self.events.append((name, data)), self._on_lost)
        self.theirs.setblocking(False)

    def _on_lost(self) -> None:
        self.lost += 1

    async def say(self, **message: Any) -> None:
        await asyncio.get_running_loop().sock_sendall(self.theirs, json.dumps(message).encode() + b"\r\n")

    async def hear(self) -> dict[str, Any]:
        message = json.loads(await asyncio.get_running_loop().sock_recv(self.theirs, 1 << 20))
        assert isinstance(message, dict)
        return message


@pytest.fixture
async def monitor() -> AsyncIterator[Monitor]:
    made = Monitor()
    yield made
    made.client.close()
    made.theirs.close()


async def test_it_negotiates_and_asks(monitor: Monitor) -> None:
    negotiating = asyncio.ensure_future(monitor.client.negotiate())
    await monitor.say(QMP={"version": {}})
    assert await monitor.hear() == {"execute": "qmp_capabilities"}
    await monitor.say(**{"return": {}})
    await negotiating
    asking = asyncio.ensure_future(monitor.client.execute("query-status", {"x": 1}))
    assert await monitor.hear() == {"execute": "query-status", "arguments": {"x": 1}}
    await monitor.say(event="STOP", data={"a": 1})
    await monitor.say(**{"return": {"status": "paused"}})
    assert await asking == {"status": "paused"}
    assert monitor.events == [("STOP", {"a": 1})]


async def test_an_error_carries_the_monitors_words(monitor: Monitor) -> None:
    asking = asyncio.ensure_future(monitor.client.execute("cont"))
    await monitor.hear()
    await monitor.say(error={"class": "GenericError", "desc": "it does not please"})
    with pytest.raises(VmmError, match="cont: it does not please"):
        await asking


async def test_a_cancelled_command_does_not_shift_the_answers(monitor: Monitor) -> None:
    first = asyncio.ensure_future(monitor.client.execute("one"))
    await monitor.hear()
    first.cancel()
    await asyncio.wait({first})
    second = asyncio.ensure_future(monitor.client.execute("two"))
    await monitor.hear()
    await monitor.say(**{"return": 1})
    await monitor.say(**{"return": 2})
    assert await second == 2


async def test_descriptors_travel_beside_the_command(monitor: Monitor, tmp_path: Path) -> None:
    fd = os.open(tmp_path / "file", os.O_CREAT | os.O_WRONLY)
    asking = asyncio.ensure_future(monitor.client.execute("getfd", {"fdname": "x"}, (fd,)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    data, received, _, _ = socket.recv_fds(monitor.theirs, 4096, 4)
    assert json.loads(data)["execute"] == "getfd"
    assert os.fstat(received[0]).st_ino == os.fstat(fd).st_ino
    await monitor.say(**{"return": {}})
    await asking
    for opened in (fd, *received):
        os.close(opened)


async def test_a_long_command_and_a_split_answer_arrive_whole(monitor: Monitor) -> None:
    asking = asyncio.ensure_future(monitor.client.execute("big", {"x": "y" * (4 << 20)}))
    heard = bytearray()
    while not heard.endswith(b"\n"):
        heard += await asyncio.get_running_loop().sock_recv(monitor.theirs, 1 << 20)
    assert len(json.loads(heard)["arguments"]["x"]) == 4 << 20
    for piece in (b'{"ret', b'urn": {"z"', b": 1}}\n"):
        await asyncio.get_running_loop().sock_sendall(monitor.theirs, piece)
    assert await asking == {"z": 1}


async def test_a_lost_monitor_fails_what_waits_and_what_comes(monitor: Monitor) -> None:
    asking = asyncio.ensure_future(monitor.client.execute("cont"))
    await monitor.hear()
    monitor.theirs.close()
    with pytest.raises(GuestLost):
        await asking
    with pytest.raises(GuestLost):
        await monitor.client.execute("stop")
    assert monitor.lost == 1
    assert monitor.client.lost


async def test_closing_is_not_losing(monitor: Monitor) -> None:
    monitor.client.close()
    monitor.client.close()
    assert monitor.lost == 0


def test_sockets_with_long_paths(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 150)
    directory.mkdir()
    with listen(directory / "socket") as listener, connect(directory / "socket") as client:
        server, _ = listener.accept()
        server.sendall(b"x")
        client.setblocking(True)
        assert client.recv(1) == b"x"
        server.close()
