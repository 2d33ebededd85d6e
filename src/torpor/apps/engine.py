"""The engine of one home, wired: the Python API of everything below the control plane.

engine = Engine(settings)
engine.lock()
async with engine:
    sandbox = await engine.agent.create(CreateSpec("base"))
    guest = await sandbox.guest()
    process = await guest.exec(ExecSpec(["python3", "-c", "print(6*7)"]))
"""

from __future__ import annotations

import ipaddress
import os
from contextlib import AsyncExitStack

from torpor.apps.settings import Settings
from torpor.disk.store import LocalDisks
from torpor.durable.threads import Threads
from torpor.guestlink.link import Link
from torpor.host.agent import HostAgent
from torpor.host.context import Context, Policy
from torpor.host.home import HomeLock, Uids
from torpor.host.record import Records
from torpor.images.local import LocalImages
from torpor.model.errors import InternalError
from torpor.net.plan import NetworkSettings
from torpor.net.pool import SlotPool
from torpor.ports.images import Progress
from torpor.proc.processes import LocalProcesses
from torpor.snapshot.store import LocalSnapshots
from torpor.vmm.qemu.driver import QemuVmm


class Engine:
    """Entered as a context by the holder of the home's lock: recovers, serves, and on leaving lets go of what runs. Before that, only `images`,
    `processes`, `vmm`
    and `networks` are of use, for looking."""

    def __init__(self, settings: Settings, *, pool_size: int = 0) -> None:
        home = settings.home
        self.settings = settings
        self._pool_size = pool_size
        self._lock = HomeLock(home)
        self._threads = Threads()
        self._exit = AsyncExitStack()
        self._agent: HostAgent | None = None
        self.processes = LocalProcesses(home)
        self.vmm = QemuVmm(self.processes, home)
        self.images = LocalImages(home, self.processes, debian_mirror=settings.debian_mirror, host_ca=settings.host_ca)
        self.networks = SlotPool(home, home / "run" / "netns", self.processes, _network(settings))

    @property
    def agent(self) -> HostAgent:
        if self._agent is None:
            raise InternalError("The engine is not open.")
        return self._agent

    def lock(self) -> None:
        """Becomes the owner of the home. Raises HomeBusy, NoPermission."""
        self._lock.acquire()

    def unlock(self) -> None:
        self._lock.release()

    async def ensure(self, template: str, progress: Progress) -> None:
        """Builds the template and what it boots with, if this version knows how and they are missing. A name it does not know is left to the create
        that follows."""
        if template in self.images.buildable():
            await self.images.ensure([template], progress)

    async def __aenter__(self) -> Engine:
        home = self.settings.home
        async with AsyncExitStack() as undo:
            undo.callback(self.unlock)
            undo.callback(self.processes.close)
            context = Context(
                processes=self.processes,
                vmm=self.vmm,
                guests=Link(),
                disks=LocalDisks(home, self._threads),
                snapshots=LocalSnapshots(home, self._threads),
                networks=self.networks,
                images=self.images,
                records=Records(home / "sandboxes"),
                uids=Uids(home, enabled=os.geteuid() == 0),
                scratch=home / "run" / "boots",
                policy=self._policy(),
            )
            self._agent = HostAgent(context)
            await self._agent.open()
            undo.push_async_callback(self._agent.close)
            self._exit = undo.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._exit.aclose()
        self._agent = None

    def _policy(self) -> Policy:
        settings = self.settings
        return Policy(
            boot_timeout=settings.boot_timeout,
            warm_budget=settings.warm_budget_mib << 20,
            pool_size=self._pool_size,
            pool_memory=settings.pool_memory_mib << 20,
            cache_strict=settings.disk_sync == "strict",
        )


def _network(settings: Settings) -> NetworkSettings:
    transfer = ipaddress.IPv4Network(settings.network_range) if settings.network_range else None
    return NetworkSettings(pool=settings.network_pool, transfer=transfer)
