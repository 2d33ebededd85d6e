"""Owners of a home that die, follow one another, and share a machine with others."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Network

import pytest
from net_world import HOST_PUBLIC, PUBLIC, Namespace, OpenPool, Server, Start, World
from test_net_pool import acquire, leftovers, settle

from torpor.model.errors import NotFound
from torpor.net.netlink import RouteNetlink
from torpor.net.plan import SlotPlan, home_tag
from torpor.net.pool import SlotPool

pytestmark = pytest.mark.root

DIES_AFTER = """
import os, signal, sys
from ipaddress import IPv4Network
from pathlib import Path
from torpor.net import apply
from torpor.net.plan import SlotPlan
tag, directory, fatal = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
directory.mkdir(parents=True, exist_ok=True)
builder = apply.Builder(apply.Parts())
for number, step in enumerate(SlotPlan(tag, 7, "0badcafe", directory, IPv4Network("198.18.0.0/20")).steps()):
    steps = globals().setdefault("steps", [])
    steps.append(step)
class Dying(apply.Builder):
    def _take(self, step):
        super()._take(step)
        if step == steps[fatal]:
            os.kill(os.getpid(), signal.SIGKILL)
Dying(apply.Parts()).run(steps)
"""

OWNER = """
import asyncio, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from net_world import ToolRunner, OpenPool, Start
from torpor.model.sandbox import NetworkMode
from torpor.net.plan import NetworkSettings
from torpor.net.pool import SlotPool
async def own():
    home = Path(sys.argv[1])
    pool = SlotPool(home, home / "netns", ToolRunner(), NetworkSettings(pool=2))
    await pool.open([])
    slots = [await pool.acquire(NetworkMode.ON) for _ in range(2)]
    while pool._tasks:
        await asyncio.wait(set(pool._tasks))
    print(*(slot.name for slot in slots), flush=True)
    await asyncio.Event().wait()
