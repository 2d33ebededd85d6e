"""Brings one machine up, and takes down what it held. Every resource is entered on an exit stack at the moment it exists, so a failure or a cancel at any step
leaves nothing; the record is written as an intent before the first effect, so a crash of ours at any step leaves nothing unknown either."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from torpor.durable import files
from torpor.host.context import PROFILE, Context
from torpor.host.record import Running, SandboxRecord
from torpor.model.errors import NoSpace
from torpor.model.sandbox import Condition, Egress, Identity
from torpor.ports.guest import Guest, Wake
from torpor.ports.network import NetworkSlot
from torpor.ports.store import DiskChain, Parts
from torpor.ports.vmm import DiskSpec, LaunchSpec, Machine, Restore

T = TypeVar("T")
STANDS_STILL = "The host's disk is full: the sandbox stands still until there is room."


@dataclass(slots=True)
class Live:
    """A machine that runs, with everything it holds. Owned by its sandbox's task alone. `disk`: the chain under its overlay when it came up. `full`: set
    while it stands still because the host's disk took a write no more."""

    machine: Machine
    guest: Guest
    running: Running
    slot: NetworkSlot | None
    disk: DiskChain
    full: asyncio.Event = field(default_factory=asyncio.Event)

    async def while_it_runs(self, step: Awaitable[T]) -> T:
        """Awaits a step of the guest's. Raises NoSpace when the guest comes to stand still, for it would not answer; the step is cancelled then."""
        doing, standing = asyncio.ensure_future(step), asyncio.ensure_future(self.full.wait())
        try:
            await asyncio.wait({doing, standing}, return_when=asyncio.FIRST_COMPLETED)
            if not doing.done():
                raise NoSpace(STANDS_STILL, mend="Free space on the file system of TORPOR_HOME.")
            return doing.result()
        finally:
            doing.cancel()
            standing.cancel()
            await asyncio.wait({doing, standing})


def identity(record: SandboxRecord) -> Identity:
    """The identity of this sandbox: the machine id is made of the sandbox's id, so it stays the same over pauses and differs between clones."""
    known_as = record.sandbox_id or record.id
    return Identity(known_as, record.hostname or f"sandbox-{known_as[:8]}", f"{int(known_as, 36) & ((1 << 128) - 1):032x}", dict(record.names))


def wake_for(context: Context, record: SandboxRecord, generation: int, slot: NetworkSlot | None, disk_bytes: int) -> Wake:
    network = dict(slot.guest) if slot else None
    return Wake(generation, context.now(), secrets.token_bytes(64), identity(record), network, disk_bytes)


async def bring_up(context: Context, record: SandboxRecord, artefact_id: str, note_intent: Callable[[Running], None]) -> Live:
    """Restores the artefact as a new life of the sandbox: a fresh overlay on the artefact's disk, a slot, a uid, a VMM, a woken guest. `note_intent`
    is called with what will be held before anything is that outlives this process. Raises what the ports raise, an error of the launch before one of the
    wake; then nothing of the launch is left."""
    async with AsyncExitStack() as undo:
        parts = context.snapshots.take(record.id, artefact_id)
        undo.callback(context.snapshots.unpin, record.id)
        artefact = parts.artefact
        generation = max(record.generation, artefact.generation) + 1
        size = max(artefact.disk.size_bytes, record.shape.disk_bytes)
        chain = replace(artefact.disk, size_bytes=size)
        uid = context.uids.take()
        undo.callback(context.uids.give_back, uid)
        slot = await context.networks.acquire(record.network)
        if slot is not None:
            undo.push_async_callback(context.networks.release, slot)
        running = Running(
            generation=generation,
            run_dir=f"vm-{generation}",
            artefact_id=artefact.id,
            memory_id=artefact.memory_id,
            overlay=f"disk-{generation}.qcow2",
            uid=uid,
            slot=slot.name if slot else None,
            fingerprint=artefact.fingerprint,
            restricted=slot is not None and record.egress != Egress(),
        )
        note_intent(running)
        run_dir = make_run_dir(context, record.id, running)
        undo.callback(shutil.rmtree, run_dir, ignore_errors=True)
        if slot is not None and running.restricted:
            await context.networks.restrict(slot, record.egress)
        disk = await context.disks.create_overlay(run_dir / running.overlay, chain, owner_uid=uid)
        grows = size > artefact.disk.size_bytes or Condition.DISK_NOT_GROWN in record.conditions

        def wake(socket: Path) -> Coroutine[Any, Any, Guest]:
            said = wake_for(context, record, generation, slot, size if grows else 0)
            return context.guests.connect_and_wake(socket, said, timeout=context.policy.answer_timeout)

        waking = _Waking(wake)
        undo.push_async_callback(waking.give_up)
        async with context.turns.taken():
            # a guest that is to grow its disk is woken when the disk has grown
            machine = await _launch(context, record, parts, running, run_dir, disk, slot, None if grows else waking.begin)
            undo.push_async_callback(machine.stop, 0.0)
            if grows:
                await machine.resize_disk(size)
                waking.begin(machine.agent_socket)
            guest = await waking.guest()
        undo.pop_all()
        return Live(machine, guest, replace(running, handle=machine.handle), slot, chain)


