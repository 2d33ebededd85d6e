"""The fake host against the same suite as the host desk, its faults, and the registry of one process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from torpor.hostlink.local import LocalHosts
from torpor.model.errors import HostUnavailable, VmmError
from torpor.model.shapes import Shape
from torpor.ports.hosts import MachineStatus
from torpor.testing.conformance import hosts as suite
from torpor.testing.fake_hosts import FakeHost, Fault, Trouble


class FakeRig:
    source, shape = "tiny", Shape(1, 256, 1024)

    def __init__(self) -> None:
        self.host = FakeHost()

    async def identity(self, sandbox_id: str) -> Any:
        return (await self.host.guest(sandbox_id)).identity

    async def crash(self, sandbox_id: str) -> None:
        self.host.die(sandbox_id)


@pytest.mark.parametrize("check", suite.CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
async def test_conformance(check: Callable[[Any], Awaitable[None]]) -> None:
    await check(FakeRig())


@pytest.mark.parametrize(
    ("trouble", "error", "status"),
    [
        (Trouble.UNREACHABLE, HostUnavailable, MachineStatus.RUNNING),
        (Trouble.LOST_REPLY, HostUnavailable, MachineStatus.PAUSED),
        (Trouble.REFUSED, VmmError, MachineStatus.RUNNING),
        (Trouble.ERROR_AFTER, VmmError, MachineStatus.PAUSED),
    ],
)
async def test_troubles(trouble: Trouble, error: type[Exception], status: MachineStatus) -> None:
    rig = FakeRig()
    sandbox_id = await suite.running(rig)
    rig.host.faults.append(Fault("pause", trouble))
    with pytest.raises(error):
        await rig.host.pause(sandbox_id)
    assert rig.host.statuses() == {sandbox_id: status}
    assert (await rig.host.pause(sandbox_id)).status is MachineStatus.PAUSED
    assert rig.host.effects.count(("pause", sandbox_id)) == 1


async def test_silence_and_holding() -> None:
    rig = FakeRig()
    sandbox_id = await suite.running(rig)
    rig.host.faults.append(Fault("pause", Trouble.SILENT))
    silent = asyncio.ensure_future(rig.host.pause(sandbox_id))
    rig.host.hold("pause")
    held = asyncio.ensure_future(rig.host.pause(sandbox_id))
    await asyncio.wait({silent, held}, timeout=0.01)
    assert not silent.done() and not held.done()
    rig.host.let_go("pause")
    assert (await held).status is MachineStatus.PAUSED
    silent.cancel()


async def test_the_registry_of_one_process() -> None:
    host = FakeHost("one")
    hosts = LocalHosts(host)
    assert hosts.get("one") is host and list(hosts.online()) == [host]
    hosts.remove("one")
    assert list(hosts.online()) == []
    with pytest.raises(HostUnavailable):
        hosts.get("one")
