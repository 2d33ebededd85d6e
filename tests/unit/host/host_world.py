"""A host agent on a fake VMM, fake guests and the real store and processes; and a way to stop it at any call of any port."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torpor.disk.store import LocalDisks
from torpor.durable.threads import Threads
from torpor.host.agent import CreateSpec, HostAgent
from torpor.host.context import Context, Policy
from torpor.host.home import Uids
from torpor.host.record import Records
from torpor.host.sandbox import Sandbox
from torpor.model.sandbox import NetworkMode
from torpor.model.shapes import Shape
from torpor.model.snapshots import ArtefactKind
from torpor.proc import LocalProcesses
from torpor.snapshot.store import LocalSnapshots
from torpor.testing.fake_guest import FakeGuest, FakeLink
from torpor.testing.fake_host import FakeImages, FakeNetworks
from torpor.testing.fake_vmm import FakeVmm

SHAPE = Shape(1, 256, 1024)
PORTS = ("vmm", "guests", "disks", "snapshots", "networks", "records")


class Steps:
    """Counts the calls of all ports once `armed`, and does `act` before the call number `at`."""

    def __init__(self) -> None:
        self.armed = False
        self.count = 0
        self.at = 0
        self.act: Callable[[str], None] = lambda _: None
        self.names: list[str] = []

    def arm(self, at: int, act: Callable[[str], None]) -> None:
        self.armed, self.count, self.at, self.act, self.names = True, 0, at, act, []

    def pass_by(self, name: str) -> None:
        if self.armed:
            self.count += 1
            self.names.append(name)
            if self.count == self.at:
                self.act(name)


class Stepped:
    """Any port object; what its methods return that is a port object too is stepped as well."""

    def __init__(self, inner: Any, name: str, steps: Steps) -> None:
        self._inner, self._name, self._steps = inner, name, steps

    def __getattr__(self, attribute: str) -> Any:
        value = getattr(self._inner, attribute)
        if not inspect.ismethod(value) or attribute in ("wait", "events", "console_tail"):
            return value
        name = f"{self._name}.{attribute}"
        if inspect.iscoroutinefunction(value):

            async def call_async(*args: Any, **named: Any) -> Any:
                self._steps.pass_by(name)
                return self._wrap(attribute, await value(*args, **named))

            return call_async

        def call(*args: Any, **named: Any) -> Any:
            self._steps.pass_by(name)
            return self._wrap(attribute, value(*args, **named))

        return call

    def _wrap(self, attribute: str, result: Any) -> Any:
        if attribute in ("launch", "adopt") and hasattr(result, "save_state"):
            return Stepped(result, "machine", self._steps)
        if attribute == "draft":
            return Stepped(result, "draft", self._steps)
        return Stepped(result, "guest", self._steps) if isinstance(result, FakeGuest) else result


@dataclass
class World:
    """One owner of a home."""

    home: Path
    agent: HostAgent
    vmm: FakeVmm
    link: FakeLink
    networks: FakeNetworks
    steps: Steps

    async def create(self, text: str, **fields: Any) -> Sandbox:
        sandbox = await self.agent.create(CreateSpec("tiny", SHAPE, NetworkMode.ON, **fields))
        await (await self.guest(sandbox.id)).remember(text)
        return sandbox

    async def guest(self, sandbox_id: str) -> Any:
        return await self.agent.guest(sandbox_id)

    async def text(self, sandbox_id: str) -> str:
        return str(await (await self.guest(sandbox_id)).text())

    async def clear(self) -> None:
        """Everything goes but the warm image."""
        await asyncio.gather(*(self.agent.kill(record.id) for record in self.agent.records()))
        for artefact in self.agent.context.snapshots.list(ArtefactKind.SNAPSHOT):
            await self.agent.context.snapshots.delete(artefact.id)
        self.agent._chores.noticed()  # type: ignore[union-attr]
        await self.agent.idle()

    def children(self) -> set[int]:
        return children(self.home)

    def check(self) -> None:
        """What there is on the machine is what the records say."""
        records = self.agent.records()
        context = self.agent.context
        running = [record.running for record in records if record.running is not None]
        assert len(self.children()) == len(running), (self.children(), records)
        assert self.networks.held() == {one.slot for one in running if one.slot}
        assert {path.name for path in (self.home / "sandboxes").iterdir()} == {record.id for record in records}
        for record in records:
            inside = {path.name for path in (self.home / "sandboxes" / record.id).iterdir() if path.is_dir()}
            assert inside == ({record.running.run_dir} if record.running else set())
        assert list((self.home / "staging").iterdir()) == []
        assert list((self.home / "run" / "boots").iterdir()) == []
        artefacts = context.snapshots.list()
        private = {artefact.id: artefact.owner for artefact in artefacts if artefact.kind is ArtefactKind.PAUSED}
        named = {record.artefact_id: record.id for record in records}
        assert set(private.items()) <= set(named.items()), "a private artefact that no record stands at"
        chains = [*context.snapshots.referenced_disks(), *(record.disk for record in records)]
        layers = {path.stem for path in (self.home / "store" / "disks").glob("*.qcow2")}
        assert layers == {layer for chain in chains for layer in chain.layers}
        memories = {path.stem for path in (self.home / "store" / "memory").glob("*.mem")}
        assert memories == {artefact.memory_id for artefact in artefacts} | {one.memory_id for one in running}


def children(home: Path) -> set[int]:
    """Fake VMMs of this home that live."""
    found = set()
    for entry in Path("/proc").iterdir():
        try:
            line = (entry / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError, NotADirectoryError):
            continue
        if b"fake_vmm_child" in line and os.fsencode(home) in line:
            found.add(int(entry.name))
    return found


@asynccontextmanager
async def opened(home: Path, **policy: Any) -> AsyncIterator[World]:
    processes = LocalProcesses(home)
    vmm, link, steps, networks = FakeVmm(processes), FakeLink(), Steps(), FakeNetworks(home)
    threads = Threads()
    ports = {
        "vmm": vmm,
        "guests": link,
        "disks": LocalDisks(home, threads),
        "snapshots": LocalSnapshots(home, threads),
        "networks": networks,
        "records": Records(home / "sandboxes"),
    }
    stepped: dict[str, Any] = {name: Stepped(port, name, steps) for name, port in ports.items()}
    context = Context(
        processes=processes, images=FakeImages(home), uids=Uids(home, enabled=False), scratch=home / "run" / "boots", policy=Policy(**policy), **stepped
    )
    agent = HostAgent(replace(context))
    try:
        await agent.open()
        yield World(home, agent, vmm, link, networks, steps)
        steps.armed = False
        await agent.close()
    finally:
        processes.close()
