"""After a restart: takes back every machine that still runs, and settles what a crash left in between. What is decided for each record:

no life noted                 paused and ended sandboxes are as they were
an intent without a handle    the launch was never reported: its VMM is killed, its files removed
a handle, VMM running         taken back, on the overlay it really has; ended when its pause had been committed, killed when its leash is dead
a handle, VMM silent          left as it is, and asked again (Silent): a machine that was stopped, or whose host is overloaded, answers later
a handle, VMM gone            ended, with the reason; the disk is kept
an older record               it stands at the pause that was committed since: a power cut can take a record back, never a pause
no record, a paused artefact  a record is made of what the artefact says of its sandbox
"""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path

from torpor.host.context import Context
from torpor.host.ending import why
from torpor.host.launch import Live, take_down
from torpor.host.record import Running, SandboxRecord, from_keepsake
from torpor.log import Log
from torpor.model.errors import ArtefactError, GuestLost, NotFound, TimedOut, TorporError
from torpor.model.sandbox import EndReason, MachineState
from torpor.model.snapshots import ArtefactKind
from torpor.ports.network import NetworkSlot
from torpor.ports.processes import ExitRecord
from torpor.ports.store import Artefact, DiskChain
from torpor.ports.vmm import Machine

log = Log()

Settled = tuple[SandboxRecord, Live | None]


class Silent(Exception):
    """The machine runs and does not answer, or is just ending. Nothing was changed; to be tried again."""


async def settle(context: Context, record: SandboxRecord) -> Settled | None:
    """What is true of one sandbox now: its record, and its live machine if it has one. None: nothing is left of it, because nobody was ever told of it, or
    because it was being killed, or because whoever it belonged to is gone. Raises Silent."""
    settled = await _settle(context, _caught_up(context, record))
    if settled is None or _unwanted(record):
        for artefact in context.snapshots.list(ArtefactKind.PAUSED, record.id):
            await context.snapshots.delete(artefact.id)
        context.records.remove(record.id)
        return None
    for artefact in context.snapshots.list(ArtefactKind.PAUSED, record.id):
        if artefact.id != settled[0].artefact_id:  # replaced by a later one, or made by a cold boot that was never told of
            await context.snapshots.delete(artefact.id)
    return settled


def lost(context: Context, known: set[str]) -> list[SandboxRecord]:
    """Records of paused sandboxes whose own were lost, made again from their latest artefacts; `known`: the ids that need none. What an artefact does not
    say enough for stays in the store, listed as an artefact."""
    latest: dict[str, Artefact] = {}
    for artefact in context.snapshots.list(ArtefactKind.PAUSED):
        if artefact.owner not in known and (artefact.owner not in latest or _later(artefact, latest[artefact.owner])):
            latest[artefact.owner] = artefact
    made = [record for artefact in latest.values() if (record := from_keepsake(artefact)) is not None]
    for record in made:
        log.warning("record_made_again", sandbox=record.id, artefact=record.artefact_id)
    return made


def _later(one: Artefact, other: Artefact) -> bool:
    return (one.generation, one.created_at) > (other.generation, other.created_at)


def _caught_up(context: Context, record: SandboxRecord) -> SandboxRecord:
    """A record that is older than a pause of its sandbox: only a power cut does that. Cold boots that nobody was told of say nothing of their sandbox,
    so they are not taken for pauses."""
    pauses = [artefact for artefact in context.snapshots.list(ArtefactKind.PAUSED, record.id) if from_keepsake(artefact) is not None]
    newer = [artefact for artefact in pauses if artefact.generation > record.generation]
    if not newer:
        return record
    pause = max(newer, key=lambda artefact: (artefact.generation, artefact.created_at))
    log.warning("record_caught_up", sandbox=record.id, artefact=pause.id)
    return replace(record, state=MachineState.PAUSED, artefact_id=pause.id, disk=pause.disk, generation=pause.generation, end_reason=None, end_note="")


async def clear_scratch(context: Context) -> None:
    """Ends the cold boots of a dead owner, and makes their directory anew."""
    context.scratch.mkdir(mode=0o711, parents=True, exist_ok=True)
    for run_dir in context.scratch.iterdir():
        await context.processes.reap(run_dir)
        shutil.rmtree(run_dir, ignore_errors=True)


async def clear_stray(context: Context, directory: Path) -> None:
    """Ends what may run in a sandbox's directory that has no record, and removes it."""
    for run_dir in directory.iterdir():
        await context.processes.reap(run_dir)
    shutil.rmtree(directory, ignore_errors=True)


def _unwanted(record: SandboxRecord) -> bool:
    being_killed = record.state is MachineState.STOPPING and record.end_reason is EndReason.USER
    return being_killed or record.pool or not _leash_holds(record)


async def _settle(context: Context, record: SandboxRecord) -> Settled | None:
    if record.running is None:
        if record.state in (MachineState.LAUNCHING, MachineState.STOPPING) or (record.state is MachineState.PAUSED and not record.artefact_id):
            return _without_machine(context, record)
        return record, None
    machine = await _find(context, record, record.running)
    try:
        record = await _on_its_overlay(context, record, record.running, None if isinstance(machine, ExitRecord) else machine)
    except (TimedOut, GuestLost) as error:
        assert not isinstance(machine, ExitRecord)
        await machine.detach()  # alive or dead, the next try tells
        raise Silent(str(error)) from error
    assert record.running is not None
    pause = _committed_pause(context, record, record.running)
    if isinstance(machine, ExitRecord):
        return await _ended(context, record, record.running, machine, pause)
    doomed = pause is not None or _unwanted(record) or record.state in (MachineState.PAUSED, MachineState.STOPPING)
    if not doomed:
        live = await _take_back(context, record, record.running, machine)
        if live is not None:
            return replace(record, state=MachineState.READY, running=live.running, changed_at=context.now()), live
    await machine.stop(0.0)
    return await _ended(context, record, record.running, ExitRecord(signal=9), pause)