class _Waking:
    """The first conversation with a guest, begun before it runs: so it wakes to a channel that is connected and a greeting that is there."""

    def __init__(self, wake: Callable[[Path], Coroutine[Any, Any, Guest]]) -> None:
        self._wake = wake
        self._task: asyncio.Task[Guest] | None = None

    def begin(self, socket: Path) -> None:
        self._task = asyncio.create_task(self._wake(socket))

    async def guest(self) -> Guest:
        """The guest, once it answered. Raises what connect_and_wake raises; cancelled, the conversation ends."""
        assert self._task is not None
        return await self._task

    async def give_up(self) -> None:
        """Ends the conversation, also one that has just come about."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.wait({self._task})
        if not self._task.cancelled() and self._task.exception() is None:
            await self._task.result().close()


def make_run_dir(context: Context, sandbox_id: str, running: Running) -> Path:
    run_dir = context.records.directory(sandbox_id) / running.run_dir
    with files.disk_errors(f"making {run_dir}"):
        run_dir.mkdir(mode=0o700)
        if running.uid is not None:
            os.chown(run_dir, running.uid, running.uid)
    return run_dir


async def _launch(
    context: Context,
    record: SandboxRecord,
    parts: Parts,
    running: Running,
    run_dir: Path,
    disk: DiskSpec,
    slot: NetworkSlot | None,
    about_to_run: Callable[[Path], None] | None,
) -> Machine:
    tap = await context.networks.open_tap(slot) if slot else None
    try:
        return await context.vmm.launch(
            LaunchSpec(
                machine_id=record.id,
                shape=record.shape,
                profile=PROFILE,
                boot=Restore(parts.memory, parts.state, parts.fill, about_to_run),
                disk=disk,
                agent_disk=context.images.agent_disk(parts.artefact.fingerprint.hard["agent"]),
                run_dir=run_dir,
                uid=running.uid,
                netns=slot.netns if slot else None,
                tap_fd=tap,
                leash=record.leash[0] if record.leash else None,
                cache_strict=context.policy.cache_strict,
            )
        )
    finally:
        if tap is not None:
            os.close(tap)


async def take_down(context: Context, sandbox_id: str, running: Running, slot: NetworkSlot | None, *, keep_disk: DiskChain | None = None) -> DiskChain | None:
    """Gives back everything a life held; its VMM must be dead. With `keep_disk`, the chain under the live overlay, the overlay is frozen first and
    the chain that
    has it on top is returned: the disk as the guest last left it. Repeatable: a second call finds nothing and is no error."""
    run_dir = context.records.directory(sandbox_id) / running.run_dir
    frozen = None
    overlay = run_dir / running.overlay
    if keep_disk is not None and overlay.exists():
        frozen = await context.disks.freeze(overlay, keep_disk)
    if slot is not None:
        await context.networks.release(slot)
    shutil.rmtree(run_dir, ignore_errors=True)
    context.snapshots.unpin(sandbox_id)
    context.uids.give_back(running.uid)
    return frozen
