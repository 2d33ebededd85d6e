"""The packages that are published for the code interpreter, unmodified, on its real service and the real server, whose sandboxes are processes of this machine.
In microVMs, with pauses and TLS: tests/vm/test_vm_interpreter_sdks.py."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from e2b_sdk_world import addresses
from interpreter_sdk_world import WRENN_VERSIONS, drive_node, drive_wrenn
from plane_world import AgentHost, Plane, open_plane

sys.path.append(str(Path(__file__).parents[1] / "unit" / "interpreter"))

from interpreter_world import Service, running

from torpor.ports.hosts import HostTemplate, Machine, Order
from torpor.testing.fake_hosts import FakeHost

NAMES = ("base", "code-interpreter-v1", "code-runner-beta")


class Elsewhere:
    """A guest some of whose ports are others here."""

    def __init__(self, guest: Any, ports: dict[int, int]) -> None:
        self._guest = guest
        self._ports = ports

    def __getattr__(self, name: str) -> Any:
        return getattr(self._guest, name)

    async def connect(self, port: int, *more: Any, **how: Any) -> Any:
        return await self._guest.connect(self._ports.get(port, port), *more, **how)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    (tmp_path / "service").mkdir()
    with running(tmp_path / "service") as service:
        yield service


@pytest.fixture
async def plane(tmp_path: Path, service: Service, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Plane]:
    """Every sandbox has that service on its ports."""
    guest_of = AgentHost.guest

    async def templates(self: AgentHost) -> Sequence[HostTemplate]:
        return [HostTemplate(name, "root", str(self._home), 1 << 20) for name in NAMES]

    async def create(self: AgentHost, order: Order) -> Machine:
        return await FakeHost.create(self, replace(order, source="tiny"))

    async def guest(self: AgentHost, sandbox_id: str) -> Any:
        return Elsewhere(await guest_of(self, sandbox_id), {49999: service.port, 8888: service.jupyter_port})

    for replaced in (templates, create, guest):
        monkeypatch.setattr(AgentHost, replaced.__name__, replaced)
    (tmp_path / "plane").mkdir()
    async with open_plane(tmp_path / "plane") as plane:
        yield plane


async def test_the_npm_package(plane: Plane, service: Service) -> None:
    assert plane.wired.first is not None
    home = str(service.generation.parent / "home")
    await drive_node(addresses(plane.url, plane.wired.first.e2b_key), home, "cells", "contexts", "errors", "charts", "streaming")


@pytest.mark.parametrize("version", WRENN_VERSIONS)
async def test_the_code_runner_of_wrenn(plane: Plane, service: Service, version: str) -> None:
    home = str(service.generation.parent / "home")
    await drive_wrenn(version, plane.url, plane.key, home, "cells", "errors", "results", "streaming", "asynchronous")
