"""Names that a guest may reach: shown by trying, with every trick there is to reach another."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from net_world import HOST_LAN, HOST_PUBLIC, PRIVATE, PUBLIC, RESOLVER, ROUTER, Guest, OpenPool, Start, World
from web_world import HTTP, Surfer, Web, Zone, ask, closing_all

from torpor.model.errors import HostError, InvalidInput
from torpor.model.sandbox import Egress
from torpor.net import dns, namespaces
from torpor.net.plan import GATE_PORT, GATEWAY, SlotPlan
from torpor.net.pool import SlotPool
from torpor.ports.network import NetworkSlot
from torpor.proc.processes import LocalProcesses

pytestmark = pytest.mark.root
EVERYTHING = ("0.0.0.0/0",)
ALLOWED, EVIL, BELOW = PUBLIC
NAMES = Egress(("allowed.test", "*.below.test"), EVERYTHING)
CERTIFIED = ("allowed.test", "evil.test", "www.below.test", "below.test")


@pytest.fixture
def zone(world: World) -> Iterator[Zone]:
    made = Zone(world.host, RESOLVER, {"allowed.test": [ALLOWED], "evil.test": [EVIL], "www.below.test": [BELOW], "below.test": [BELOW]})
    with closing_all(made):
        yield made


@pytest.fixture
def web(world: World) -> Iterator[Web]:
    made = Web(world.internet, world.scratch, *CERTIFIED)
    with closing_all(made):
        yield made


@pytest.fixture
async def processes(world: World) -> AsyncIterator[LocalProcesses]:
    (world.scratch / "home").mkdir()
    made = LocalProcesses(world.scratch / "home")
    yield made
    made.close()


@pytest.fixture
async def gated(processes: LocalProcesses, open_pool: OpenPool) -> SlotPool:
    return await open_pool(processes=processes)


@pytest.fixture
async def surfer(world: World, gated: SlotPool, start: Start) -> Surfer:
    slot, guest = await start(gated)
    await gated.restrict(slot, NAMES)
    return Surfer(guest, world.scratch)


def slot_of(pool: SlotPool) -> NetworkSlot:
    (held,) = pool._held.values()
    return held.as_port()


def gate_pid(world: World, slot: NetworkSlot) -> int:
    return int(json.loads((world.scratch / "home" / "gates" / slot.name / "gate.json").read_text())["pid"])


async def resolve(guest: Guest, name: str, *, stream: bool = False) -> dns.Found:
    question = dns.ask(7, name)

    def by_tcp() -> bytes:
        with socket.create_connection((str(GATEWAY), 53), timeout=30) as asker:
            asker.sendall(len(question).to_bytes(2) + question)
            return asker.recv(int.from_bytes(asker.recv(2, socket.MSG_WAITALL)), socket.MSG_WAITALL)

    return dns.found(await guest.namespace.do(by_tcp) if stream else await guest.ask(str(GATEWAY), question), question)


async def test_allowed_names_are_reached_and_no_others(zone: Zone, web: Web, surfer: Surfer) -> None:
    assert await surfer.http(ALLOWED, "allowed.test") == f"200 {ALLOWED} allowed.test"
    assert await surfer.http(BELOW, "WWW.Below.Test.:8080") == f"200 {BELOW} WWW.Below.Test.:8080"
    assert await surfer.https(ALLOWED, "allowed.test") == f"200 {ALLOWED} allowed.test"
    assert await surfer.https(BELOW, "www.below.test") == f"200 {BELOW} www.below.test"
    reached = list(web.seen)
    for name in ("evil.test", "below.test", EVIL, ALLOWED, "1539833157", "0x97.101.1.69"):
        assert (await surfer.http(EVIL, name)).startswith("403 torpor: ")
    assert (await surfer.https(EVIL, "evil.test")).startswith("alert")
    assert (await surfer.https(BELOW, "below.test")).startswith("alert")
    assert (await surfer.https(ALLOWED, None)).startswith("alert")
    assert web.seen == reached
    assert "evil.test" not in zone.asked


async def test_where_the_guest_believes_a_name_to_be_plays_no_part(zone: Zone, web: Web, surfer: Surfer) -> None:
    """A forged answer leads to the real server; the address of an allowed one opens no other."""
    for address in (EVIL, BELOW, ROUTER):
        assert await surfer.http(address, "allowed.test") == f"200 {ALLOWED} allowed.test"
        assert await surfer.https(address, "allowed.test") == f"200 {ALLOWED} allowed.test"
        assert (await surfer.http(ALLOWED, "evil.test")).startswith("403")
        assert (await surfer.https(ALLOWED, "evil.test")).startswith("alert")


INSIDE = (*PRIVATE, "127.0.0.1", HOST_LAN, HOST_PUBLIC, str(GATEWAY), "0.0.0.0")


async def test_a_name_that_leads_inside_leads_nowhere(world: World, zone: Zone, web: Web, surfer: Surfer) -> None:
    """Whatever the owner of an allowed name says of it."""
    for number, inside in enumerate(INSIDE):
        name = f"{number}.below.test"
        zone.names[name] = [inside]
        for port in (HTTP, 80):
            assert (await surfer.http(ALLOWED, name, port)).startswith("502"), inside
        assert (await surfer.https(ALLOWED, name)).startswith("alert"), inside
    assert not (web.seen or world.local.seen or world.net.seen)


async def test_a_name_that_was_harmless_a_moment_ago(world: World, zone: Zone, web: Web, surfer: Surfer) -> None:
    """DNS rebinding: what is connected to is what was judged, each time."""
    assert await surfer.http(ALLOWED, "allowed.test") == f"200 {ALLOWED} allowed.test"
    zone.names["allowed.test"] = ["169.254.169.254", HOST_LAN]
    async with asyncio.timeout(60):
        while (said := await surfer.http(ALLOWED, "allowed.test")).startswith("200"):
            assert said == f"200 {ALLOWED} allowed.test"
    assert said.startswith("502")
    assert not (world.local.seen or world.net.seen)


async def test_questions_carry_nothing_out(zone: Zone, surfer: Surfer) -> None:
    guest = surfer.guest
    for stream in (False, True):
        assert [str(address) for address in (await resolve(guest, "allowed.test", stream=stream)).addresses] == [ALLOWED]
        for name in ("secret.evil.test", "evil.test", "secret.allowed.test", "below.test"):
            assert (await resolve(guest, name, stream=stream)).code == dns.NO_SUCH_NAME
    raw = dns.ask(9, "allowed.test")
    two = raw[:4] + b"\0\2" + raw[6:] + dns.ask(9, "secret.evil.test")[12:]
    assert (await guest.ask(str(GATEWAY), two))[3] & 15 == dns.FORMAT_ERROR
    assert set(zone.asked) == {"allowed.test"}


async def test_only_tcp_goes_by_name(world: World, zone: Zone, web: Web, surfer: Surfer) -> None:
    guest = surfer.guest
    for address in PUBLIC:
        with pytest.raises(OSError) as refusal:
            await guest.ask(address, b"quic", port=443)
        assert refusal.value.errno == errno.EHOSTUNREACH
        with pytest.raises(OSError):
            await guest.ping(address)
    assert not world.net.seen


async def test_what_is_neither_http_nor_tls_is_refused(world: World, zone: Zone, web: Web, surfer: Surfer) -> None:
    def work() -> str:
        with socket.create_connection((ALLOWED, 80), timeout=30) as stream:
            stream.sendall(b"SSH-2.0-nonsense\r\n\r\n")
            return stream.recv(100).split(b"\r\n")[0].decode()

    assert await surfer.do(work) == "HTTP/1.1 400 Refused"
    assert not world.net.seen


async def test_addresses_are_allowed_beside_names(world: World, zone: Zone, web: Web, gated: SlotPool, surfer: Surfer) -> None:
    await gated.restrict(slot_of(gated), Egress(("allowed.test", ROUTER), EVERYTHING))
    assert await surfer.http(ROUTER, "whatever") == f"200 {ROUTER} whatever"
    assert await surfer.https(ROUTER, None) == f"200 {ROUTER}"
    assert await surfer.guest.ask(ROUTER, b"quic", port=80) == b"quic"
    assert await surfer.http(EVIL, "allowed.test") == f"200 {ALLOWED} allowed.test"
    assert (await surfer.http(EVIL, "www.below.test")).startswith("403")


async def test_a_star_allows_every_name_and_no_address(zone: Zone, web: Web, gated: SlotPool, surfer: Surfer) -> None:
    await gated.restrict(slot_of(gated), Egress(("*",), EVERYTHING))
    assert await surfer.http(ALLOWED, "evil.test") == f"200 {EVIL} evil.test"
    assert await surfer.https(ALLOWED, "evil.test") == f"200 {EVIL} evil.test"
    assert (await surfer.http(ALLOWED, ALLOWED)).startswith("403")
    assert (await surfer.https(ALLOWED, None)).startswith("alert")
    assert [str(address) for address in (await resolve(surfer.guest, "evil.test")).addresses] == [EVIL]


async def test_the_slot_itself_opens_nothing(world: World, zone: Zone, web: Web, gated: SlotPool, surfer: Surfer) -> None:
    """Neither the gate's own port, nor a way out for whoever else sits in the namespace, such as a broken VMM."""
    with pytest.raises(OSError) as refusal:
        await surfer.guest.call(str(GATEWAY), GATE_PORT)
    assert refusal.value.errno == errno.EHOSTUNREACH
    slot = slot_of(gated)

    def inside() -> list[str]:
        namespaces.enter_file(slot.netns)
        found = []
        for address, port in ((ALLOWED, HTTP), (str(GATEWAY), GATE_PORT), (str(GATEWAY), 53), ("127.0.0.1", GATE_PORT)):
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as stream:
                stream.settimeout(0.5)
                try:
                    stream.connect((address, port))
                except OSError:
                    continue
                found.append(f"{address}:{port}")
        return found

    assert await namespaces.in_own_thread(inside) == []


