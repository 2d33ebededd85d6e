"""A make-believe machine for attacks: a host, an internet and guests, each in a network namespace of its own. No packet leaves it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import subprocess
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, TypeVar

from torpor.model.errors import MissingTool, TimedOut
from torpor.net import apply, namespaces
from torpor.net.netlink import RouteNetlink
from torpor.net.plan import GATEWAY, GUEST_ADDRESS, GUEST_MAC, GUEST_PREFIX
from torpor.net.pool import SlotPool
from torpor.ports.network import NetworkSlot
from torpor.ports.processes import Completed

Result = TypeVar("Result")

RESOLVER = "127.0.0.53"
HOST_PUBLIC = "93.184.216.1"
HOST_SECOND = "93.184.216.77"
HOST_LAN = "192.168.50.1"
ROUTER = "93.184.216.34"
PUBLIC = ("8.8.8.8", "151.101.1.69", ROUTER)
PRIVATE = (
    "10.9.9.9",
    "100.100.100.200",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.5.5",
    "172.31.255.254",
    "192.0.0.192",
    "192.0.2.77",
    "192.168.7.7",
    "198.18.0.9",
    "198.51.100.4",
    "203.0.113.4",
    "240.0.0.4",
)


class ToolRunner:
    """The part of the port Processes that the room net uses."""

    async def run(self, argv: Sequence[str], *, timeout: float, stdin: bytes | None = None, env: object = None) -> Completed:
        try:
            tool = await asyncio.create_subprocess_exec(*argv, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
        except FileNotFoundError as error:
            raise MissingTool(f"{argv[0]} is not installed.") from error
        try:
            async with asyncio.timeout(timeout):
                out, err = await tool.communicate(stdin)
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                tool.kill()
            await tool.wait()
            if isinstance(error, TimeoutError):
                raise TimedOut(f"{argv[0]} took more than {timeout} s.") from error
            raise
        assert tool.returncode is not None
        return Completed(tool.returncode, out, err)


class Namespace:
    """A network namespace that lives as long as this object's descriptor."""

    def __init__(self) -> None:
        self.descriptor = self._run(self._make)
        self.run(lambda: subprocess.run(["ip", "link", "set", "lo", "up"], check=True))

    @staticmethod
    def _make() -> int:
        namespaces._check(namespaces._libc.unshare(namespaces._CLONE_NEWNET), "unshare")
        return namespaces.current()

    @staticmethod
    def _run(work: Callable[[], Result]) -> Result:
        answer: list[Any] = []

        def body() -> None:
            try:
                answer.append((work(), None))
            except BaseException as error:
                answer.append((None, error))

        thread = threading.Thread(target=body)
        thread.start()
        thread.join()
        result, error = answer[0]
        if error is not None:
            raise error
        return result  # type: ignore[no-any-return]

    def run(self, work: Callable[[], Result]) -> Result:
        """`work` in a thread inside this namespace."""

        def inside() -> Result:
            namespaces.enter(self.descriptor)
            return work()

        return self._run(inside)

    async def do(self, work: Callable[[], Result]) -> Result:
        """As `run`, with the event loop running on meanwhile."""

        def inside() -> Result:
            namespaces.enter(self.descriptor)
            return work()

        return await namespaces.in_own_thread(inside)

    def ip(self, *commands: str) -> None:
        self.run(lambda: subprocess.run(["ip", "-batch", "-"], input="\n".join(commands).encode(), check=True))

    def close(self) -> None:
        os.close(self.descriptor)


