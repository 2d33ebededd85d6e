"""Saves a running machine: as a pause (the machine ends), as a snapshot or as the seed of copies (it runs on). The order of steps is the promise:

    pause               name the overlay -> quiesce -> stop vCPUs -> device state, changed pages; disk frozen meanwhile -> commit by one rename
    snapshot, copies    name the overlay, make the next one -> quiesce -> stop vCPUs -> device state -> changed pages; new overlay meanwhile
                        -> run on -> disk frozen, the rest of the memory -> commit by one rename, or copies start

What needs no standing machine is done before the stop or after it. Until the commit everything can be undone: the machine runs on as if nothing had been
asked (a snapshot's on its new overlay, whose chain holds the same disk). From the commit on a power cut loses nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torpor.durable.threads import together
from torpor.host.context import Context, new_id
from torpor.host.launch import Live
from torpor.host.record import SandboxRecord, keepsake
from torpor.log import Log
from torpor.model.errors import GuestLost, TorporError
from torpor.model.snapshots import ArtefactKind
from torpor.ports.store import Artefact, Commit, DiskChain, Draft
from torpor.ports.vmm import DiskSpec

log = Log()

MANY = 1 << 20
"""Starts to expect from a named snapshot: its memory is to be a file that all of them map."""

Moved = Callable[[Live, DiskChain], None]


@dataclass(frozen=True, slots=True)
class Seed:
    """What copies of a machine start from: `artefact` as ports.store.Draft.offer returned it. Whoever has it aborts the draft in the end."""

    draft: Draft
    artefact: Artefact


async def pause(context: Context, record: SandboxRecord, live: Live) -> Artefact:
    """Commits a PAUSED artefact of the sandbox; the vCPUs stand still when it returns, and the VMM is the caller's to end. Raises NoSpace, VmmError, GuestLost:
    then nothing was committed and the guest runs on (unless the VMM itself is gone)."""
    chain = context.disks.prepare(_overlay(context, record, live), record.disk)
    try:
        draft = context.snapshots.draft(new_id())
        try:
            exact = await _stop(live)
            await together(_state_and_pages(live, draft), context.disks.seal(chain, closed=False))
            return await draft.commit(_commit(context, record, live, chain, exact, ArtefactKind.PAUSED, record.id))
        except BaseException:
            await asyncio.shield(_run_on_without(live, draft))
            raise
    finally:
        context.disks.release(chain)


async def snapshot(context: Context, record: SandboxRecord, live: Live, name: str, moved: Moved) -> Artefact:
    """Commits a SNAPSHOT named `name` while the sandbox runs on, on a new overlay. `moved` is called with the new chain as soon as the disk has
    changed hands, also when the save or the commit fails afterwards. Raises as pause."""
    draft, terms = await _leave_behind(context, record, live, moved, name, MANY)
    try:
        return await draft.commit(terms)
    except BaseException:
        await asyncio.shield(draft.abort())
        raise
    finally:
        context.disks.release(terms.disk)


async def seed(context: Context, record: SandboxRecord, live: Live, starts: int, moved: Moved) -> Seed:
    """What `starts` copies of the machine can start from, as `snapshot`; its memory is not durable before `draft.keep`."""
    draft, terms = await _leave_behind(context, record, live, moved, "", starts)
    try:
        return Seed(draft, await draft.offer(terms))
    except BaseException:
        await asyncio.shield(draft.abort())
        raise
    finally:
        context.disks.release(terms.disk)


async def _leave_behind(context: Context, record: SandboxRecord, live: Live, moved: Moved, name: str, starts: int) -> tuple[Draft, Commit]:
    """Saves the machine into a draft and lets it run on, on a new overlay; the old one is frozen when this returns. The caller releases the chain."""
    overlay = _overlay(context, record, live)
    chain = context.disks.prepare(overlay, record.disk)
    try:
        draft = context.snapshots.draft(new_id())
        swap = _Swap(context, live, overlay, chain, overlay.with_name(f"disk-{new_id()[:12]}.qcow2"), moved)
        try:
            disk = await context.disks.create_overlay(swap.fresh, chain, owner_uid=live.running.uid)
            exact = await _stop(live)
            await live.machine.save_state(draft.state_path)
            await _beside(swap.make(disk), draft.capture(live.machine.region, live.running.memory_id, starts=starts))
            await live.machine.resume()
            await live.while_it_runs(live.guest.thaw())
            await context.disks.seal(chain, closed=True)
        except BaseException:
            await asyncio.shield(swap.undo(draft))
            raise
        return draft, _commit(context, record, live, chain, exact, ArtefactKind.SNAPSHOT, name)
    except BaseException:
        context.disks.release(chain)
        raise


@dataclass(slots=True)
class _Swap:
    """The change of a stopped machine from its overlay `old`, which `chain` has on top, to `fresh`."""

    context: Context
    live: Live
    old: Path
    chain: DiskChain
    fresh: Path
    moved: Moved
    done: bool = False

    async def make(self, disk: DiskSpec) -> None:
        live = self.live
        await live.machine.swap_disk(replace(disk, chain=(self.old, *disk.chain[1:])))
        self.done = True
        live.running = replace(live.running, overlay=self.fresh.name, handle=live.machine.handle)
        self.moved(live, self.chain)
        self.old.unlink()

    async def undo(self, draft: Draft) -> None:
        """The save failed: the machine runs on, on whichever overlay it has now; a chain that it stands on is frozen all the same."""
        if not self.done:
            self.fresh.unlink(missing_ok=True)
        await _run_on_without(self.live, draft)
        if self.done:
            try:
                await self.context.disks.seal(self.chain, closed=True)
            except (TorporError, OSError) as error:
                log.error("layer_not_sealed", layer=self.chain.layers[0], error=str(error))  # the next freeze above it does it, or fails too


async def _beside(swap: Coroutine[Any, Any, None], capture: Coroutine[Any, Any, None]) -> None:
    """Both at once; the swap to its end whatever becomes of the capture, or nobody would know which overlay the machine has."""
    swapping = asyncio.ensure_future(swap)
    try:
        await asyncio.sleep(0)  # the swap's first command is on its way before a small capture takes the loop's thread
        await capture
    finally:
        await asyncio.wait({swapping})
    swapping.result()


def _overlay(context: Context, record: SandboxRecord, live: Live) -> Path:
    return context.records.directory(record.id) / live.running.run_dir / live.running.overlay


async def _stop(live: Live) -> bool:
    """Brings the guest to rest; True when its processes froze."""
    quiesced = await live.while_it_runs(live.guest.quiesce())
    await live.machine.pause()
    return quiesced.frozen


async def _state_and_pages(live: Live, draft: Draft) -> None:
    await live.machine.save_state(draft.state_path)
    await draft.capture(live.machine.region, live.running.memory_id)


async def _run_on_without(live: Live, draft: Draft) -> None:
    """Lets the guest run on, whatever the failure was, which is for the caller to raise: one here must not hide it. A VMM that is gone has its own way of
    being noticed."""
    try:
        await draft.abort()
    finally:
        try:
            live.full.clear()
            await live.machine.resume()
            await live.while_it_runs(live.guest.thaw())
        except GuestLost:
            pass
        except TorporError as error:
            log.error("machine_not_resumed", machine=live.machine.handle.machine_id, error=str(error))


def _commit(context: Context, record: SandboxRecord, live: Live, chain: DiskChain, exact: bool, kind: ArtefactKind, owner: str) -> Commit:
    return Commit(
        kind=kind,
        owner=owner,
        created_at=context.now(),
        template=record.template,
        shape=record.shape,
        fingerprint=live.running.fingerprint,
        disk=chain,
        generation=live.running.generation,
        exact_freeze=exact,
        extra=keepsake(record) if kind is ArtefactKind.PAUSED else {},
    )