async def test_a_gate_is_confined(world: World, gated: SlotPool, surfer: Surfer) -> None:
    slot = slot_of(gated)
    proc = Path("/proc", str(gate_pid(world, slot)))
    status = dict(line.split(":\t", 1) for line in (proc / "status").read_text().splitlines() if ":\t" in line)
    uid = SlotPlan(gated._tag, int(slot.name.partition(".")[0]), "0" * 8, slot.netns.parent, gated._held[slot.name].plan.transfer).gate_uid
    assert status["Uid"].split() == [str(uid)] * 4
    assert status["Groups"].strip() == ""
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"].strip() == "1"
    assert (proc / "ns" / "net").stat().st_ino == slot.netns.stat().st_ino
    assert {"root", "home", "var", "work"} & set(os.listdir(proc / "root")) <= {"root"}  # an interpreter may lie below /root
    assert not (proc / "root" / "etc" / "passwd").exists()
    assert int(status["VmRSS"].split()[0]) < 40_000


# Life


async def test_a_change_counts_at_once_for_open_connections_too(zone: Zone, web: Web, gated: SlotPool, surfer: Surfer) -> None:
    def connect(host: str) -> socket.socket:
        stream = socket.create_connection((EVIL, HTTP), timeout=30)
        assert ask(stream, host).startswith("200")
        return stream

    kept = await surfer.guest.namespace.do(lambda: connect("allowed.test"))
    cut = await surfer.guest.namespace.do(lambda: connect("www.below.test"))
    with kept, cut:
        await gated.restrict(slot_of(gated), Egress(("allowed.test", "evil.test"), EVERYTHING))
        with pytest.raises(ConnectionResetError):
            cut.recv(1)
        assert (await asyncio.to_thread(ask, kept, "allowed.test")).startswith("200")
    assert await surfer.http(ALLOWED, "evil.test") == f"200 {EVIL} evil.test"
    assert (await surfer.http(ALLOWED, "www.below.test")).startswith("403")


