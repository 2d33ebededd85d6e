"""What every host behind ports.hosts must do. A rig makes orders; CHECKS lists the checks.

async def test(...): await check(rig)
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import pytest

from torpor.model.errors import Denied, DenyReason, InvalidInput, NotFound
from torpor.model.sandbox import Egress, EndReason, NetworkMode, base36
from torpor.model.shapes import Shape
from torpor.ports.hosts import Host, Machine, MachineStatus, Order

S = MachineStatus
_numbers = itertools.count(1)


class HostRig(Protocol):
    """What a host's test supplies. Its guests have `remember(text)`, `text()` and an identity; `source` is a template the host has."""

    source: str
    shape: Shape

    @property
    def host(self) -> Host: ...

    async def identity(self, sandbox_id: str) -> Any: ...

    async def crash(self, sandbox_id: str) -> None:
        """The machine dies of itself."""
        ...


def name() -> str:
    return base36(next(_numbers))


def order(rig: HostRig, sandbox_id: str = "", **fields: Any) -> Order:
    return Order(sandbox_id or name(), name(), fields.pop("source", rig.source), rig.shape, NetworkMode.OFF, **fields)


async def running(rig: HostRig, text: str = "") -> str:
    wanted = order(rig)
    made = await rig.host.create(wanted)
    assert (made.sandbox_id, made.status, made.shape) == (wanted.sandbox_id, S.RUNNING, rig.shape)
    await remember(rig, wanted.sandbox_id, text)
    return wanted.sandbox_id


async def remember(rig: HostRig, sandbox_id: str, text: str) -> None:
    guest: Any = await rig.host.guest(sandbox_id)
    await guest.remember(text)


async def text(rig: HostRig, sandbox_id: str) -> str:
    guest: Any = await rig.host.guest(sandbox_id)
    return str(await guest.text())


async def reported(rig: HostRig, sandbox_id: str) -> Machine | None:
    return next((one for one in (await rig.host.report()).machines if one.sandbox_id == sandbox_id), None)


async def check_a_guest_knows_its_sandbox(rig: HostRig) -> None:
    wanted = order(rig, hostname="builder", names={"TEAM": "blue"})
    await rig.host.create(wanted)
    identity = await rig.identity(wanted.sandbox_id)
    assert (identity.sandbox_id, identity.hostname, identity.names) == (wanted.sandbox_id, "builder", {"TEAM": "blue"})
    plain = await running(rig)
    assert (await rig.identity(plain)).hostname == f"sandbox-{plain[:8]}"
    assert (await rig.identity(plain)).machine_id != identity.machine_id


async def check_a_create_asked_again_is_the_same_machine(rig: HostRig) -> None:
    wanted = order(rig)
    first, second = await asyncio.gather(rig.host.create(wanted), rig.host.create(wanted))
    third = await rig.host.create(wanted)
    assert {first.machine_id} == {second.machine_id, third.machine_id}
    assert [one.machine_id for one in (await rig.host.report()).machines] == [first.machine_id]
    await rig.host.pause(wanted.sandbox_id)
    assert (await rig.host.create(wanted)).status is S.PAUSED


async def check_an_unknown_source_leaves_nothing(rig: HostRig) -> None:
    wanted = order(rig, source="no-such-template")
    with pytest.raises(NotFound):
        await rig.host.create(wanted)
    assert await reported(rig, wanted.sandbox_id) is None


async def check_pause_and_resume_keep_the_guest(rig: HostRig) -> None:
    sandbox_id = await running(rig, "kept")
    before = await rig.host.machine(sandbox_id)
    paused = await rig.host.pause(sandbox_id)
    assert paused.status is S.PAUSED and paused.stored_bytes > 0
    assert (await rig.host.pause(sandbox_id)).status is S.PAUSED
    assert await reported(rig, sandbox_id) == await rig.host.machine(sandbox_id) == paused
    with pytest.raises(Denied):
        await rig.host.guest(sandbox_id)
    resumed = await rig.host.resume(sandbox_id)
    assert resumed.status is S.RUNNING and resumed.generation > before.generation
    assert (await rig.host.resume(sandbox_id)).generation == resumed.generation
    assert await text(rig, sandbox_id) == "kept"


async def check_a_cold_boot_loses_memory_and_happens_once(rig: HostRig) -> None:
    sandbox_id = await running(rig, "gone")
    await rig.host.pause(sandbox_id)
    booted = await rig.host.cold_boot(sandbox_id)
    assert booted.status is S.RUNNING
    assert await text(rig, sandbox_id) == ""
    assert (await rig.host.cold_boot(sandbox_id)).generation == booted.generation


async def check_a_snapshot_of_a_running_source(rig: HostRig) -> None:
    sandbox_id, label = await running(rig, "first"), name()
    stored = await rig.host.snapshot(sandbox_id, label)
    await remember(rig, sandbox_id, "second")
    assert await rig.host.snapshot(sandbox_id, label) == stored
    assert [one.name for one in (await rig.host.report()).snapshots] == [label]
    child = order(rig, source=stored.artefact_id)
    await rig.host.create(child)
    assert (await text(rig, child.sandbox_id), await text(rig, sandbox_id)) == ("first", "second")
    await rig.host.delete_snapshot(stored.artefact_id)
    await rig.host.delete_snapshot(stored.artefact_id)
    assert (await rig.host.report()).snapshots == []
    assert await text(rig, child.sandbox_id) == "first"


