"""Cold boots. The outcome of every cold boot is an artefact (every start is a resume): of a template, as its warm image; of a sandbox's own disk, as
its way back to life.

A cold boot under TCG hangs for ever in about one of twenty, so each is watched with a deadline and started again.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torpor.durable import files
from torpor.host.context import PROFILE, Context, new_id
from torpor.host.fit import fingerprint
from torpor.host.services import TAG, start_service
from torpor.log import Log
from torpor.model.errors import GuestLost, GuestOSError, NoSpace, TimedOut, TorporError, VmmError
from torpor.model.shapes import Shape
from torpor.model.snapshots import ArtefactKind
from torpor.ports.guest import ExecSpec, Guest
from torpor.ports.images import BootImages, Service
from torpor.ports.store import Artefact, Commit, DiskChain, Draft
from torpor.ports.vmm import ColdBoot, LaunchSpec, Machine, VmmEvent

log = Log()

FIRST_GENERATION = 1
_END_SECONDS = 1.0
_ROOM = "Free space on the file system of TORPOR_HOME, and try again."


@dataclass(frozen=True, slots=True)
class BootOrder:
    """What to boot, and what the artefact is to be: see Commit. `extra` travels into the manifest. `service` is started and,
    unless `on_trust`, waited for. A user's own disk is booted on trust: what is wrong with the service there must not keep anybody from the files."""

    kind: ArtefactKind
    owner: str
    template: str
    shape: Shape
    disk: DiskChain
    generation: int
    extra: dict[str, str]
    service: Service | None = None
    on_trust: bool = False


async def cold_boot(context: Context, order: BootOrder) -> Artefact:
    """Boots `order.disk` on an overlay of its own, waits for the guest agent, runs one command so that what a first command needs is in memory, and
    commits the artefact.
    Raises TimedOut when no attempt answered (with the console's tail), HostError when the template's service did not get ready, at once NoSpace when memory
    or disk do not fit and VmmError when the VMM ended, and what the ports raise; nothing is left then."""
    boot = context.images.boot()
    for attempt in range(1, context.policy.boot_attempts + 1):
        try:
            return await _attempt(context, order, boot, context.scratch / new_id())
        except TimedOut as error:
            log.warning("cold_boot_again", template=order.template, attempt=attempt, of=context.policy.boot_attempts, error=error.message)
            last = error
    raise TimedOut(f"The guest did not answer in {context.policy.boot_attempts} cold boots: {last.message}", mend=last.mend)


async def _attempt(context: Context, order: BootOrder, boot: BootImages, run_dir: Path) -> Artefact:
    draft = context.snapshots.draft(new_id())
    async with AsyncExitStack() as undo:
        undo.push_async_callback(draft.abort)
        uid = context.uids.take()
        undo.callback(context.uids.give_back, uid)
        undo.callback(shutil.rmtree, run_dir, ignore_errors=True)
        with files.disk_errors(f"making {run_dir}"):
            run_dir.mkdir(mode=0o700, parents=True)
            if uid is not None:
                os.chown(run_dir, uid, uid)
        memory = await draft.prepare_memory(order.shape.memory_bytes, owner_uid=uid)
        overlay = run_dir / "disk.qcow2"
        disk = await context.disks.create_overlay(overlay, order.disk, owner_uid=uid)
        machine = await context.vmm.launch(
            LaunchSpec(
                machine_id=new_id(),
                shape=order.shape,
                profile=PROFILE,
                boot=ColdBoot(boot.kernel, boot.initrd, boot.command_line, memory),
                disk=disk,
                agent_disk=boot.agent_disk,
                run_dir=run_dir,
                uid=uid,
                leash=os.getpid(),
            )
        )
        undo.push_async_callback(machine.stop, 0.0)
        exact = await _watched(machine, _converse(context, machine, draft, order))
        await machine.stop(0.0)
        chain = await context.disks.freeze(overlay, order.disk)
        undo.callback(context.disks.release, chain)
        return await draft.commit(
            Commit(
                kind=order.kind,
                owner=order.owner,
                created_at=context.now(),
                template=order.template,
                shape=order.shape,
                fingerprint=await fingerprint(context, order.shape, boot),
                disk=chain,
                generation=order.generation,
                exact_freeze=exact,
                extra=order.extra,
            )
        )


async def _watched(machine: Machine, talk: Coroutine[Any, Any, bool]) -> bool:
    """What `talk` with a guest that boots returns. What is wrong with its VMM is known before the guest's silence has lasted too long, and told instead."""
    talking, trouble = asyncio.ensure_future(talk), asyncio.ensure_future(_trouble(machine))
    try:
        await asyncio.wait({talking, trouble}, return_when=asyncio.FIRST_COMPLETED)
        if talking.done() and talking.exception() is not None:
            await asyncio.wait({trouble}, timeout=_END_SECONDS)  # the channel of a VMM that ends breaks before its end is known
        if trouble.done() and not (talking.done() and talking.exception() is None):
            raise trouble.result()
        return talking.result()
    finally:
        for task in (talking, trouble):
            task.cancel()
        await asyncio.wait({talking, trouble})
        if not talking.cancelled():
            talking.exception()  # seen: the trouble was told instead


async def _trouble(machine: Machine) -> TorporError:
    """Returns when the VMM has ended, or stands still for want of space. A shared mapping that cannot be written because the disk is full is a SIGBUS."""
    async for event in machine.events():
        if event is VmmEvent.DISK_FULL:
            return NoSpace("No space left for the disk of a microVM that boots.", mend=_ROOM)
    ended = await machine.wait()
    if ended.signal == signal.SIGBUS:
        return NoSpace("No space left for the memory of a microVM that boots.", mend=_ROOM)
    how = f"signal {ended.signal}" if ended.signal is not None else f"code {ended.code}" if ended.code is not None else "unseen"
    return VmmError(f"The VMM of a cold boot ended ({how}). Last on its console: {machine.console_tail()[-400:] or 'nothing'}")


async def _converse(context: Context, machine: Machine, draft: Draft, order: BootOrder) -> bool:
    guest = await _answer(context, machine)
    try:
        return await _settle(guest, machine, draft, order)
    finally:
        await guest.close()


async def _answer(context: Context, machine: Machine) -> Guest:
    try:
        return await context.guests.connect(machine.agent_socket, generation=None, timeout=context.policy.boot_timeout)
    except GuestLost as error:
        raise TimedOut(f"{error.message} Last on its console: {machine.console_tail()[-400:] or 'nothing'}") from error


async def _serve(guest: Guest, service: Service, order: BootOrder) -> None:
    if not order.on_trust:
        await start_service(guest, service, order.template)
        return
    try:
        (await guest.exec(ExecSpec(service.start, tag=TAG))).detach()
    except GuestOSError as error:
        log.warning("service_not_started", template=order.template, owner=order.owner, error=str(error))


async def exercise(guest: Guest) -> None:
    """One command, as users run them: what a first command needs is in memory afterwards (and, in a running machine, translated)."""
    process = await guest.exec(ExecSpec(["/bin/sh", "-c", "true"]))
    await process.wait()
    await guest.forget(process.exec_id)


async def _settle(guest: Guest, machine: Machine, draft: Draft, order: BootOrder) -> bool:
    """Runs a command as users will, then brings the guest to rest with its device state saved. True when its processes froze."""
    await guest.grow_root()
    await exercise(guest)
    if order.service is not None:
        await _serve(guest, order.service, order)
    await guest.sync()
    quiesced = await guest.quiesce()
    await machine.pause()
    await machine.save_state(draft.state_path)
    return quiesced.frozen