async def test_without_names_there_is_no_gate(world: World, zone: Zone, web: Web, gated: SlotPool, start: Start) -> None:
    slot, guest = await start(gated)
    surfer = Surfer(guest, world.scratch)
    gates = world.scratch / "home" / "gates"

    def rules() -> str:
        return subprocess.run(["nsenter", f"--net={slot.netns}", "nft", "list", "ruleset"], check=True, capture_output=True, text=True).stdout

    before = rules()
    for egress in (Egress(deny=(EVIL,)), Egress((ALLOWED,), EVERYTHING), Egress()):
        await gated.restrict(slot, egress)
        assert not gates.exists()
        assert "divert" not in rules()
    assert rules() == before
    direct = await guest.namespace.do(lambda: socket.create_connection((EVIL, HTTP), timeout=1))
    await gated.restrict(slot, NAMES)
    pid = gate_pid(world, slot)
    with direct, pytest.raises(OSError):  # it was opened under other rules and is for no name
        await asyncio.to_thread(ask, direct, "evil.test")
    assert (await surfer.http(EVIL, "evil.test")).startswith("403")
    await gated.restrict(slot, Egress())
    assert await surfer.http(EVIL, "evil.test") == f"200 {EVIL} evil.test"
    assert not Path("/proc", str(pid)).exists()
    assert list(gates.iterdir()) == []
    assert rules() == before
    assert (await resolve(guest, "evil.test")).addresses


