"""Hosts of other processes: each control plane on a shared store tells there that its own hosts live, and performs what others began on them.

    here                                             there (another process, with the host)
    intent on record, notice on the bus  -------->   Operations.take
    waits for the record's next notice   <--------   end on record, notice on the bus

What the bus lost is found by the next comparison (Reconciler.run). Whether a host lives is told by a value that changes; when it did is measured by this
process's own clock, so clocks of machines need not agree.
"""

from __future__ import annotations

import asyncio

from torpor.log import Log
from torpor.model.errors import TorporError
from torpor.ports.bus import Notice
from torpor.service.context import Context
from torpor.service.operations import Operations

log = Log()


class Presence:
    """One of each process; without work where it is the only one on its store."""

    def __init__(self, context: Context, operations: Operations) -> None:
        self._context = context
        self._operations = operations
        self._tasks: list[asyncio.Task[None]] = []
        self._beats = 0
        self._seen: dict[str, tuple[str | None, float]] = {}

    async def open(self) -> None:
        """Its hosts count as alive from here on."""
        policy = self._context.policy
        if policy.sole or not policy.embedded:
            return
        await self.beat()
        self._tasks = [asyncio.create_task(self._beat_on(), name="presence"), asyncio.create_task(self._listen(), name="handed-over")]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def elsewhere(self, host_id: str) -> bool:
        """Whether a host is another process's, which lives. One that is seen for the first time counts as alive until it has had the time to tell."""
        if self._context.policy.sole or self._context.has(host_id):
            return False
        async with self._context.store.look() as records:
            told = await records.memory.value(_name(host_id))
        now = self._context.now()
        value, since = self._seen.get(host_id, (None, 0.0))
        if host_id not in self._seen or told != value:
            self._seen[host_id] = told, now
            return True
        return now - since < self._context.policy.host_silence

    async def beat(self) -> None:
        """Tells that the hosts of this process live."""
        self._beats += 1
        value = f"{self._context.now():.3f} {self._beats}"
        async with self._context.store.write() as records:
            for host in self._context.hosts.online():
                await records.memory.set_value(_name(host.id), value)

    async def _beat_on(self) -> None:
        while True:
            await self._context.sleep_until(self._context.now() + self._context.policy.beat_every)
            try:
                await self.beat()
            except TorporError as error:
                log.warning("presence_not_told", error=str(error))

    async def _listen(self) -> None:
        """What does not succeed here, because the database is away, the next comparison does."""
        async with self._context.bus.subscribe("sandbox") as notices:
            async for notice in notices:
                try:
                    await self._heard(notice)
                except TorporError as error:
                    log.warning("notice_not_followed", sandbox=notice.subject, error=str(error))

    async def _heard(self, notice: Notice) -> None:
        if notice.topic == "lost":
            await self._operations.take_up()
            return
        async with self._context.store.look() as records:
            sandbox = await records.sandboxes.get(notice.subject)
        if sandbox is not None:
            await self._operations.take(sandbox)


def _name(host_id: str) -> str:
    return f"host {host_id} lives"
