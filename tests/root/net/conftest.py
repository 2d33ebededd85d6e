"""Fixtures by lifecycle: world, pool in it, guest in a slot."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest
from net_world import RESOLVER, Guest, OpenPool, Start, ToolRunner, World, make_world

from torpor.model.sandbox import NetworkMode
from torpor.net.plan import NetworkSettings
from torpor.net.pool import SlotPool
from torpor.ports.network import NetworkSlot


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    (tmp_path / "resolv.conf").write_text(f"# the host's\nnameserver {RESOLVER}\n")
    with make_world(tmp_path) as made:
        yield made


async def release_all(pool: SlotPool) -> None:
    """Also after a failed test no namespace stays pinned. Guests are dead by now."""
    for slot in [held.as_port() for held in pool._held.values()]:
        await pool.release(slot)


@pytest.fixture
async def open_pool(world: World) -> AsyncIterator[OpenPool]:
    """Makes and opens pools; a second one of the same home is its next owner. All are closed at the end, the last first."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(
            home: str = "home", in_use: Sequence[str] = (), transfer: str = "", pool: int = 0, connections: int = 8192, processes: Any = None
        ) -> SlotPool:
            settings = NetworkSettings(pool=pool, transfer=IPv4Network(transfer) if transfer else None, connections=connections)
            made = SlotPool(
                world.scratch / home,
                world.scratch / home / "netns",
                processes or ToolRunner(),
                settings,
                resolv_conf=world.scratch / "resolv.conf",
            )
            stack.push_async_callback(made.close)
            stack.push_async_callback(release_all, made)
            await made.open(in_use)
            return made

        yield make


@pytest.fixture
async def pool(open_pool: OpenPool) -> SlotPool:
    return await open_pool(pool=1)


@pytest.fixture
async def start(open_pool: OpenPool) -> AsyncIterator[Start]:
    """Puts a guest into a new slot of a pool; at the end all guests die and their slots are released."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(pool: SlotPool) -> tuple[NetworkSlot, Guest]:
            slot = await pool.acquire(NetworkMode.ON)
            assert slot is not None
            stack.push_async_callback(pool.release, slot)
            guest = Guest(await pool.open_tap(slot))
            stack.callback(guest.close)
            return slot, guest

        yield make
