"""Clones differ, before any user code runs: kernel randomness, uuid, machine-id, host name, sandbox id, generation; and their clocks are right."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from vm_world import python, read, shell

from torpor.apps.engine import Engine
from torpor.host.agent import CreateSpec
from torpor.host.sandbox import Sandbox
from torpor.model.shapes import Shape
from torpor.ports.guest import ExecSpec, Guest

pytestmark = [pytest.mark.vm, pytest.mark.root]

LOG = "/dev/shm/watched"
FIRST_ACT = """#!/bin/sh
printf '%s %s ' "$TORPOR_GENERATION" "$(cat /run/torpor/sandbox-id)" >> /run/hooked
cat /proc/sys/kernel/random/uuid >> /run/hooked
"""
ABOUT = """
import json, os, socket, time, uuid
def text(path):
    with open(path) as file:
        return file.read().strip()
print(json.dumps({
    "random": os.urandom(16).hex(), "uuid": text("/proc/sys/kernel/random/uuid"), "uuid4": str(uuid.uuid4()), "boot": text("/run/torpor/generation"),
    "machine": text("/etc/machine-id"), "host": socket.gethostname(), "hosts": text("/etc/hostname"), "sandbox": text("/run/torpor/sandbox-id"),
    "hooked": text("/run/hooked"), "clock": time.time()}))
"""


async def about(guest: Guest) -> dict[str, str]:
    """What the guest says of itself. Its clock must lie within the half second before or after the question and the answer."""
    asked = time.time()
    answer = json.loads(await python(guest, ABOUT))
    assert asked - 0.5 <= answer.pop("clock") <= time.time() + 0.5
    return dict(answer)


@dataclass(frozen=True)
class Line:
    monotonic: float
    generation: int
    clock: float
    random: str
    host: str
    sandbox: str


@dataclass(frozen=True)
class Watched:
    """A sandbox and the command in it that logs its identity."""

    sandbox: Sandbox
    exec_id: str


async def watched(guest: Guest, exec_id: str) -> list[Line]:
    """The watcher's lines, once it has ended: forty lines into the generation that it woke in."""
    await (await guest.attach(exec_id)).wait()
    raw = (await read(guest, LOG)).decode().splitlines()
    return [Line(float(m), int(g), float(c), r, h, s) for m, g, c, r, h, s in (line.split() for line in raw)]


@pytest.fixture
async def watching(engine: Engine) -> Watched:
    """With a wake hook, and a program that logs its identity every 2 ms and has begun."""
    sandbox = await engine.agent.create(CreateSpec("base", Shape(1, 256, 4096)))
    guest = await sandbox.guest()
    await guest.write_file("/etc/torpor/wake.d/first", FIRST_ACT.encode(), mode=0o755, user="root")
    await guest.write_file("/root/watcher.py", (Path(__file__).parent / "programs" / "watcher.py").read_bytes(), user="root")
    process = await guest.exec(ExecSpec(["python3", "/root/watcher.py", LOG], user="root"))
    async for piece in process.output():
        if b"ready" in piece.data:
            break
    return Watched(sandbox, process.exec_id)


async def test_ten_clones_differ_before_any_user_code_runs(engine: Engine, watching: Watched) -> None:
    parent = watching.sandbox
    before = (await parent.guest()).generation
    children = await engine.agent.fork(parent.id, 10)
    guests = [await child.guest() for child in children]
    told = await asyncio.gather(*(about(guest) for guest in guests))
    for what in ("random", "uuid", "uuid4", "machine", "host", "hosts", "sandbox", "hooked"):
        assert len({answer[what] for answer in told}) == len(children), what
    for child, guest, answer in zip(children, guests, told, strict=True):
        assert answer["sandbox"] == child.id
        assert int(answer["boot"]) == guest.generation > before
        last_act = answer["hooked"].splitlines()[-1].split()
        assert last_act[:2] == [str(guest.generation), child.id]

    logs = await asyncio.gather(*(watched(guest, watching.exec_id) for guest in guests))
    fresh = []
    for child, guest, lines in zip(children, guests, logs, strict=True):
        old = [line for line in lines if line.generation <= before]
        new = lines[len(old) :]
        assert all(line.generation == guest.generation and line.sandbox == child.id for line in new[1:])
        assert len({line.host for line in new[1:]}) == 1
        assert all(later.clock >= earlier.clock for earlier, later in itertools.pairwise(lines))
        fresh += [line.random for line in new]
    assert len(set(fresh)) == len(fresh)
    inherited = {line.random for line in logs[0] if line.generation <= before}
    assert not inherited & set(fresh)


async def test_a_program_that_slept_sees_the_right_clock_from_its_first_step_on(engine: Engine, watching: Watched) -> None:
    """The host says that an hour has passed. At most the step that the pause fell into has taken the generation before it and the clock after it."""
    sandbox = watching.sandbox
    old = (await sandbox.guest()).generation
    await engine.agent.pause(sandbox.id)
    slept = time.time()
    object.__setattr__(engine.agent.context, "now", lambda: time.time() + 3600)
    await engine.agent.resume(sandbox.id)
    guest = await sandbox.guest()
    lines = await watched(guest, watching.exec_id)
    assert {line.generation for line in lines} == {old, guest.generation}
    assert all(line.clock >= slept + 3599.5 for line in lines if line.generation > old)
    assert len([line for line in lines if line.generation == old and line.clock > slept + 0.5]) <= 1


async def test_identity_stays_over_a_pause_and_names_reach_the_guest(engine: Engine) -> None:
    sandbox = await engine.agent.create(CreateSpec("minimal", Shape(1, 256, 1024), hostname="builder", names={"TEAM": "blue"}))
    tell = "hostname; cat /etc/machine-id /run/torpor/sandbox-id /run/torpor/names; getent hosts builder"
    first = await shell(await sandbox.guest(), tell)
    assert first.splitlines()[0] == "builder"
    assert "TEAM=blue" in first and "127.0.1.1" in first
    await engine.agent.pause(sandbox.id)
    await engine.agent.resume(sandbox.id)
    assert await shell(await sandbox.guest(), tell) == first


async def test_a_hook_that_fails_does_not_hold_the_sandbox_back(engine: Engine) -> None:
    """Whoever is root inside may write nonsense there; the host must still get at the files."""
    sandbox = await engine.agent.create(CreateSpec("minimal", Shape(1, 256, 1024)))
    await (await sandbox.guest()).write_file("/etc/torpor/wake.d/broken", b"#!/bin/sh\nexit 7\n", mode=0o755)
    await engine.agent.pause(sandbox.id)
    await engine.agent.resume(sandbox.id)
    assert await shell(await sandbox.guest(), "cat /run/torpor/generation") == f"{(await sandbox.guest()).generation}\n"