async def check_a_snapshot_of_a_paused_source(rig: HostRig) -> None:
    sandbox_id, label = await running(rig, "asleep"), name()
    await rig.host.pause(sandbox_id)
    stored = await rig.host.snapshot(sandbox_id, label)
    assert (await rig.host.machine(sandbox_id)).status is S.PAUSED
    assert await rig.host.snapshot(sandbox_id, label) == stored
    await rig.host.kill(sandbox_id)
    child = order(rig, source=stored.artefact_id)
    await rig.host.create(child)
    assert await text(rig, child.sandbox_id) == "asleep"


async def check_a_rollback(rig: HostRig) -> None:
    sandbox_id = await running(rig, "then")
    stored = await rig.host.snapshot(sandbox_id, name())
    await remember(rig, sandbox_id, "now")
    assert (await rig.host.rollback(sandbox_id, stored.artefact_id)).status is S.RUNNING
    assert await text(rig, sandbox_id) == "then"
    await rig.host.pause(sandbox_id)
    await rig.host.rollback(sandbox_id, stored.artefact_id)
    assert await text(rig, sandbox_id) == "then"
    with pytest.raises(NotFound):
        await rig.host.rollback(sandbox_id, name())


async def check_a_fork_has_the_children_that_were_ordered(rig: HostRig) -> None:
    source = await running(rig, "parent")
    orders = [order(rig), order(rig)]
    children = await rig.host.fork(source, orders)
    assert [one.sandbox_id for one in children] == [one.sandbox_id for one in orders]
    assert {one.status for one in children} == {S.RUNNING}
    again = await rig.host.fork(source, orders)
    assert [one.machine_id for one in again] == [one.machine_id for one in children]
    assert [await text(rig, one.sandbox_id) for one in orders] == ["parent", "parent"]
    identities = [(await rig.identity(one.sandbox_id)).sandbox_id for one in orders]
    assert identities == [one.sandbox_id for one in orders]
    assert (await rig.host.report()).snapshots == []
    assert (await rig.host.machine(source)).status is S.RUNNING


async def check_a_kill_leaves_nothing_and_may_be_repeated(rig: HostRig) -> None:
    awake, asleep = await running(rig), await running(rig)
    await rig.host.pause(asleep)
    for sandbox_id in (awake, asleep, awake, name()):
        await rig.host.kill(sandbox_id)
    assert (await rig.host.report()).machines == []
    with pytest.raises(NotFound):
        await rig.host.machine(awake)


async def check_what_is_unknown_is_not_found(rig: HostRig) -> None:
    calls: list[Callable[[str], Awaitable[object]]] = [rig.host.machine, rig.host.pause, rig.host.resume, rig.host.cold_boot, rig.host.guest]
    for call in calls:
        with pytest.raises(NotFound):
            await call(name())
    with pytest.raises(NotFound):
        await rig.host.snapshot(name(), name())
    with pytest.raises((NotFound, InvalidInput)):
        await rig.host.fork(name(), [order(rig)])


async def check_ends_are_pushed_with_their_reason(rig: HostRig) -> None:
    sandbox_id = await running(rig)
    changes = rig.host.changes()
    await rig.crash(sandbox_id)
    ended = None
    async for machine in changes:
        if machine.sandbox_id == sandbox_id and machine.status is S.ENDED:
            ended = machine
            break
    assert ended is not None and ended.end_reason is EndReason.VMM_CRASH and ended.end_note
    report = await reported(rig, sandbox_id)
    assert report is not None and (report.status, report.end_reason) == (S.ENDED, EndReason.VMM_CRASH)
    with pytest.raises(Denied) as caught:
        await rig.host.pause(sandbox_id)
    assert caught.value.reason is DenyReason.ENDED
    await rig.host.kill(sandbox_id)
    assert await reported(rig, sandbox_id) is None


async def check_orders_are_pushed_from_the_call_on(rig: HostRig) -> None:
    changes = rig.host.changes()
    sandbox_id = await running(rig)
    await rig.host.pause(sandbox_id)
    async for machine in changes:
        if machine.status is S.PAUSED:
            break


async def check_a_caller_that_leaves_changes_nothing(rig: HostRig) -> None:
    wanted = order(rig)
    changes = rig.host.changes()
    leaving = asyncio.ensure_future(rig.host.create(wanted))
    await asyncio.sleep(0)
    leaving.cancel()
    async for machine in changes:
        if machine.status is S.RUNNING:
            break
    assert (await rig.host.create(wanted)).machine_id == machine.machine_id


async def check_an_egress_is_taken_in_every_state(rig: HostRig) -> None:
    closed = Egress(allow=("8.8.8.8", "*.example.org"), deny=("0.0.0.0/0",))
    made = await rig.host.create(order(rig, egress=closed))
    await rig.host.set_egress(made.sandbox_id, Egress())
    await rig.host.pause(made.sandbox_id)
    await rig.host.set_egress(made.sandbox_id, closed)
    assert (await rig.host.resume(made.sandbox_id)).status is S.RUNNING
    with pytest.raises(NotFound):
        await rig.host.set_egress(name(), closed)


async def check_readings_are_of_running_machines(rig: HostRig) -> None:
    awake, asleep = await running(rig), await running(rig)
    await rig.host.pause(asleep)
    (reading,) = await rig.host.readings()
    assert reading.sandbox_id == awake and reading.memory_bytes > 0


async def check_capacity_and_templates(rig: HostRig) -> None:
    capacity = await rig.host.capacity()
    assert capacity.vcpus > 0 and 0 < capacity.free_memory_mib <= capacity.memory_mib and capacity.free_disk_bytes <= capacity.disk_bytes
    assert rig.source in {template.name for template in await rig.host.templates()}


CHECKS = [check for label, check in list(globals().items()) if label.startswith("check_")]
