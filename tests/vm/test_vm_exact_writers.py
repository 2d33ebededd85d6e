"""Nothing that a guest had acknowledged is lost, whatever pauses and resumes it: programs write through every pause, and check from inside."""

from __future__ import annotations

import pytest
from vm_world import kill_vmm
from writers import install, start_writers, state_at_wake, verify

from torpor.apps.engine import Engine
from torpor.host.agent import CreateSpec
from torpor.model.sandbox import MachineState, NetworkMode
from torpor.model.shapes import Shape

pytestmark = [pytest.mark.vm, pytest.mark.root]

SMALL, LARGE = Shape(1, 512, 4096), Shape(4, 4096, 4096)
SOAK = [
    pytest.param(Shape(vcpus, memory, 4096), 20, marks=pytest.mark.soak, id=f"{vcpus}-vcpus-{memory}-mib-20-rounds")
    for vcpus in (1, 4)
    for memory in (512, 4096)
]


@pytest.mark.parametrize(("shape", "rounds"), [pytest.param(SMALL, 3, id="small"), pytest.param(LARGE, 2, id="large"), *SOAK])
async def test_writers_run_through_pauses(engine: Engine, shape: Shape, rounds: int) -> None:
    sandbox = await engine.agent.create(CreateSpec("base", shape, NetworkMode.ON))
    guest = await sandbox.guest()
    await install(guest)
    await start_writers(guest)
    before = await verify(guest)
    for _ in range(rounds):
        artefact = await engine.agent.pause(sandbox.id)
        assert artefact.exact_freeze
        await engine.agent.resume(sandbox.id)
        after = await verify(await sandbox.guest())
        assert all(after[kind] > before[kind] for kind in before)
        before = after


async def test_one_artefact_is_the_same_at_every_resume(engine: Engine) -> None:
    """Resumed; again after a SIGKILL of the VMM; rolled back to while running; and after the host has re-based and merged what it stores."""
    sandbox = await engine.agent.create(CreateSpec("base", SMALL))
    guest = await sandbox.guest()
    await install(guest, hook=True)
    await start_writers(guest)
    await verify(guest)
    artefact = await engine.agent.pause(sandbox.id)

    await engine.agent.resume(sandbox.id)
    guest = await sandbox.guest()
    first = await state_at_wake(guest)
    await verify(guest, steps=100)
    await kill_vmm(sandbox)
    assert sandbox.record.state is MachineState.ENDED

    await engine.agent.resume(sandbox.id)
    guest = await sandbox.guest()
    assert await state_at_wake(guest) == first
    await verify(guest, steps=100)
    await engine.agent.idle()

    await engine.agent.rollback(sandbox.id, artefact.id)
    guest = await sandbox.guest()
    assert await state_at_wake(guest) == first
    await verify(guest)

    later = await engine.agent.pause(sandbox.id)
    await engine.agent.resume(sandbox.id)
    assert later.id != artefact.id
    assert await state_at_wake(await sandbox.guest()) != first
