"""Owners and machines that die: nothing acknowledged is lost, nothing is left over, and a command goes on as if nothing had been."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_world import agent_of, end, left, started
from vm_world import NewHome, open_engine, shell

from torpor.apps.engine import Engine
from torpor.host.agent import CreateSpec
from torpor.host.sandbox import Sandbox
from torpor.model.errors import NoSpace
from torpor.model.sandbox import EndReason, MachineState
from torpor.model.shapes import Shape
from torpor.ports.guest import Guest, StreamName

pytestmark = [pytest.mark.vm, pytest.mark.root]

SHAPE = Shape(1, 256, 1024)
HERE = Path(__file__).parent


async def output(guest: Guest, exec_id: str, end: bytes) -> bytes:
    """All a command has said on stdout since it began, once stderr has said `end`."""
    process = await guest.attach(exec_id)
    said = {StreamName.STDOUT: b"", StreamName.STDERR: b""}
    async for piece in process.output():
        assert piece.offset == len(said[piece.stream])
        said[piece.stream] += piece.data
        if end in said[StreamName.STDERR]:
            break
    process.detach()
    return said[StreamName.STDOUT]


@pytest.mark.parametrize("delay", [0.0, 0.15, 0.4])
async def test_a_killed_owner_loses_no_sandbox_and_no_byte(fresh_home: Path, delay: float) -> None:
    path = f"{HERE}:{os.environ.get('PYTHONPATH', '')}"
    owner = subprocess.Popen([sys.executable, HERE / "programs" / "owner.py", fresh_home], stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": path})
    assert owner.stdout is not None
    told = json.loads(await asyncio.to_thread(owner.stdout.readline))
    await asyncio.sleep(delay)  # into the middle of a snapshot, wherever that is
    owner.kill()
    owner.wait()
    owner.stdout.close()

    async with open_engine(fresh_home) as engine:
        states = {record.id: record.state for record in engine.agent.records()}
        assert states == {told["running"]: MachineState.READY, told["asleep"]: MachineState.PAUSED}
        wanted = b"".join(b"line %d\n" % number for number in range(1, 3001))
        assert await output(await engine.agent.guest(told["running"]), told["exec"], b"done\n") == wanted
        await engine.agent.resume(told["asleep"])
        assert await shell(await engine.agent.guest(told["asleep"]), "cat /dev/shm/memory /disk") == "kept\nkept\n"
    assert left(fresh_home) == {}


@pytest.mark.parametrize("before", ["moved", "noted"])
async def test_what_is_written_after_an_owner_died_in_a_change_of_disks_is_kept(fresh_home: Path, before: str) -> None:
    path = f"{HERE}:{os.environ.get('PYTHONPATH', '')}"
    argv = [sys.executable, HERE / "programs" / "mover.py", fresh_home, before]
    owner = await asyncio.to_thread(subprocess.run, argv, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": path}, text=True, check=False)
    assert owner.returncode == -signal.SIGKILL
    sandbox_id = owner.stdout.strip()
    async with open_engine(fresh_home) as engine:
        await shell(await engine.agent.guest(sandbox_id), "echo after > /after; sync")
        await engine.agent.pause(sandbox_id)
        await engine.agent.cold_boot(sandbox_id)  # from the disk alone
        assert await shell(await engine.agent.guest(sandbox_id), "cat /before /after") == "before\nafter\n"


async def test_a_killed_vmm_is_told_by_its_reason_and_the_disk_is_kept(engine: Engine) -> None:
    sandbox = await engine.agent.create(CreateSpec("minimal", SHAPE))
    await shell(await sandbox.guest(), "echo first > /file; sync")
    await engine.agent.pause(sandbox.id)
    await engine.agent.resume(sandbox.id)
    await shell(await sandbox.guest(), "echo second > /file; sync")
    await die(sandbox)
    assert (sandbox.record.state, sandbox.record.end_reason) == (MachineState.ENDED, EndReason.VMM_CRASH)
    await engine.agent.cold_boot(sandbox.id)
    assert await shell(await sandbox.guest(), "cat /file") == "second\n"


async def die(sandbox: Sandbox) -> None:
    """SIGKILL to its VMM; returns once the host has settled that."""
    machine = sandbox.machine
    assert machine is not None
    os.kill(int(machine.handle.fields["pid"]), signal.SIGKILL)
    async with sandbox._turn:
        await sandbox._turn.wait_for(lambda: sandbox.machine is None)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 700 MiB."""
    at = tmp_path / "small"
    at.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700m,mode=755", "torpor-test", at], check=True)
    yield at
    subprocess.run(["umount", "--lazy", at], check=True)  # the keeper may be about to end


