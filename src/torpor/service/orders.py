"""What each kind of operation asks of a host. Every order may be given again: the host does it once and answers the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torpor.log import Log
from torpor.model.errors import GuestError, HostUnavailable, NotFound
from torpor.model.records import DISK_ONLY, Operation, OperationKind, Sandbox, SandboxState, Template
from torpor.ports.hosts import Host, Machine, Order, Stored
from torpor.service.context import Context

log = Log()

K = OperationKind


@dataclass(frozen=True, slots=True)
class Arrivals:
    """What a host made of an operation: machines by sandbox id, None for one that is not there; the snapshot of one."""

    machines: Mapping[str, Machine | None] = field(default_factory=dict)
    stored: Stored | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """What a host says of one sandbox: its machine, or None when it has none. `known` False: it says nothing."""

    machine: Machine | None = None
    known: bool = True


class Orders:
    def __init__(self, context: Context) -> None:
        self._context = context

    async def give(self, host: Host, sandbox: Sandbox, operation: Operation) -> Arrivals:
        """Raises what the host raises, and NotFound when what the operation is about is gone."""
        match operation.kind:
            case K.CREATE:
                machine = await host.create(_order(sandbox, operation, (await self._template(sandbox.template_id)).source))
            case K.PAUSE:
                if operation.target == DISK_ONLY:
                    await self._settle_disk(host, sandbox)
                machine = await host.pause(sandbox.id)
            case K.RESUME:
                machine = await host.resume(sandbox.id)
            case K.COLD_BOOT:
                machine = await host.cold_boot(sandbox.id)
            case K.ROLLBACK:
                machine = await host.rollback(sandbox.id, (await self._template(operation.target)).source)
            case K.SNAPSHOT:
                return await self._snapshot(host, sandbox, operation)
            case K.FORK:
                return await self._fork(host, sandbox, operation)
            case K.KILL:
                await host.kill(sandbox.id)
                return Arrivals({sandbox.id: None})
        return Arrivals({sandbox.id: machine})

    async def _settle_disk(self, host: Host, sandbox: Sandbox) -> None:
        """What the guest has written is on its disk, which alone is kept. One that does not answer is paused all the same: its file system has a journal."""
        try:
            guest = await host.guest(sandbox.id)
            await self._context.ask(guest.sync(), self._context.policy.clearing_patience)
        except (GuestError, HostUnavailable, NotFound) as error:
            log.warning("disk_not_settled", sandbox=sandbox.id, error=str(error))

    async def look(self, sandbox: Sandbox) -> Seen:
        """What its host says of it now, within the policy's patience. Raises nothing."""
        try:
            return Seen(await self._context.ask(self._context.hosts.get(sandbox.host_id).machine(sandbox.id)))
        except NotFound:
            return Seen()
        except HostUnavailable:
            return Seen(known=False)

    async def children(self, source: Sandbox, operation: Operation) -> Sequence[Sandbox]:
        """Of a fork under way: those that nobody has killed meanwhile."""
        async with self._context.store.read() as records:
            found = await records.sandboxes.on_host(source.host_id)
        return [one for one in found if one.id != source.id and one.operation is not None and one.operation.id == operation.id]

    async def _snapshot(self, host: Host, sandbox: Sandbox, operation: Operation) -> Arrivals:
        if operation.leads_to is SandboxState.PAUSED:
            await host.pause(sandbox.id)
        stored = await host.snapshot(sandbox.id, operation.target)
        return Arrivals({sandbox.id: await host.machine(sandbox.id)}, stored)

    async def _fork(self, host: Host, sandbox: Sandbox, operation: Operation) -> Arrivals:
        children = await self.children(sandbox, operation)
        machines = await host.fork(sandbox.id, [_order(child, operation, "") for child in children]) if children else ()
        return Arrivals({machine.sandbox_id: machine for machine in machines} | {sandbox.id: await host.machine(sandbox.id)})

    async def _template(self, template_id: str) -> Template:
        async with self._context.store.read() as records:
            template = await records.templates.get(template_id)
        if template is None:
            raise NotFound(f"The template {template_id} is gone.")
        return template


def _order(sandbox: Sandbox, operation: Operation, source: str) -> Order:
    return Order(sandbox.id, operation.id, source, sandbox.shape, sandbox.network, names=dict(sandbox.env), egress=sandbox.egress)