def _without_machine(context: Context, record: SandboxRecord) -> Settled | None:
    """A launch or a rollback that ended in the middle: back to the artefact, or away if there is none."""
    if not record.artefact_id:
        return None
    return replace(record, state=MachineState.PAUSED, disk=_disk_of(context, record), running=None, changed_at=context.now()), None


def _disk_of(context: Context, record: SandboxRecord) -> DiskChain:
    """The disk that goes with the artefact that the record stands at."""
    try:
        return context.snapshots.salvage(record.artefact_id).disk
    except (ArtefactError, NotFound):
        return record.disk


async def _find(context: Context, record: SandboxRecord, running: Running) -> Machine | ExitRecord:
    run_dir = context.records.directory(record.id) / running.run_dir
    if running.handle is not None:
        try:
            return await context.vmm.adopt(running.handle, run_dir)
        except (TimedOut, GuestLost) as error:  # one that is just ending is among them
            raise Silent(str(error)) from error
    await context.processes.reap(run_dir)
    return ExitRecord()


def _committed_pause(context: Context, record: SandboxRecord, running: Running) -> Artefact | None:
    """The artefact of a pause of this very life, when it was committed but the owner died before saying so."""
    for artefact in context.snapshots.list(ArtefactKind.PAUSED, record.id):
        if artefact.generation == running.generation and artefact.id != running.artefact_id:
            return artefact
    return None


async def _on_its_overlay(context: Context, record: SandboxRecord, running: Running, machine: Machine | None) -> SandboxRecord:
    """The record, with the change to a new overlay noted that an owner died over. Of a dead VMM nobody knows whether it got there; the new overlay is
    right either way, for it is empty then. Raises VmmError, GuestLost, TimedOut."""
    run_dir = context.records.directory(record.id) / running.run_dir
    old = run_dir / running.overlay
    for fresh in run_dir.glob("disk-*.qcow2"):
        chain = context.disks.moved(fresh, old, record.disk) if fresh != old else None
        if chain is not None and (machine is None or await machine.overlay() == fresh.name):
            log.warning("disk_caught_up", sandbox=record.id, overlay=fresh.name)
            return replace(record, disk=chain, running=replace(running, overlay=fresh.name))
    return record


def _leash_holds(record: SandboxRecord) -> bool:
    if record.leash is None:
        return True
    pid, started = record.leash
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat:
            return int(stat.read().rpartition(")")[2].split()[19]) == started
    except (FileNotFoundError, ProcessLookupError):
        return False


def slot_of(context: Context, running: Running) -> NetworkSlot | None:
    if running.slot is None:
        return None
    try:
        return context.networks.adopt(running.slot)
    except NotFound:
        return None


async def _restrict(context: Context, record: SandboxRecord, running: Running) -> None:
    """An owner that died while it changed a sandbox's egress may have left the rules before or after the change; the record says which hold. Where that cannot
    be said, those in the kernel hold on: no reason to end a sandbox."""
    slot = slot_of(context, running)
    if slot is None or not running.restricted:
        return
    try:
        await context.networks.restrict(slot, record.egress)
    except TorporError as error:
        log.error("egress_not_said_again", sandbox=record.id, error=str(error))


async def _take_back(context: Context, record: SandboxRecord, running: Running, machine: Machine) -> Live | None:
    context.uids.hold(running.uid)
    context.snapshots.hold(record.id, running.memory_id, record.disk)
    try:
        await machine.resume()
        guest = await context.guests.connect(machine.agent_socket, generation=running.generation, timeout=context.policy.answer_timeout)
        await _restrict(context, record, running)
        await guest.thaw()  # whatever the record says: a snapshot's thaw is noted before it is done, and a second thaw does nothing
    except (TimedOut, GuestLost) as error:
        await machine.detach()  # alive or dead, the next try tells
        raise Silent(str(error)) from error
    except asyncio.CancelledError:
        await machine.detach()
        raise
    except TorporError as error:
        log.error("machine_not_taken_back", sandbox=record.id, error=str(error))
        return None
    return Live(machine, guest, replace(running, handle=machine.handle), slot_of(context, running), record.disk)


async def _ended(context: Context, record: SandboxRecord, running: Running, ended: ExitRecord, pause: Artefact | None) -> Settled | None:
    keep = record.disk if pause is None and record.state in (MachineState.READY, MachineState.QUIESCED) else None
    try:
        disk = await take_down(context, record.id, running, slot_of(context, running), keep_disk=keep)
    except TorporError as error:
        log.error("disk_not_kept", sandbox=record.id, error=str(error))
        disk = None
    settled = replace(record, running=None, changed_at=context.now())
    if pause is not None:
        return replace(settled, state=MachineState.PAUSED, artefact_id=pause.id, disk=pause.disk, generation=pause.generation), None
    if record.state in (MachineState.PAUSED, MachineState.LAUNCHING, MachineState.STOPPING):
        return _without_machine(context, settled)
    reason, note = why(ended, None, "")
    if ended == ExitRecord():
        reason, note = EndReason.HOST_LOST, "Its VMM was gone when the host agent came back, and nobody saw it end."
    return replace(settled, state=MachineState.ENDED, disk=disk or record.disk, end_reason=reason, end_note=note), None