async def test_pausing_into_a_full_disk_lets_the_sandbox_run_on(images_home: Path, small_disk: Path) -> None:
    (small_disk / "images").symlink_to(images_home / "images")
    async with open_engine(small_disk) as engine:
        sandbox = await engine.agent.create(CreateSpec("minimal", SHAPE))
        guest = await sandbox.guest()
        await shell(guest, "head -c 40000000 /dev/urandom > /dev/shm/big; sha256sum /dev/shm/big > /dev/shm/sum")
        filler = small_disk / "filler"
        with filler.open("wb") as file:
            free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
            os.posix_fallocate(file.fileno(), 0, free - (8 << 20))
        for attempt in (engine.agent.pause(sandbox.id), engine.agent.snapshot(sandbox.id, "named"), engine.agent.fork(sandbox.id, 2)):
            with pytest.raises(NoSpace) as refused:
                await attempt
            assert refused.value.message
            assert await shell(guest, "sha256sum -c --quiet /dev/shm/sum && echo fine") == "fine\n"
        assert list((small_disk / "staging").iterdir()) == []
        assert [record.state for record in engine.agent.records()] == [MachineState.READY]
        filler.unlink()
        await engine.agent.pause(sandbox.id)
        await engine.agent.resume(sandbox.id)
        assert await shell(await sandbox.guest(), "sha256sum -c --quiet /dev/shm/sum && echo fine") == "fine\n"


RUN = ("run", "--template", "minimal", "--memory", "256", "--disk", "1024", "--", "sh", "-c")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_a_run_beside_an_agent_goes_on_when_the_agent_ends(new_homes: NewHome, how: signal.Signals) -> None:
    """(h): neither touches the other's. The command says a line, the agent ends, the command says the rest: each line once."""
    home = new_homes()
    with agent_of(home) as agent, started(home, *RUN, "echo one; read line; echo two; read line; echo $line; exit 5") as run:
        assert run.stdout is not None
        assert run.stdin is not None
        assert await asyncio.to_thread(run.stdout.readline) == b"one\n"
        end(agent, how)
        run.stdin.write(b"next\n")
        run.stdin.flush()
        assert await asyncio.to_thread(run.stdout.readline) == b"two\n"
        out, _ = await asyncio.to_thread(run.communicate, b"last\n", 60)
        assert (run.returncode, out) == (5, b"last\n")
    assert left(home) == {}


async def test_two_runs_on_one_home_do_not_touch_each_other(new_homes: NewHome) -> None:
    home = new_homes()
    with started(home, *RUN, "echo first; read line; exit 1") as first:
        assert first.stdout is not None
        assert await asyncio.to_thread(first.stdout.readline) == b"first\n"
        with started(home, *RUN, "echo second; read line; echo $line; exit 2") as second:
            assert second.stdout is not None
            assert await asyncio.to_thread(second.stdout.readline) == b"second\n"
            await asyncio.to_thread(first.communicate, b"go\n", 60)
            out, _ = await asyncio.to_thread(second.communicate, b"go\n", 60)
            assert (first.returncode, second.returncode, out) == (1, 2, b"go\n")
    assert left(home) == {}


async def test_a_killed_client_leaves_no_sandbox(new_homes: NewHome) -> None:
    home = new_homes()
    with agent_of(home) as agent:
        with started(home, *RUN, "echo one; sleep 1000") as run:
            assert run.stdout is not None
            assert await asyncio.to_thread(run.stdout.readline) == b"one\n"
            end(run, signal.SIGKILL)
        with started(home, *RUN, "echo next") as run:
            assert await asyncio.to_thread(run.wait, 60) == 0
        assert end(agent) == 0
    assert left(home) == {}
