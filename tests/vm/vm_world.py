"""What tests with real microVMs share: opening an engine on a home, and talking to a guest in as few words as a scenario needs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torpor.apps.engine import Engine
from torpor.apps.settings import Settings, resolve
from torpor.host.sandbox import Sandbox
from torpor.model.snapshots import ArtefactKind
from torpor.ports.guest import ExecSpec, Exited, Guest, GuestProcess, StreamName

TEMPLATES = ("base", "minimal")
NewHome = Callable[[], Path]


def settings(home: Path, **values: object) -> Settings:
    """The defaults of a home, whatever the developer's own environment says."""
    return resolve({"home": home, "network_pool": 0, "log_level": "warning", **values}, environment={})


async def build_images(home: Path) -> None:
    engine = Engine(settings(home))
    try:
        await engine.images.ensure(TEMPLATES, lambda *_: None)
    finally:
        engine.processes.close()


@contextlib.asynccontextmanager
async def open_engine(home: Path, *, keep: bool = False) -> AsyncIterator[Engine]:
    """The owner of a home; at the end nothing runs any more, and no sandbox or snapshot of the test is left, unless they are to be kept for the next owner."""
    engine = Engine(settings(home))
    engine.lock()
    async with engine:
        try:
            yield engine
        finally:
            if not keep:
                await clear(engine)


async def clear(engine: Engine) -> None:
    agent = engine.agent
    await asyncio.gather(*(agent.kill(record.id) for record in agent.records()))
    for artefact in agent.context.snapshots.list():
        if artefact.kind is not ArtefactKind.WARM:
            await agent.delete(artefact.id)
    await agent.idle()


def new_home(images_home: Path, at: Path) -> Path:
    """A home of its own with the images of another."""
    at.mkdir(parents=True)
    (at / "images").symlink_to(images_home / "images")
    return at


def remove_home(home: Path) -> None:
    """With what a test that failed has left running on it. The keeper, about to end, removes its socket itself: what is gone already is no error."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            if os.fsencode(home) in (process / "cmdline").read_bytes() and int(process.name) != os.getpid():
                os.kill(int(process.name), signal.SIGKILL)
    shutil.rmtree(home, ignore_errors=True)
    assert not home.exists()


@dataclass(frozen=True)
class Result:
    """A command's end and all it said."""

    exited: Exited
    out: str
    err: str

    @property
    def ok(self) -> bool:
        return self.exited.code == 0


async def collect(process: GuestProcess) -> Result:
    said = {StreamName.STDOUT: bytearray(), StreamName.STDERR: bytearray()}
    async for piece in process.output():
        said[piece.stream] += piece.data
    out, err = (said[name].decode(errors="replace") for name in (StreamName.STDOUT, StreamName.STDERR))
    return Result(await process.wait(), out, err)


async def run(guest: Guest, *argv: str, user: str = "", env: Mapping[str, str] | None = None, timeout: float | None = None) -> Result:
    """Runs a command to its end, however it ends."""
    process = await guest.exec(ExecSpec(argv, user=user, env=env or {}, timeout=timeout))
    result = await collect(process)
    await guest.forget(process.exec_id)
    return result


async def shell(guest: Guest, script: str, *, user: str = "root") -> str:
    """What a script printed. It must succeed."""
    result = await run(guest, "/bin/bash", "-euc", script, user=user)
    assert result.ok, f"{script!r}: {result}"
    return result.out


async def python(guest: Guest, program: str, *arguments: str, user: str = "root") -> str:
    result = await run(guest, "python3", "-c", program, *arguments, user=user)
    assert result.ok, f"{result}"
    return result.out


async def start(guest: Guest, argv: Sequence[str], *, user: str = "root", tag: str = "") -> GuestProcess:
    """A command that runs on by itself, nobody reading."""
    return await guest.exec(ExecSpec(argv, user=user, tag=tag))


async def read(guest: Guest, path: str) -> bytes:
    return b"".join([piece async for piece in guest.read_file(path)])


async def gone(sandbox: Sandbox) -> None:
    """Returns once the host has settled that the sandbox's machine is no more."""
    async with sandbox._turn:
        await sandbox._turn.wait_for(lambda: sandbox.machine is None)


async def kill_vmm(sandbox: Sandbox) -> None:
    """SIGKILL to the VMM, and the host knows."""
    assert sandbox.machine is not None
    os.kill(sandbox.machine.region.pid, signal.SIGKILL)
    await gone(sandbox)
