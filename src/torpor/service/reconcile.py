"""Records and hosts, brought to agree, both ways.

    record says          host says                 then
    running, paused      running, paused, ended    the record follows
    running, paused      nothing of it             the record ends: host_lost
    running, paused, ..  no answer for a while     missing; when the host answers again: what it says
    ended                anything                  the host's is removed
    nothing              anything                  the host's is removed after a grace (the records were lost)
    under way            nobody works at it        Operations.take_up
    past its deadline    whatever                  Operations.settle
    snapshot being made  nobody works at it        undone; one being removed: removed

A record is looked at before the host is asked and written only if it is still the same: whatever happened in between is for the next look.
A host tells of ends at once; the whole is compared at the start, when a host comes back, and every period.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from torpor.lifecycle.sandbox import FINAL, LIVE, TRANSIENT
from torpor.log import Log
from torpor.model.errors import HostUnavailable, TorporError
from torpor.model.records import Sandbox, SandboxState, Template, TemplateState
from torpor.ports.hosts import Host, Machine, MachineStatus, Report
from torpor.ports.records import SandboxFilter
from torpor.service import moves
from torpor.service.context import Context
from torpor.service.operations import Operations
from torpor.service.orders import Orders
from torpor.service.presence import Presence
from torpor.service.snapshots import abandon, is_worked_at, remove

log = Log()

S = SandboxState
_SAME = {S.RUNNING: MachineStatus.RUNNING, S.PAUSED: MachineStatus.PAUSED}


Learn = Callable[[], Awaitable[None]]


class Reconciler:
    """One of each process; any number at once do no harm."""

    def __init__(self, context: Context, orders: Orders, operations: Operations, presence: Presence, learn: Learn | None = None) -> None:
        """`learn`: records the templates that hosts have by now; called after each comparison."""
        self._context = context
        self._learn = learn
        self._orders = orders
        self._operations = operations
        self._presence = presence
        self._tasks: list[asyncio.Task[None]] = []
        self._followed: dict[str, asyncio.Task[None]] = {}
        self._silent_since: dict[str, float] = {}
        self._unknown_since: dict[str, float] = {}

    def start(self) -> None:
        self._tasks.append(asyncio.create_task(self._periodically(), name="reconcile"))

    async def close(self) -> None:
        tasks = [*self._tasks, *self._followed.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _periodically(self) -> None:
        while True:
            await self._context.sleep_until(self._context.now() + self._context.policy.reconcile_every)
            try:
                await self.run()
            except Exception as error:  # whatever it is, the next period compares again
                log.error("reconcile_failed", error=str(error), exc_info=None if isinstance(error, TorporError) else error)

    async def run(self) -> None:
        """One whole comparison."""
        if self._context.policy.embedded:
            await self._operations.take_up()
        online = {host.id: host for host in self._context.hosts.online()}
        for host in online.values():
            self._follow(host)
        await asyncio.gather(*(self._host(host) for host in online.values()))
        await self._absent(online)
        await self._templates()
        if self._learn is not None:
            await self._learn()

    # -- ends that hosts tell of -----------------------------------------------------------------------------------------------------

    def _follow(self, host: Host) -> None:
        task = self._followed.get(host.id)
        if task is None or task.done():
            self._followed[host.id] = asyncio.create_task(self._changes(host), name=f"changes-{host.id}")

    async def _changes(self, host: Host) -> None:
        try:
            async for machine in host.changes():
                try:
                    await self.look_at(machine.sandbox_id, machine)
                except TorporError as error:
                    log.error("change_not_followed", sandbox=machine.sandbox_id, error=str(error))
        except HostUnavailable:
            return  # the next period follows it again

    async def look_at(self, sandbox_id: str, told: Machine | None = None) -> Sandbox | None:
        """The record, corrected by what its host says now. `told`: what the host said of itself, whose reason counts when it has removed the sandbox since."""
        async with self._context.store.look() as records:
            before = await records.sandboxes.get(sandbox_id)
        if before is None or before.operation is not None or before.state in FINAL:
            return before
        seen = await self._orders.look(before)
        if not seen.known:
            return before
        machine = seen.machine
        if machine is None and told is not None and told.status is MachineStatus.ENDED:
            machine = told
        return await self._follow_machine(before, machine)

    async def _follow_machine(self, before: Sandbox, machine: Machine | None) -> Sandbox:
        if machine is not None and _SAME.get(before.state) is machine.status:
            return before
        after = moves.arrived(before, machine, self._context.now())
        if after is None:
            return before
        log.info("record_corrected", sandbox=before.id, before=before.state.value, after=after.state.value)
        if await self._operations.correct(before, after):
            return after
        async with self._context.store.look() as records:  # somebody else was first
            return await records.sandboxes.get(before.id) or before

    # -- the whole -------------------------------------------------------------------------------------------------------------------

    async def _host(self, host: Host) -> None:
        async with self._context.store.read() as records:
            before = {sandbox.id: sandbox for sandbox in await records.sandboxes.on_host(host.id)}
        report = await self._report(host)
        if report is None:
            await self._silent(host.id, before.values())
            return
        self._silent_since.pop(host.id, None)
        machines = {machine.sandbox_id: machine for machine in report.machines}
        for sandbox in before.values():
            if sandbox.operation is None:
                await self._follow_machine(sandbox, machines.get(sandbox.id))
        for sandbox_id in machines.keys() - before.keys():
            await self._stray(host, sandbox_id)
        await self._stray_snapshots(host, report)

    async def _report(self, host: Host) -> Report | None:
        try:
            return await self._context.ask(host.report())
        except HostUnavailable:
            return None

    async def _silent(self, host_id: str, sandboxes: Iterable[Sandbox]) -> None:
        now = self._context.now()
        if now - self._silent_since.setdefault(host_id, now) < self._context.policy.host_silence:
            return
        for sandbox in sandboxes:
            if sandbox.operation is None and sandbox.state is not S.MISSING:
                await self._operations.correct(sandbox, moves.missing(sandbox, now))

    async def _absent(self, online: dict[str, Host]) -> None:
        """Sandboxes on hosts that are not there at all."""
        cursor = ""
        while True:
            async with self._context.store.read() as records:
                page = await records.sandboxes.list(SandboxFilter(states=LIVE - TRANSIENT), cursor=cursor, limit=500)
            lost: dict[str, list[Sandbox]] = {}
            for sandbox in page.items:
                if sandbox.host_id not in online:
                    lost.setdefault(sandbox.host_id, []).append(sandbox)
            for host_id, sandboxes in lost.items():
                if not await self._presence.elsewhere(host_id):
                    await self._silent(host_id, sandboxes)
            if not page.next:
                return
            cursor = page.next

    async def _stray(self, host: Host, sandbox_id: str) -> None:
        """The host has it, no live record names it. The record is asked for again: it may have come since the report was asked for."""
        async with self._context.store.look() as records:
            sandbox = await records.sandboxes.get(sandbox_id)
        if sandbox is None:
            if not self._graced(sandbox_id):
                return
            log.error("unknown_sandbox_removed", host=host.id, sandbox=sandbox_id)
            await self._order(host.kill(sandbox_id))
        elif sandbox.state in FINAL:
            await self._operations.clear(sandbox)

    async def _stray_snapshots(self, host: Host, report: Report) -> None:
        for stored in report.snapshots:
            async with self._context.store.look() as records:
                template = await records.templates.get(stored.name)
            if template is None and self._graced(stored.artefact_id):
                log.error("unknown_snapshot_removed", host=host.id, artefact=stored.artefact_id)
                await self._order(host.delete_snapshot(stored.artefact_id))

    def _graced(self, name: str) -> bool:
        """Whether the grace of what no record names is over. It begins when it is first seen."""
        now = self._context.now()
        if name not in self._unknown_since:
            log.error("unknown_on_host", name=name, grace=self._context.policy.orphan_grace)
        return now - self._unknown_since.setdefault(name, now) >= self._context.policy.orphan_grace

    async def _order(self, asked: Awaitable[None]) -> None:
        try:
            await self._context.ask(asked, self._context.policy.clearing_patience)
        except TorporError as error:
            log.warning("not_removed_yet", error=str(error))

    async def _templates(self) -> None:
        """Snapshots that nobody works at any more are undone; what is to be removed is."""
        async with self._context.store.read() as records:
            unsettled = await records.templates.unsettled()
        for template in unsettled:
            if await self._presence.elsewhere(template.host_id):
                continue
            doomed = [template]
            if template.state is TemplateState.CREATING:
                doomed = await self._abandoned(template)
            for one in doomed:
                await remove(self._context, one)

    async def _abandoned(self, template: Template) -> list[Template]:
        async with self._context.store.write() as records:
            if await is_worked_at(records, template):
                return []
            return await abandon(records, template.id)