asyncio.run(own())
"""


async def test_whatever_step_an_owner_dies_at_the_next_one_clears_up(world: World, open_pool: OpenPool) -> None:
    home = world.scratch / "home"
    tag = home_tag(home)
    steps = SlotPlan(tag, 7, "0badcafe", home / "netns", IPv4Network("198.18.0.0/20")).steps()
    for fatal, step in enumerate(steps):
        done = subprocess.run([sys.executable, "-c", DIES_AFTER, tag, str(home / "netns"), str(fatal)], capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, (step.describe(), done.stderr)
        assert list((home / "netns").iterdir()), step.describe()
        pool = await open_pool(pool=0)
        assert leftovers(world) == ([], [], []), step.describe()
        await pool.close()


async def test_the_next_owner_takes_back_what_runs_and_removes_the_rest(world: World, open_pool: OpenPool) -> None:
    home, here = world.scratch / "home", str(__file__).rsplit("/", 1)[0]
    home.mkdir()
    other_home = await open_pool("other", pool=1)
    await settle(other_home)
    with subprocess.Popen([sys.executable, "-c", OWNER, str(home), here], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        kept, lost = owner.stdout.readline().split()
        owner.kill()
    others = [link for link in world.links() if home_tag(home) not in link]
    pool = await open_pool(in_use=[kept, "9.nonsense", "../../etc", "77.aaaaaaaa"], pool=0)
    assert [link for link in world.links() if "-" in link and home_tag(home) in link] == [f"trp{home_tag(home)}-{kept.split('.')[0]}"]
    assert [path.name for path in (home / "netns").iterdir()] == [kept]
    assert [link for link in world.links() if home_tag(home) not in link] == others
    assert pool.adopt(kept).name == kept
    for name in (lost, "9.nonsense", "77.aaaaaaaa"):
        with pytest.raises(NotFound):
            pool.adopt(name)
    await pool.release(pool.adopt(kept))


async def test_a_connection_survives_the_change_of_owner(world: World, open_pool: OpenPool, start: Start) -> None:
    first = await open_pool(pool=0)
    slot, guest = await start(first)
    stream = await guest.namespace.do(lambda: socket.create_connection((PUBLIC[0], 80), timeout=60))
    with stream:
        stream.recv(100)
        await first.close()
        assert len(world.links()) == 2
        second = await open_pool(in_use=[slot.name], pool=0)
        stream.sendall(b"still there?")
        assert stream.recv(100) == b"still there?"
        fresh, newcomer = await start(second)
        assert fresh.name != slot.name
        assert await newcomer.call(PUBLIC[0])
    guest.close()
    await second.release(second.adopt(slot.name))


async def test_two_homes_share_the_uplink_and_the_last_one_restores_it(world: World, open_pool: OpenPool, start: Start) -> None:
    one, two = await open_pool("one", pool=1), await open_pool("two", pool=1)
    await settle(one)
    await settle(two)
    assert world.sysctl("net/ipv4/conf/wan0/forwarding") == "1"
    assert world.sysctl("net/ipv4/ip_forward") == "0"
    _, guest = await start(two)
    await one.close()
    assert await guest.call(PUBLIC[0]) == HOST_PUBLIC.encode() + b"\n"
    guest.close()
    await two.release(next(iter(two._held.values())).as_port())
    await two.close()
    assert world.sysctl("net/ipv4/conf/wan0/forwarding") == "0"


async def test_a_host_that_routes_anyway_goes_on_routing(world: World, open_pool: OpenPool) -> None:
    world.host.run(lambda: subprocess.run(["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"], check=True))
    pool = await open_pool(pool=1)
    await settle(pool)
    opened = subprocess.run(["nft", "list", "set", "inet", world.tables()[0], "opened"], capture_output=True, text=True).stdout
    assert "wan0" not in opened
    await pool.close()
    assert world.sysctl("net/ipv4/conf/wan0/forwarding") == "1"


async def after_mending(pool: SlotPool, change: Callable[[], Awaitable[None]]) -> None:
    """Makes a change to the host and waits until the pool has seen to it."""
    mended, ensure = asyncio.Event(), pool._host.ensure

    async def noticed(links: object) -> object:
        result = await ensure(links)  # type: ignore[arg-type]
        mended.set()
        return result

    pool._host.ensure = noticed  # type: ignore[assignment, method-assign]
    await change()
    async with asyncio.timeout(60):
        await mended.wait()


async def test_a_flushed_firewall_is_put_back(world: World, pool: SlotPool, start: Start) -> None:
    _, guest = await start(pool)
    await settle(pool)

    async def flush() -> None:
        subprocess.run(["nft", "flush", "ruleset"], check=True)

    await after_mending(pool, flush)
    assert await guest.call(PUBLIC[0]) == HOST_PUBLIC.encode() + b"\n"
    with pytest.raises(OSError):
        await guest.call(HOST_PUBLIC)
    assert not world.local.seen


async def test_a_new_default_route_is_followed(world: World, pool: SlotPool, start: Start) -> None:
    _, guest = await start(pool)
    await settle(pool)
    elsewhere = Namespace()
    with RouteNetlink() as netlink:
        netlink.add_veth("wlan0", "isp1", elsewhere.descriptor, "")
    elsewhere.ip("address add 94.1.1.2/24 dev isp1", "link set isp1 up", f"address add {PUBLIC[0]}/32 dev lo")
    world.host.ip("address add 94.1.1.1/24 dev wlan0", "link set wlan0 up")
    server = Server(elsewhere, 80)

    async def roam() -> None:
        world.host.ip("route replace default via 94.1.1.2")

    try:
        await after_mending(pool, roam)
        assert await guest.call(PUBLIC[0]) == b"94.1.1.1\n"
    finally:
        server.close()
        elsewhere.close()


async def test_forwarding_switched_off_on_the_host_comes_back_with_the_next_slot(world: World, pool: SlotPool, start: Start) -> None:
    _, guest = await start(pool)
    await settle(pool)
    toggle = "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 0 > /proc/sys/net/ipv4/ip_forward"
    world.host.run(lambda: subprocess.run(["sh", "-c", toggle], check=True))
    slot = await acquire(pool)
    await settle(pool)
    assert await guest.call(PUBLIC[0]) == HOST_PUBLIC.encode() + b"\n"
    await pool.release(slot)


async def test_a_firewall_that_drops_forwarded_packets_is_named_and_its_mend_mends(world: World, pool: SlotPool, start: Start) -> None:
    assert await pool.warnings() == []
    subprocess.run(["nft", "add table ip filter; add chain ip filter FORWARD { type filter hook forward priority filter; policy drop; }"], check=True)
    (line,) = await pool.warnings()
    _, guest = await start(pool)
    with pytest.raises(TimeoutError):
        await guest.call(PUBLIC[0], timeout=1)
    subprocess.run(["sh", "-ec", line.split("Let them pass with: ")[1]], check=True)
    assert await pool.warnings() == []
    assert await guest.call(PUBLIC[0]) == HOST_PUBLIC.encode() + b"\n"


async def test_without_the_right_capabilities_it_is_one_clear_line(world: World) -> None:
    script = """
import asyncio, sys
from pathlib import Path
from torpor.model.errors import NoPermission
from torpor.model.sandbox import NetworkMode
from torpor.net.pool import SlotPool
async def main():
    pool = SlotPool(Path("/nonexistent"), Path("/nonexistent/netns"), None)
    await pool.open([])
    assert await pool.acquire(NetworkMode.OFF) is None
    print(*pool.problems(), sep="\\n")
    try:
        await pool.acquire(NetworkMode.ON)
    except NoPermission as error:
        print(error)
    await pool.close()
asyncio.run(main())
"""
    command = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True)
    line = "Sandboxes with a network need root (this process lacks CAP_NET_ADMIN and CAP_SYS_ADMIN). Run torpor as root, or use --net off."
    assert done.stdout.splitlines() == [line, line], done.stderr
