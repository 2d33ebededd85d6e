"""A guest that does its worst: its agent still answers, its neighbours live, and it can still be paused, resumed and killed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from vm_world import python, run, shell, start

from torpor.apps.engine import Engine
from torpor.host.agent import CreateSpec
from torpor.host.sandbox import Sandbox
from torpor.model.shapes import Shape
from torpor.ports.guest import ExecSpec, Guest

pytestmark = [pytest.mark.vm, pytest.mark.root]

SHAPE = Shape(1, 256, 1024)


@pytest.fixture
async def hostile(engine: Engine) -> AsyncIterator[Sandbox]:
    """At the end of every test it still obeys, and its neighbour has noticed nothing."""
    sandbox, neighbour = await asyncio.gather(*(engine.agent.create(CreateSpec("minimal", SHAPE)) for _ in range(2)))
    yield sandbox
    await (await sandbox.guest()).ping()
    await engine.agent.pause(sandbox.id)
    await engine.agent.resume(sandbox.id)
    assert (await run(await sandbox.guest(), "echo", "alive")).out == "alive\n"
    assert (await run(await neighbour.guest(), "echo", "alive")).out == "alive\n"
    await engine.agent.kill(sandbox.id)
    assert [record.id for record in engine.agent.records()] == [neighbour.id]


async def processes(guest: Guest, enough: Callable[[int], bool]) -> None:
    """Asked without a pause, the agent, which comes first, would leave the others no time to come or go."""
    while not enough((await guest.metrics()).processes):
        await asyncio.sleep(0.2)


async def test_a_fork_bomb_starves_itself_only(hostile: Sandbox) -> None:
    guest = await hostile.guest()
    bomb = await start(guest, ["bash", "-c", "bomb() { bomb | bomb & }; bomb; wait"])
    await processes(guest, lambda count: count >= 500)
    await guest.write_file("/root/during", b"the bomb")
    await bomb.kill_tree()
    await bomb.wait()
    await processes(guest, lambda count: count == 0)


async def test_a_memory_hog_dies_and_the_agent_does_not(hostile: Sandbox) -> None:
    guest = await hostile.guest()
    process = await guest.exec(ExecSpec(["python3", "-c", "held = []\nwhile True: held.append(bytearray(b'x') * (1 << 20))"]))
    exited = await process.wait()
    assert (exited.signal, exited.oom) == (9, True)
    assert (await guest.metrics()).oom_kills >= 1


async def test_a_flooded_console_stalls_nobody_and_stays_small(engine: Engine, hostile: Sandbox) -> None:
    guest = await hostile.guest()
    flood = "head -c 2000000 /dev/zero | tr '\\0' x > /dev/ttyS0; for n in $(seq 300); do echo flood $n > /dev/kmsg; done; dmesg | tail -1"
    assert "flood 300" in await shell(guest, flood)
    logs = [path for path in engine.settings.home.rglob("*.log") if "sandboxes" in path.parts]
    assert all(path.stat().st_size < 200_000 for path in logs)


async def test_ten_thousand_sockets(hostile: Sandbox) -> None:
    program = """
import resource, socket
resource.setrlimit(resource.RLIMIT_NOFILE, (65536, 65536))
held = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(10_000)]
print(len(held))
"""
    assert await python(await hostile.guest(), program) == "10000\n"


async def test_a_sparse_file_blown_up_ends_at_the_disks_size(engine: Engine, hostile: Sandbox) -> None:
    """1 GiB and no more, whatever the file says of its length."""
    guest = await hostile.guest()
    program = """
import errno, os
fd = os.open("/root/blown", os.O_RDWR | os.O_CREAT)
os.ftruncate(fd, 1 << 40)
block, at = os.urandom(1 << 20), 0
try:
    while True:
        os.pwrite(fd, block, at * (1 << 22))
        at += 1
except OSError as error:
    print(errno.errorcode[error.errno])
os.fsync(fd)
"""
    assert await python(guest, program) == "ENOSPC\n"
    assert (await run(guest, "sh", "-c", "echo x > /root/more")).exited.code != 0
    home = engine.settings.home / "sandboxes" / hostile.id
    assert sum(path.stat().st_blocks * 512 for path in home.rglob("*.qcow2")) < (1024 + 64) << 20
    await guest.remove("/root/blown")


async def test_a_flood_of_output_that_nobody_reads(hostile: Sandbox) -> None:
    guest = await hostile.guest()
    floods = [await guest.exec(ExecSpec(["sh", "-c", "yes; true"], output_limit=1 << 20)) for _ in range(3)]
    floods[0].detach()
    for _ in range(50):
        await guest.ping()
    assert (await run(guest, "echo", "between")).out == "between\n"
    for flood in floods:
        await flood.kill_tree()
        await flood.wait()


async def test_memory_of_the_guest_may_be_gone_when_it_is_paused(engine: Engine, hostile: Sandbox) -> None:
    """A process that has taken nearly all and holds it."""
    guest = await hostile.guest()
    program = (
        "import sys; held = bytearray(b'x') * (130 << 20); print('held', flush=True); sys.stdin.read(); print(sum(held[:: 4096]) == 120 * len(held) // 4096)"
    )
    process = await guest.exec(ExecSpec(["python3", "-c", program], stdin=True))
    said = process.output()
    assert (await anext(said)).data == b"held\n"
    process.detach()
    await engine.agent.pause(hostile.id)
    await engine.agent.resume(hostile.id)
    again = await (await hostile.guest()).attach(process.exec_id, stdout_offset=5)
    await again.close_stdin()
    assert b"".join([piece.data async for piece in again.output()]) == b"True\n"
