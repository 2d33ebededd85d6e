"""Background work on the store beside a start: what a start was begun from is what the machine stands on, and what its next pause refers to."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from host_world import World, opened

from torpor.host.sandbox import Sandbox
from torpor.model.sandbox import NetworkMode


async def stand_still(world: World) -> None:
    """No chores but the test's own."""
    assert world.agent._chores is not None
    await world.agent._chores.close()


async def resume_beside(world: World, monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox, work: Callable[[], Awaitable[None]]) -> None:
    """Resumes, with `work` done in between: when the start has looked at what there is, and waits for its network."""
    reached, go = asyncio.Event(), asyncio.Event()
    acquire = world.networks.acquire

    async def waiting(mode: NetworkMode) -> object:
        reached.set()
        await go.wait()
        return await acquire(mode)

    with monkeypatch.context() as patch:
        patch.setattr(world.networks, "acquire", waiting)
        resuming = asyncio.create_task(world.agent.resume(sandbox.id))
        await reached.wait()
        await work()
        go.set()
        await resuming


async def test_a_merge_takes_no_layer_from_under_a_start(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(home) as world:
        await stand_still(world)
        sandbox = await world.create("kept")
        for _ in range(5):
            await world.agent.pause(sandbox.id)
            await world.agent.resume(sandbox.id)
        artefact = await world.agent.pause(sandbox.id)
        snapshots, disks = world.agent.context.snapshots, world.agent.context.disks
        freed: list[int] = []

        async def merge() -> None:
            await disks.merge(artefact.disk, [])
            shorter = disks.shorten(artefact.disk)
            assert len(shorter.layers) < len(artefact.disk.layers)
            await snapshots.replace_disk(artefact.id, shorter)
            freed.append(await disks.collect(snapshots.referenced_disks()))

        await resume_beside(world, monkeypatch, sandbox, merge)
        assert freed == [0]
        assert await world.text(sandbox.id) == "kept"
        await world.agent.pause(sandbox.id)
        await world.agent.resume(sandbox.id)
        assert await world.text(sandbox.id) == "kept"
        await world.agent.kill(sandbox.id)


async def test_a_rebase_beside_a_start_does_not_confuse_the_next_pause(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(home) as world:
        await stand_still(world)
        sandbox = await world.create("kept")
        artefact = await world.agent.pause(sandbox.id)

        async def rebase() -> None:
            flat = await world.agent.context.snapshots.rebase(artefact.id)
            assert flat.memory_id != artefact.memory_id

        await resume_beside(world, monkeypatch, sandbox, rebase)
        assert await world.text(sandbox.id) == "kept"
        await world.agent.pause(sandbox.id)
        await world.agent.resume(sandbox.id)
        assert await world.text(sandbox.id) == "kept"
        await world.agent.kill(sandbox.id)


async def test_a_snapshot_deleted_after_it_was_read_is_not_started_from(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files are not taken from under whoever started before."""
    async with opened(home) as world:
        await stand_still(world)
        sandbox = await world.create("kept")
        named = await world.agent.snapshot(sandbox.id, "named")
        await world.agent.rollback(sandbox.id, named.id)
        await world.agent.pause(sandbox.id)
        await world.agent.rollback(sandbox.id, named.id)
        await world.agent.context.snapshots.delete(named.id)
        await world.agent.context.snapshots.collect(0)
        await world.agent.context.disks.collect(world.agent.context.snapshots.referenced_disks())
        assert await world.text(sandbox.id) == "kept"
        await world.agent.pause(sandbox.id)
        await world.agent.resume(sandbox.id)
        assert await world.text(sandbox.id) == "kept"
        await world.agent.kill(sandbox.id)
