"""A microVM with its network on, in a make-believe world: names are answered, the internet is reached, and nothing else is."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from net_world import HOST_LAN, HOST_PUBLIC, PRIVATE, PUBLIC, World, make_world
from vm_world import python, settings

from torpor.apps.engine import Engine
from torpor.host.agent import CreateSpec
from torpor.host.sandbox import Sandbox
from torpor.model.sandbox import NetworkMode
from torpor.model.shapes import Shape
from torpor.net.plan import GATEWAY, NetworkSettings
from torpor.net.pool import SlotPool

pytestmark = [pytest.mark.vm, pytest.mark.root]

REACH = """
import socket, sys
for address in sys.argv[1:]:
    try:
        with socket.create_connection((address, 80), timeout=2) as peer:
            print(address, "reached", bool(peer.recv(100)))
    except OSError as error:
        print(address, "refused")
"""
ANSWERED = """
import socket
print(socket.getaddrinfo("example.com", 80, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])
"""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    (tmp_path / "resolv.conf").write_text("nameserver 8.8.8.8\n")
    with make_world(tmp_path) as made:
        yield made


@pytest.fixture
async def connected(world: World, fresh_home: Path) -> AsyncIterator[tuple[Engine, Sandbox]]:
    """A sandbox whose host is the world's."""
    engine = Engine(settings(fresh_home))
    engine.networks = SlotPool(fresh_home, fresh_home / "run" / "netns", engine.processes, NetworkSettings(pool=0), resolv_conf=world.scratch / "resolv.conf")
    engine.lock()
    async with engine:
        sandbox = await engine.agent.create(CreateSpec("minimal", Shape(1, 256, 1024), NetworkMode.ON))
        try:
            yield engine, sandbox
        finally:
            for record in engine.agent.records():
                await engine.agent.kill(record.id)


async def reach(sandbox: Sandbox, *addresses: str) -> dict[str, str]:
    said = await python(await sandbox.guest(), REACH, *addresses)
    return {address: verdict for address, verdict, *_ in (line.split() for line in said.splitlines())}


async def test_the_internet_is_reached_and_nothing_else_also_after_a_pause(connected: tuple[Engine, Sandbox]) -> None:
    engine, sandbox = connected
    forbidden = (HOST_PUBLIC, HOST_LAN, str(GATEWAY), *PRIVATE[:6])
    for _ in range(2):
        assert set((await reach(sandbox, *PUBLIC)).values()) == {"reached"}
        assert set((await reach(sandbox, *forbidden)).values()) == {"refused"}
        await engine.agent.pause(sandbox.id)
        await engine.agent.resume(sandbox.id)
    (child,) = await engine.agent.fork(sandbox.id)
    assert set((await reach(child, *PUBLIC)).values()) == {"reached"}
    assert set((await reach(child, *forbidden)).values()) == {"refused"}


def answer(question: bytes) -> bytes:
    """One address for whatever was asked; none for other kinds (RFC 1035, 4.1)."""
    kind = question[12:].split(b"\0", 1)[1][:2]
    asked = question[12 : 12 + question[12:].index(b"\0") + 5]
    record = b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04" + bytes([151, 101, 1, 69]) if kind == b"\0\1" else b""
    return question[:2] + b"\x81\x80\x00\x01" + (b"\0\1" if record else b"\0\0") + bytes(4) + asked + record


class Resolver:
    """At 8.8.8.8 in the world's internet."""

    def __init__(self, world: World) -> None:
        self._socket = world.internet.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self._socket.bind(("8.8.8.8", 53))
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            question, peer = self._socket.recvfrom(4096)
            if not question:
                return
            self._socket.sendto(answer(question), peer)

    def close(self) -> None:
        self._socket.sendto(b"", ("8.8.8.8", 53))
        self._thread.join()
        self._socket.close()


async def test_names_are_answered_by_the_hosts_resolver(world: World, connected: tuple[Engine, Sandbox]) -> None:
    _, sandbox = connected
    with contextlib.closing(Resolver(world)):
        assert await python(await sandbox.guest(), ANSWERED) == "151.101.1.69\n"