async def test_the_slots_end_is_the_gates(world: World, gated: SlotPool, start: Start) -> None:
    slot, guest = await start(gated)
    await gated.restrict(slot, NAMES)
    pid = gate_pid(world, slot)
    guest.close()
    await gated.release(slot)
    assert not Path("/proc", str(pid)).exists()
    assert list((world.scratch / "home" / "gates").iterdir()) == []


async def test_a_gate_outlives_the_host_agent(world: World, zone: Zone, web: Web, processes: LocalProcesses, open_pool: OpenPool, start: Start) -> None:
    first = await open_pool(processes=processes)
    slot, guest = await start(first)
    await first.restrict(slot, NAMES)
    surfer, pid = Surfer(guest, world.scratch), gate_pid(world, slot)

    def connect() -> socket.socket:
        stream = socket.create_connection((EVIL, HTTP), timeout=30)
        assert ask(stream, "allowed.test").startswith("200")
        return stream

    stream = await guest.namespace.do(connect)
    with stream:
        await first.close()
        assert (await asyncio.to_thread(ask, stream, "allowed.test")).startswith("200")
        assert await surfer.http(EVIL, "allowed.test") == f"200 {ALLOWED} allowed.test", "a name that was known stays known"
        assert (await surfer.http(EVIL, "evil.test")).startswith("403")
        later = await open_pool(processes=processes, in_use=[slot.name])
        assert gate_pid(world, slot) == pid
        for _ in range(2):  # before the rules are said again, and after
            assert (await resolve(guest, "allowed.test")).addresses
            assert (await resolve(guest, "evil.test")).code == dns.NO_SUCH_NAME
            await later.restrict(later.adopt(slot.name), NAMES)
        assert (await asyncio.to_thread(ask, stream, "allowed.test")).startswith("200")
        assert await surfer.https(EVIL, "www.below.test") == f"200 {BELOW} www.below.test"
        await later.restrict(later.adopt(slot.name), Egress(("evil.test",), EVERYTHING))
        with pytest.raises(ConnectionResetError):
            stream.recv(1)
    assert await surfer.http(ALLOWED, "evil.test") == f"200 {EVIL} evil.test"
    guest.close()
    await later.release(later.adopt(slot.name))
    assert not Path("/proc", str(pid)).exists()


async def test_the_gate_of_a_slot_that_nobody_holds_any_more_is_ended(world: World, processes: LocalProcesses, open_pool: OpenPool, start: Start) -> None:
    first = await open_pool(processes=processes)
    slot, _ = await start(first)
    await first.restrict(slot, NAMES)
    pid = gate_pid(world, slot)
    await first.close()
    await open_pool(processes=processes)
    assert not Path("/proc", str(pid)).exists()
    assert list((world.scratch / "home" / "gates").iterdir()) == []


