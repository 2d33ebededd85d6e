"""What every scene works with: the engine on its home, bare VMs beside it, counts, and the small steps that scenes share."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from figures import Samples
from floor import Clock, Floor
from torpor.apps.engine import Engine
from torpor.host.agent import CreateSpec
from torpor.host.sandbox import Sandbox
from torpor.model.errors import TorporError
from torpor.model.sandbox import NetworkMode
from torpor.model.shapes import Shape
from torpor.ports.guest import ExecSpec, Guest, GuestProcess

TEMPLATE = "minimal"
SMALL = Shape(1, 512)
LARGE = Shape(1, 1536)
"""Room for 1 GiB of dirty memory."""
LIMIT = 300.0
"""Seconds that one round may take before it counts as hung."""
SHELL_TRUE = ("/bin/sh", "-c", "true")
T = TypeVar("T")


@dataclass(frozen=True)
class Counts:
    """How often each scene runs. `density` sandboxes are watched for `window` seconds."""

    idle: int
    dirty: int
    large: int
    fork: int
    fork_large: int
    burst: int
    pooled: int
    density: int
    window: float
    channel: int


QUICK = Counts(idle=6, dirty=2, large=2, fork=2, fork_large=1, burst=1, pooled=6, density=100, window=10.0, channel=2)
FULL = Counts(idle=40, dirty=8, large=3, fork=5, fork_large=2, burst=3, pooled=50, density=100, window=30.0, channel=5)


@dataclass(frozen=True)
class Bench:
    """`small` and `large` are the floors for SMALL and LARGE."""

    engine: Engine
    small: Floor
    large: Floor
    counts: Counts
    samples: Samples
    say: Callable[[str], None]

    async def bare(self, work: Callable[[], T]) -> T:
        """Runs a bare measurement in a thread: the engine's event loop lives on, with nothing to do."""
        await self.engine.agent.idle()
        return await asyncio.to_thread(work)

    @asynccontextmanager
    async def attempt(self, key: str) -> AsyncIterator[None]:
        """An error of torpor's, or none within LIMIT, counts as a failed attempt at `key`; the run goes on."""
        try:
            async with asyncio.timeout(LIMIT):
                yield
        except (TorporError, TimeoutError) as error:
            self.samples.fail(key, error)
            self.say(f"  {key} failed: {error}")

    @asynccontextmanager
    async def sandbox(self, shape: Shape = SMALL) -> AsyncIterator[tuple[Sandbox, float]]:
        """A new one, never from the pool, with the milliseconds its create took. It is killed at the end."""
        clock = Clock()
        sandbox = await self.engine.agent.create(CreateSpec(TEMPLATE, shape, NetworkMode.OFF, pooled=False))
        took = clock()
        try:
            yield sandbox, took
        finally:
            await self.engine.agent.kill(sandbox.id)

    async def pause(self, sandbox: Sandbox) -> tuple[int, float]:
        """(bytes of guest memory stored, milliseconds). Returns when the VMM is gone and the store has settled, which is not in the time."""
        assert sandbox.machine is not None
        watch = os.pidfd_open(sandbox.machine.region.pid)
        clock = Clock()
        artefact = await self.engine.agent.pause(sandbox.id)
        took = clock()
        await ended(watch)
        await self.engine.agent.idle()
        return artefact.layer_bytes, took

    async def resume(self, sandbox: Sandbox) -> float:
        """Milliseconds."""
        clock = Clock()
        await self.engine.agent.resume(sandbox.id)
        return clock()


async def ended(pidfd: int) -> None:
    """Waits for a process to end; closes the descriptor."""
    loop = asyncio.get_running_loop()
    gone = asyncio.Event()
    loop.add_reader(pidfd, gone.set)
    try:
        await gone.wait()
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)


async def run(guest: Guest, *argv: str) -> float:
    """One command to its end; milliseconds. Raises AssertionError when it fails."""
    clock = Clock()
    process = await guest.exec(ExecSpec(list(argv)))
    exited = await process.wait()
    took = clock()
    assert exited.code == 0, (argv, exited)
    await guest.forget(process.exec_id)
    return took


SPAWN = """
import os, time
for _ in range({count} + 1):
    start = time.perf_counter()
    os.waitpid(os.posix_spawn("/bin/true", ["true"], {{}}), 0)
    print((time.perf_counter() - start) * 1e3)
"""


async def spawn_inside(guest: Guest, count: int) -> list[float]:
    """What the sandbox alone takes for /bin/true, milliseconds each by its own clock."""
    process = await guest.exec(ExecSpec(["/usr/bin/python3", "-I", "-S", "-c", SPAWN.format(count=count)]))
    text = b"".join([piece.data async for piece in process.output()])
    await process.wait()
    await guest.forget(process.exec_id)
    return [float(line) for line in text.split()][1:]


HOLD = """
import os, signal
held = bytearray({mib} << 20)
block = bytearray(os.urandom(1 << 20))
for at in range(0, len(held), 1 << 20):
    for byte in range(4):
        block[byte::4096] = os.urandom(256)
    held[at : at + (1 << 20)] = block
print("held", flush=True)
signal.pause()
"""
"""The floor's guest does the same by itself: memory in which no page equals another."""


async def hold(guest: Guest, mib: int) -> GuestProcess:
    """A process in the guest that has written `mib` MiB of fresh memory and keeps it."""
    process = await guest.exec(ExecSpec(["/usr/bin/python3", "-I", "-S", "-c", HOLD.format(mib=mib)]))
    async for piece in process.output():
        if b"held" in piece.data:
            break
    process.detach()
    return process