@dataclass
class Server:
    """A TCP and a UDP server on one port of every address of a namespace. TCP answers the peer's address and stays open; both keep what they saw."""

    namespace: Namespace
    port: int
    seen: list[tuple[str, bytes]] = field(default_factory=list)
    arrived: threading.Condition = field(default_factory=threading.Condition)

    def __post_init__(self) -> None:
        self._tcp = self.namespace.run(lambda: socket.create_server(("", self.port), backlog=1024))
        self._udp = self.namespace.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self._udp.bind(("", self.port))
        self._stop, self._stopped = os.pipe()
        self._open: dict[int, socket.socket] = {}
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        poll = select.poll()
        for source in (self._tcp.fileno(), self._udp.fileno(), self._stop):
            poll.register(source, select.POLLIN)
        while True:
            for source, _ in poll.poll():
                if source == self._stop:
                    return
                if source == self._tcp.fileno():
                    peer, (address, _) = self._tcp.accept()
                    self._open[peer.fileno()] = peer
                    poll.register(peer.fileno(), select.POLLIN)
                    peer.sendall(address.encode() + b"\n")
                    self._note(address, b"tcp")
                elif source == self._udp.fileno():
                    data, (address, port) = self._udp.recvfrom(65535)
                    self._note(address, data)
                    self._udp.sendto(data, (address, port))
                else:
                    self._echo(poll, source)

    def _echo(self, poll: select.poll, source: int) -> None:
        peer = self._open[source]
        try:
            data = peer.recv(65536)
        except OSError:
            data = b""
        if data:
            peer.sendall(data)
        else:
            poll.unregister(source)
            self._open.pop(source).close()

    def _note(self, address: str, data: bytes) -> None:
        with self.arrived:
            self.seen.append((address, data))
            self.arrived.notify_all()

    def payloads(self, last: bytes) -> list[bytes]:
        """All that came, once `last` is among it: the barrier that makes "did not come" a statement."""
        with self.arrived:
            assert self.arrived.wait_for(lambda: any(data == last for _, data in self.seen), 60), f"{last!r} never came: {self.seen}"
            return [data for _, data in self.seen]

    def close(self) -> None:
        os.write(self._stopped, b"x")
        self._thread.join()
        for peer in self._open.values():
            peer.close()
        self._tcp.close()
        self._udp.close()
        os.close(self._stop)
        os.close(self._stopped)


class Guest:
    """Plays the microVM: a namespace whose card is pumped, frame by frame, to and from the slot's tap descriptor, as QEMU does."""

    def __init__(self, tap: int) -> None:
        self.tap = tap
        self.namespace = Namespace()
        self._card = self.namespace.run(lambda: apply.attach_tap("eth0", apply.IFF_TAP))
        self.namespace.ip(
            f"link set eth0 address {GUEST_MAC}",
            "link set eth0 up",
            f"address add {GUEST_ADDRESS}/{GUEST_PREFIX} dev eth0",
            f"route add default via {GATEWAY}",
        )
        self._stop, self._stopped = os.pipe()
        self._thread = threading.Thread(target=self._pump)
        self._thread.start()

    def _pump(self) -> None:
        other = {self.tap: self._card, self._card: self.tap}
        poll = select.poll()
        for source in (*other, self._stop):
            poll.register(source, select.POLLIN)
        while True:
            for source, _ in poll.poll():
                if source == self._stop:
                    return
                with contextlib.suppress(OSError):
                    os.write(other[source], os.read(source, 65536))

    async def call(self, address: str, port: int = 80, timeout: float = 60) -> bytes:
        """Connects by TCP and returns the server's greeting. Raises OSError."""

        def work() -> bytes:
            with socket.create_connection((address, port), timeout=timeout) as stream:
                return stream.recv(100)

        return await self.namespace.do(work)

    async def send(self, address: str, data: bytes, port: int = 80) -> None:
        """One datagram. Raises OSError only where the guest's own kernel refuses."""

        def work() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
                sender.sendto(data, (address, port))

        await self.namespace.do(work)

    async def ask(self, address: str, data: bytes, port: int = 53, timeout: float = 60) -> bytes:
        """One datagram and its answer."""

        def work() -> bytes:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
                asker.settimeout(timeout)
                asker.connect((address, port))
                asker.send(data)
                return asker.recv(65535)

        return await self.namespace.do(work)

    async def ping(self, address: str) -> bool:
        """An ICMP echo and its reply (RFC 792). Raises TimeoutError."""

        def work() -> bool:
            with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as pinger:
                pinger.settimeout(60)
                pinger.connect((address, 0))
                pinger.send(bytes.fromhex("0800f7fd00010001"))
                return pinger.recv(1500)[20] == 0

        return await self.namespace.do(work)

    def inject(self, frame: bytes) -> None:
        """A frame of the attacker's own making, straight onto the wire."""
        os.write(self.tap, frame)

    def close(self) -> None:
        """The VMM is dead."""
        if self._stop < 0:
            return
        os.write(self._stopped, b"x")
        self._thread.join()
        for descriptor in (self.tap, self._card, self._stop, self._stopped):
            os.close(descriptor)
        self._stop = -1
        self.namespace.close()