async def test_a_gate_that_dies_lets_nothing_pass_and_comes_back(world: World, zone: Zone, web: Web, gated: SlotPool, surfer: Surfer) -> None:
    slot = slot_of(gated)
    pid = gate_pid(world, slot)
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(60):
        while (said := await surfer.http(EVIL, "allowed.test")) != f"200 {ALLOWED} allowed.test":
            assert said in ("ConnectionRefusedError", "ConnectionResetError", "ended"), said
    assert gate_pid(world, slot) != pid
    assert (await surfer.http(EVIL, "evil.test")).startswith("403")


async def test_a_gate_that_was_killed_while_nobody_watched_is_started_again(
    world: World, zone: Zone, web: Web, processes: LocalProcesses, open_pool: OpenPool, start: Start
) -> None:
    first = await open_pool(processes=processes)
    slot, guest = await start(first)
    await first.restrict(slot, NAMES)
    await first.close()
    os.kill(gate_pid(world, slot), signal.SIGKILL)
    later = await open_pool(processes=processes, in_use=[slot.name])
    await later.restrict(later.adopt(slot.name), NAMES)
    assert await Surfer(guest, world.scratch).http(EVIL, "allowed.test") == f"200 {ALLOWED} allowed.test"
    guest.close()
    await later.release(later.adopt(slot.name))


async def test_a_gate_that_does_not_answer_is_replaced(
    world: World, zone: Zone, web: Web, gated: SlotPool, surfer: Surfer, monkeypatch: pytest.MonkeyPatch
) -> None:
    slot = slot_of(gated)
    pid = gate_pid(world, slot)
    os.kill(pid, signal.SIGSTOP)
    monkeypatch.setattr("torpor.net.gates.CALL_SECONDS", 0.2)
    await gated.restrict(slot, Egress(("evil.test",), EVERYTHING))
    assert not Path("/proc", str(pid)).exists()
    async with asyncio.timeout(60):
        assert await surfer.http(ALLOWED, "evil.test") == f"200 {EVIL} evil.test"
    assert (await surfer.http(ALLOWED, "allowed.test")).startswith("403")


async def test_a_change_that_fails_changes_nothing(zone: Zone, web: Web, gated: SlotPool, surfer: Surfer, monkeypatch: pytest.MonkeyPatch) -> None:
    slot = slot_of(gated)
    for nonsense in (Egress(("evil.test",)), Egress(("evil.test", "a b"), EVERYTHING), Egress(("evil.test",), ("0.0.0.0/1",))):
        with pytest.raises(InvalidInput):
            await gated.restrict(slot, nonsense)

    async def no(*_: object) -> None:
        raise HostError("nft is not to be had.")

    with monkeypatch.context() as broken:
        broken.setattr(gated._nft, "load", no)
        for change in (Egress(("evil.test",), EVERYTHING), Egress()):
            with pytest.raises(HostError):
                await gated.restrict(slot, change)
    assert await surfer.http(EVIL, "allowed.test") == f"200 {ALLOWED} allowed.test"
    assert (await surfer.http(EVIL, "evil.test")).startswith("403")
    assert (await resolve(surfer.guest, "allowed.test")).addresses
    assert (await resolve(surfer.guest, "evil.test")).code == dns.NO_SUCH_NAME


async def test_a_hoarder_of_connections_harms_itself_alone(world: World, zone: Zone, web: Web, gated: SlotPool, surfer: Surfer, start: Start) -> None:
    def hoard() -> list[socket.socket]:
        held = []
        for _ in range(1000):
            stream = socket.socket()
            stream.settimeout(5)
            held.append(stream)
            try:
                stream.connect((ALLOWED, HTTP))
            except OSError:
                break
        return held

    held = await surfer.guest.namespace.do(hoard)
    status = Path("/proc", str(gate_pid(world, slot_of(gated))), "status").read_text()
    assert int(status.split("VmRSS:")[1].split()[0]) < 80_000
    slot, guest = await start(gated)
    await gated.restrict(slot, NAMES)
    assert await Surfer(guest, world.scratch).http(EVIL, "allowed.test") == f"200 {ALLOWED} allowed.test"
    for stream in held:
        stream.close()
    async with asyncio.timeout(60):
        while await surfer.http(EVIL, "allowed.test") != f"200 {ALLOWED} allowed.test":
            continue
