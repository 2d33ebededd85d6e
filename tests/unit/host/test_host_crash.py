"""The owner of a home is killed before every single call that an operation makes: the next owner finds what was acknowledged, and nothing else."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from host_world import SHAPE, World, opened

from torpor.host.agent import CreateSpec
from torpor.model.sandbox import MachineState

Operation = Callable[[World, str], Awaitable[object]]


async def _rollback(world: World, sandbox_id: str) -> None:
    (snapshot,) = world.agent.context.snapshots.list(owner="first")
    await world.agent.rollback(sandbox_id, snapshot.id)


async def _end(world: World, sandbox_id: str) -> None:
    await world.agent.close()


OPERATIONS: dict[str, tuple[Operation, set[str], set[MachineState | None]]] = {
    "create": (lambda world, _: world.agent.create(CreateSpec("tiny", SHAPE)), {"second"}, {MachineState.READY}),
    "pause": (lambda world, name: world.agent.pause(name), {"second"}, {MachineState.READY, MachineState.PAUSED}),
    "resume": (lambda world, name: world.agent.resume(name), {"second"}, {MachineState.READY, MachineState.PAUSED}),
    "snapshot": (lambda world, name: world.agent.snapshot(name, "later"), {"second"}, {MachineState.READY}),
    "fork": (lambda world, name: world.agent.fork(name, 2), {"second"}, {MachineState.READY}),
    "rollback": (_rollback, {"second", "first"}, {MachineState.READY, MachineState.PAUSED}),
    "cold_boot": (lambda world, name: world.agent.cold_boot(name), {"second", ""}, {MachineState.READY, MachineState.PAUSED}),
    "kill": (lambda world, name: world.agent.kill(name), {"second"}, {MachineState.READY, None}),
    "close": (_end, {"second"}, {MachineState.READY}),
}
PAUSED_BEFORE = {"resume", "cold_boot"}


async def _live_and_die(home: Path, operation: str, at: int, note: int) -> None:
    """In a process of its own: makes a sandbox, and is killed at call `at` of the operation, unless that has ended before."""
    async with opened(home) as world:
        sandbox = await world.create("first")
        await world.agent.snapshot(sandbox.id, "first")
        await (await world.guest(sandbox.id)).remember("second")
        if operation in PAUSED_BEFORE:
            await world.agent.pause(sandbox.id)
            await sandbox._gone_before()
        await world.agent.idle()
        os.write(note, sandbox.id.encode())

        def die(name: str) -> None:
            os.write(note, name.encode())
            os.kill(os.getpid(), signal.SIGKILL)

        world.steps.arm(at, die)
        await OPERATIONS[operation][0](world, sandbox.id)
        os._exit(0)


def _fork_and_crash(home: Path, operation: str, at: int) -> tuple[bool, str, str]:
    """(whether the operation had ended, the sandbox's id, the call before which the owner was killed)."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            asyncio.run(_live_and_die(home, operation, at, write))
        except BaseException:
            os.write(write, traceback.format_exc().encode())
        finally:
            os._exit(77)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        note = file.read().decode()
    _, status = os.waitpid(pid, 0)
    assert status in (0, signal.SIGKILL), f"{operation} at {at}: {status}, {note}"
    return status == 0, note[:25], note[25:]


async def _look(home: Path, operation: str, sandbox_id: str) -> None:
    _, texts, states = OPERATIONS[operation]
    async with opened(home) as world:
        await world.agent.idle()
        world.check()
        found = {record.id: record for record in world.agent.records()}
        record = found.get(sandbox_id)
        assert (record.state if record else None) in states, record
        if record is not None:
            await world.agent.resume(sandbox_id)
            assert await world.text(sandbox_id) in texts
            world.check()
        for other in set(found) - {sandbox_id}:
            assert await world.text(other) in {"", "second"}
        for name in {"first", "later"} - ({"later"} if operation != "snapshot" else set()):
            for snapshot in world.agent.context.snapshots.list(owner=name):
                copy = await world.agent.create(CreateSpec(snapshot.id, SHAPE))
                assert await world.text(copy.id) == {"first": "first", "later": "second"}[name]
        await world.clear()
        world.check()


@pytest.mark.parametrize("stride", [6, pytest.param(1, marks=pytest.mark.soak)])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_owner_killed_at_any_call(home: Path, operation: str, stride: int) -> None:
    """Before every call in a soak, before every sixth otherwise."""
    at = 1 - stride
    while True:
        at += stride
        ended, sandbox_id, name = _fork_and_crash(home, operation, at)
        try:
            asyncio.run(_look(home, operation, sandbox_id))
        except BaseException as error:
            error.add_note(json.dumps({"operation": operation, "killed before call": at, "which is": name}))
            raise
        if ended:
            break
    assert at > 1 or stride > 1