def frame(payload: bytes, *, source: str = str(GUEST_ADDRESS), target: str, port: int = 80, mac: str = GUEST_MAC, to: str = "02:74:72:70:00:02") -> bytes:
    """An Ethernet frame with a UDP datagram. The UDP checksum is left out, as RFC 768 allows."""
    udp = (1234).to_bytes(2) + port.to_bytes(2) + (8 + len(payload)).to_bytes(2) + bytes(2) + payload
    head = bytes([0x45, 0]) + (20 + len(udp)).to_bytes(2) + bytes([0, 1, 0, 0, 64, 17, 0, 0]) + IPv4Address(source).packed + IPv4Address(target).packed
    total = sum(int.from_bytes(head[i : i + 2]) for i in range(0, 20, 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    head = head[:10] + (~total & 0xFFFF).to_bytes(2) + head[12:]
    return _mac(to) + _mac(mac) + b"\x08\x00" + head + udp


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


@dataclass
class World:
    """`host` is where the test itself runs. The internet's router has every address of PUBLIC and PRIVATE, and the host's default route leads to it."""

    host: Namespace
    internet: Namespace
    net: Server
    local: Server
    scratch: Path

    def links(self) -> list[str]:
        with RouteNetlink() as netlink:
            return sorted(link.name for link in netlink.links() if link.name.startswith("trp"))

    def tables(self) -> list[str]:
        listed = subprocess.run(["nft", "list", "tables"], check=True, capture_output=True, text=True).stdout
        return [line.split()[-1] for line in listed.splitlines()]

    @staticmethod
    def sysctl(key: str) -> str:
        return Path("/proc/sys", key).read_text().strip()

    @staticmethod
    def tracked() -> str:
        """The host's connection tracking table."""
        return Path("/proc/thread-self/net/nf_conntrack").read_text()


@contextlib.contextmanager
def make_world(scratch: Path) -> Iterator[World]:
    """Builds it, moves the calling thread onto its host, and back at the end."""
    home = namespaces.current()
    host, internet = Namespace(), Namespace()
    with RouteNetlinkIn(host) as netlink:
        netlink.add_veth("wan0", "isp0", internet.descriptor, "")
    extra = [f"address add {address}/32 dev lo" for address in (*PUBLIC, *PRIVATE) if address != ROUTER]
    internet.ip(f"address add {ROUTER}/24 dev isp0", "link set isp0 up", *extra)
    host.ip(
        f"address add {HOST_PUBLIC}/24 dev wan0",
        f"address add {HOST_SECOND}/32 dev wan0",
        "link set wan0 up",
        "link add lan0 type veth peer name lan1",
        f"address add {HOST_LAN}/24 dev lan0",
        "link set lan0 up",
        "link set lan1 up",
        f"route add default via {ROUTER}",
    )
    namespaces.enter(host.descriptor)
    net, local = Server(internet, 80), Server(host, 80)
    try:
        yield World(host, internet, net, local, scratch)
    finally:
        net.close()
        local.close()
        namespaces.enter(home)
        os.close(home)
        host.close()
        internet.close()


class RouteNetlinkIn:
    """A RouteNetlink that works in a given namespace."""

    def __init__(self, namespace: Namespace) -> None:
        self._netlink = namespace.run(RouteNetlink)

    def __enter__(self) -> RouteNetlink:
        return self._netlink

    def __exit__(self, *_: object) -> None:
        self._netlink.close()


# What fixtures hand to a test.
OpenPool = Callable[..., Awaitable[SlotPool]]
Start = Callable[[SlotPool], Awaitable[tuple[NetworkSlot, Guest]]]
