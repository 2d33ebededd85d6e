"""The use cases of sandboxes. What a caller may do at all (scopes) was demanded at the edge; here a team sees its own sandboxes and nobody else's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from torpor.lifecycle.sandbox import FINAL, demand_running, demand_settled
from torpor.model.errors import Conflict, Denied, DenyReason, Forbidden, GuestLost, HostUnavailable, InvalidInput, NotFound
from torpor.model.records import (
    DISK_ONLY,
    PLATFORM_TEAM,
    Chore,
    ChoreKind,
    Exposure,
    Operation,
    OperationKind,
    Remembered,
    Reserved,
    Sandbox,
    SandboxState,
    Template,
    TemplateKind,
    TemplateState,
    Terms,
    TimeoutAction,
)
from torpor.model.sandbox import Egress, NetworkMode
from torpor.model.shapes import Shape
from torpor.ports.guest import Guest
from torpor.ports.records import Page, Records, SandboxFilter
from torpor.service import moves
from torpor.service.activity import Activity
from torpor.service.admission import HOLD, Admission, Room
from torpor.service.caller import Caller
from torpor.service.context import Context
from torpor.service.intents import Prepare, Wish
from torpor.service.moves import Because
from torpor.service.operations import Operations, Started
from torpor.service.reconcile import Reconciler
from torpor.service.snapshots import NewSnapshot, check_template_name, may_see
from torpor.service.surroundings import marks

__all__ = ["CreateRequest", "Sandboxes", "Started"]

S = SandboxState
K = OperationKind
_TRIES = 50
_WAKE_PATIENCE = 120.0
"""Seconds that a request waits for the sandbox it wakes."""


@dataclass(frozen=True, slots=True)
class CreateRequest:
    """What a new sandbox is to be. `template`: a name of the team's or the platform's, or an id. `deadline` is absolute, `idle_timeout` seconds (0: none).
    `network_where_possible`: with a network on a host that has any, else without."""

    template: str
    vcpus: int = 1
    memory_mib: int = 512
    disk_mib: int = 4096
    network: NetworkMode = NetworkMode.OFF
    idle_timeout: float = 0.0
    deadline: float | None = None
    on_timeout: TimeoutAction = TimeoutAction.PAUSE
    auto_resume: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    dialect: str = "native"
    exposure: Exposure = field(default_factory=Exposure)
    egress: Egress = field(default_factory=Egress)
    terms: Terms = field(default_factory=Terms)
    network_where_possible: bool = False


class Sandboxes:
    """Every change returns as soon as the intent is on record; `settled` waits for its end. Unknown ids and other teams' are the same NotFound."""

    def __init__(self, context: Context, operations: Operations, admission: Admission, reconciler: Reconciler, activity: Activity) -> None:
        self._context = context
        self._operations = operations
        self._admission = admission
        self._reconciler = reconciler
        self._activity = activity

    # -- making ----------------------------------------------------------------------------------------------------------------------

    async def create(self, caller: Caller, request: CreateRequest, *, idempotency_key: str = "", request_digest: str = "") -> Started:
        """The same key leads to the same sandbox, also when the first answer was lost. Raises NotFound (template), InvalidInput, Conflict (the key was used
        for another request), QuotaExceeded, Overloaded, HostUnavailable: then nothing was made."""
        template = await self._template(caller.team_id, request.template)
        sandbox = self._fresh(caller, request, template)
        room = await self._admission.room(*([template.host_id] if template.host_id else []))
        want = (caller.team_id, sandbox.shape, template.id, frozenset(room), idempotency_key)  # with a key: what it made before is found, however full it is
        async with self._admission.turn(want), self._context.store.write() as records:
            await records.hold(HOLD, f"template {template.id}")
            if idempotency_key:
                now = sandbox.created_at
                known = await records.memory.begin(Remembered(caller.team_id, idempotency_key, request_digest, sandbox.id, now))
                if known is not None:
                    return await self._again(records, known, request_digest)
            sandbox = await self._place(records, sandbox, template, room)
            if request.network_where_possible:
                sandbox = replace(sandbox, network=NetworkMode.OFF if room[sandbox.host_id].no_network else NetworkMode.ON)
            await records.sandboxes.add(sandbox)
            await records.events.add(moves.begun(sandbox, caller.actor))
        await self._operations.written(sandbox)
        self._operations.run(sandbox, Because(caller.actor, request_id=caller.request_id))
        return Started(sandbox, sandbox.id)

    def _fresh(self, caller: Caller, request: CreateRequest, template: Template) -> Sandbox:
        shape = Shape.fit(request.vcpus, request.memory_mib, request.disk_mib)
        if template.shape is not None:
            shape = replace(template.shape, disk_mib=max(template.shape.disk_mib, shape.disk_mib if template.kind is TemplateKind.BASE else 0))
        now = self._context.now()
        if request.deadline is not None and request.deadline <= now:
            raise InvalidInput("The deadline is over already.")
        if request.idle_timeout < 0:
            raise InvalidInput("The idle time-out cannot be negative.")
        sandbox_id = self._context.new_id()
        until = now + self._context.policy.deadlines[K.CREATE]
        return Sandbox(
            id=sandbox_id,
            team_id=caller.team_id,
            state=S.STARTING,
            generation=1,
            template_id=template.id,
            template=template.name,
            shape=shape,
            network=request.network,
            created_at=now,
            updated_at=now,
            last_active_at=now,
            deadline=request.deadline,
            idle_timeout=request.idle_timeout,
            on_timeout=request.on_timeout,
            auto_resume=request.auto_resume,
            labels=dict(request.labels),
            env={**request.env, **marks(request.dialect, sandbox_id, template.id)},
            operation=Operation(sandbox_id, K.CREATE, now, until, template.id),
            dialect=request.dialect,
            created_by=caller.actor.id,
            exposure=request.exposure,
            egress=request.egress,
            terms=request.terms,
        )

    async def _place(self, records: Records, sandbox: Sandbox, template: Template, room: Room) -> Sandbox:
        present = await records.templates.get(template.id)
        if present is None or present.state is not TemplateState.READY:
            raise NotFound(f"There is no template {template.name!r}.")
        await self._admission.demand_limits(records, sandbox.team_id, sandbox.shape)
        await self._admission.demand_storage(records, sandbox.team_id)
        return replace(sandbox, host_id=await self._admission.place(records, room, sandbox.shape))

    async def _again(self, records: Records, known: Remembered, digest: str) -> Started:
        if known.request != digest:
            raise Conflict("This Idempotency-Key was used for another request.")
        sandbox = await records.sandboxes.get(known.result)
        if sandbox is None:
            raise NotFound("What this Idempotency-Key made is gone.")
        return Started(sandbox, sandbox.id)

    async def fork(
        self,
        caller: Caller,
        sandbox_id: str,
        count: int = 1,
        *,
        span: float | None = None,
        unnamed: bool = False,
        idempotency_key: str = "",
        request_digest: str = "",
    ) -> Sequence[Started]:
        """`count` children of a running sandbox, which runs on: all or none. `span`: the seconds that they live; None: as long as the source. They have its
        labels; `unnamed`: but for `name`, which goes on to mean the source alone. Raises as create, and Denied."""
        if not 1 <= count <= self._context.policy.most_children:
            raise InvalidInput(f"{count} copies: 1 to {self._context.policy.most_children} at a time.")
        source = await self.get(caller, sandbox_id)
        room = await self._admission.room(source.host_id)
        children: list[Sandbox] = []

        async def prepare(records: Records, before: Sandbox, operation: Operation) -> Operation:
            await self._admission.demand_limits(records, before.team_id, before.shape, count)
            await self._admission.demand_storage(records, before.team_id)
            await self._admission.place(records, room, before.shape, count)
            labels = {name: value for name, value in before.labels.items() if not (unnamed and name == "name")}
            children[:] = [replace(self._child(caller, before, operation, span), labels=labels) for _ in range(count)]
            if idempotency_key:
                await records.memory.finish(before.team_id, idempotency_key, " ".join([operation.id, *(child.id for child in children)]))
            for child in children:
                await records.sandboxes.add(child)
                await records.events.add(moves.begun(child, caller.actor))
            return operation

        wish = replace(self._wish(caller, K.FORK), key=idempotency_key, digest=request_digest, span=span)
        started = await self._operations.begin(sandbox_id, wish, prepare, [HOLD])
        if not children:  # the key was used before
            return await self._known_children(started.operation_id)
        await self._operations.written(*children)
        return [Started(child, started.operation_id) for child in children]

    async def _known_children(self, result: str) -> Sequence[Started]:
        """`result`: what the idempotency key of a fork remembers, the operation and its children."""
        operation_id, *ids = result.split()
        async with self._context.store.look() as records:
            children = [await records.sandboxes.get(child_id) for child_id in ids]
        return [Started(child, operation_id) for child in children if child is not None]

    def _child(self, caller: Caller, source: Sandbox, operation: Operation, given: float | None) -> Sandbox:
        now, child_id = operation.started_at, self._context.new_id()
        span = given if given is not None else None if source.deadline is None else max(60.0, source.deadline - source.created_at)
        return replace(
            source,
            id=child_id,
            state=S.STARTING,
            generation=1,
            created_at=now,
            updated_at=now,
            last_active_at=now,
            machine_id="",
            started_at=None,
            deadline=None if span is None else now + span,
            operation=replace(operation, target=source.id),
            stored_bytes=0,
            created_by=caller.actor.id,
            env={**source.env, **marks(source.dialect, child_id, source.template_id)},
            terms=source.terms if given is None or not source.terms.span else replace(source.terms, span=given),
        )

    # -- changing --------------------------------------------------------------------------------------------------------------------

    async def pause(self, caller: Caller, sandbox_id: str, *, keeps_memory: bool = True) -> Started:
        """Without its memory it starts from its own disk the next time, which has all that was written. Raises NotFound, Denied. Paused already, or about to
        be: the same."""
        return await self._operations.begin(sandbox_id, self._wish(caller, K.PAUSE, target="" if keeps_memory else DISK_ONLY))

    async def resume(self, caller: Caller, sandbox_id: str, *, span: float | None = None) -> Started:
        """Where it stood, or, if its memory was given up, from its own disk. `span`: the seconds of life that it gets; None: as its Terms say. Raises NotFound,
        Denied, QuotaExceeded, Overloaded, HostUnavailable."""
        return await self._wake(caller, sandbox_id, replace(self._wish(caller, K.RESUME), span=span))

    async def cold_boot(self, caller: Caller, sandbox_id: str, *, span: float | None = None) -> Started:
        """Of a paused sandbox, from its own disk; its memory is lost. Raises as resume."""
        return await self._wake(caller, sandbox_id, replace(self._wish(caller, K.COLD_BOOT), span=span))

    async def rollback(self, caller: Caller, sandbox_id: str, snapshot: str) -> Started:
        """To a snapshot by name or id, on the same host, of the same vCPUs and memory. What the sandbox did since is lost. Raises as resume, InvalidInput."""
        sandbox = await self.get(caller, sandbox_id)
        template = await self._template(caller.team_id, snapshot)
        if template.kind is not TemplateKind.SNAPSHOT or template.host_id != sandbox.host_id:
            raise InvalidInput(f"{template.name!r} is no snapshot on the sandbox's host.")
        if template.shape is None or (template.shape.vcpus, template.shape.memory_mib) != (sandbox.shape.vcpus, sandbox.shape.memory_mib):
            raise InvalidInput(f"{template.name!r} has other vCPUs or memory than the sandbox.")
        return await self._wake(caller, sandbox_id, self._wish(caller, K.ROLLBACK, target=template.id))

    async def kill(self, caller: Caller, sandbox_id: str) -> Started:
        """From any state; an end is certain. Ended already, or about to be: the same. Raises NotFound."""
        return await self._operations.begin(sandbox_id, self._wish(caller, K.KILL))

    async def snapshot(
        self,
        caller: Caller,
        sandbox_id: str,
        name: str = "",
        *,
        overwrite: bool = False,
        keep_running: bool = True,
        platform: bool = False,
        end_source: bool = False,
        idempotency_key: str = "",
        request_digest: str = "",
    ) -> Started:
        """A template of the sandbox as it is now; `operation.target` of the answer is its id. A paused source stays paused; a running one runs on, or is left
        paused where `keep_running` is False. `overwrite`: the one of that name stays until the new one is complete. `platform` (admins): for everybody.
        `end_source`: the source ends when the template is there.
        Raises NotFound, Denied, NameTaken, NameReserved, InvalidInput, QuotaExceeded."""
        if platform and not caller.is_admin:
            raise Forbidden("Only administrators make platform templates.")
        wanted = NewSnapshot(PLATFORM_TEAM if platform else caller.team_id, check_template_name(name), overwrite)

        async def prepare(records: Records, before: Sandbox, operation: Operation) -> Operation:
            leads_to = S.PAUSED if before.state is S.PAUSED or not keep_running else None
            prepared = await wanted.prepare(self._context, self._admission, records, before, replace(operation, leads_to=leads_to))
            if end_source:
                source = {"sandbox": before.id, "team": before.team_id}
                await records.chores.add(Chore(self._context.new_id(), ChoreKind.END_CAPSULE, prepared.target, prepared.started_at, source))
            return prepared

        wish = replace(self._wish(caller, K.SNAPSHOT), key=idempotency_key, digest=request_digest)
        return await self._operations.begin(sandbox_id, wish, prepare)

    async def settled(self, sandbox_id: str, operation_id: str, timeout: float) -> Sandbox:
        """See Operations.settled."""
        return await self._operations.settled(sandbox_id, operation_id, timeout)

    async def set_timeouts(
        self, caller: Caller, sandbox_id: str, *, idle_timeout: float, deadline: float | None, on_timeout: TimeoutAction | None = None
    ) -> Sandbox:
        """In any state but the final ones; an operation under way is not disturbed. Raises NotFound, Denied, InvalidInput."""
        now = self._context.now()
        if idle_timeout < 0 or (deadline is not None and deadline <= now):
            raise InvalidInput("The idle time-out cannot be negative, nor the deadline be over.")

        def change(before: Sandbox) -> Sandbox:
            action = on_timeout or before.on_timeout
            return moves.following(before, now, idle_timeout=idle_timeout, deadline=deadline, on_timeout=action, last_active_at=now)

        return await self._change(caller, sandbox_id, change)

    async def set_deadline(self, caller: Caller, sandbox_id: str, seconds: float, *, only_later: bool = False) -> Sandbox:
        """A running sandbox ends so many seconds from now, 0: now. `only_later`: unless it would end later anyway. Raises NotFound, Denied unless it runs."""
        now = self._context.now()

        def change(before: Sandbox) -> Sandbox:
            demand_running(before.state)
            if only_later and (before.deadline is None or before.deadline >= now + seconds):
                return before
            return moves.following(before, now, deadline=now + seconds)

        return await self._change(caller, sandbox_id, change)

    async def set_egress(self, caller: Caller, sandbox_id: str, egress: Egress) -> Sandbox:
        """From the answer on, also for connections that are open. Raises NotFound, Denied (it has ended, or something is under way), HostUnavailable and what
        a host raises: then it is as it was, or, where the answer was lost, as it is to be."""
        before = await self.get(caller, sandbox_id)
        demand_settled(before.state)
        await self._context.ask(self._context.hosts.get(before.host_id).set_egress(sandbox_id, egress))
        now = self._context.now()
        return await self._change(caller, sandbox_id, lambda found: moves.following(found, now, egress=egress))

    async def _change(self, caller: Caller, sandbox_id: str, change: Callable[[Sandbox], Sandbox]) -> Sandbox:
        """Writes what `change` makes of the record: the record itself, or its next."""
        for _ in range(_TRIES):
            async with self._context.store.write() as records:
                before = await self._mine(records, caller, sandbox_id)
                if before.state in FINAL:
                    raise Denied(DenyReason.ENDED, f"The sandbox is {before.state.value}.")
                after = change(before)
                if after is before or await records.sandboxes.swap(before, after):
                    break
        else:
            raise Denied(DenyReason.BUSY, "The sandbox changes all the time.", mend="Try again.")
        if after is not before:
            await self._operations.written(after)
        return after

    async def _wake(self, caller: Caller, sandbox_id: str, wish: Wish) -> Started:
        sandbox = await self.get(caller, sandbox_id)
        if sandbox.state is not S.PAUSED:
            return await self._operations.begin(sandbox_id, wish)
        if sandbox.terms.cold and wish.kind is K.RESUME:
            wish = replace(wish, kind=K.COLD_BOOT)
        room = await self._admission.room(sandbox.host_id)

        async def prepare(records: Records, before: Sandbox, operation: Operation) -> Operation:
            if before.state is S.PAUSED:  # else its room is its own already
                await self._admission.demand_limits(records, before.team_id, before.shape)
                await self._admission.place(records, room, before.shape)
            return operation

        prepared: Prepare = prepare
        return await self._operations.begin(sandbox_id, wish, prepared, [HOLD])

    # -- looking and using -----------------------------------------------------------------------------------------------------------

    async def get(self, caller: Caller, sandbox_id: str) -> Sandbox:
        """In any state; ended ones for as long as the policy keeps them. Raises NotFound."""
        async with self._context.store.look() as records:
            return await self._mine(records, caller, sandbox_id)

    async def find(self, sandbox_id: str) -> Sandbox | None:
        """Whoever's it is, in any state: for those who let in others than its team, and judge by the record whom."""
        async with self._context.store.look() as records:
            return await records.sandboxes.get(sandbox_id)

    async def list(self, caller: Caller, wanted: SandboxFilter, *, cursor: str = "", limit: int = 100) -> Page[Sandbox]:
        """Newest first. An administrator without a team of their own may name any, or none; everybody else sees their own."""
        if not _is_over_all(caller):
            wanted = replace(wanted, team_id=caller.team_id)
        async with self._context.store.look() as records:
            return await records.sandboxes.list(wanted, cursor=cursor, limit=limit)

    async def held(self, caller: Caller) -> Reserved:
        """What the caller's team holds now."""
        async with self._context.store.look() as records:
            return await records.sandboxes.reserved(team_id=caller.team_id)

    async def ping(self, caller: Caller, sandbox_id: str) -> Sandbox:
        """Counts as activity. Raises NotFound, Denied unless it runs."""
        sandbox = await self.get(caller, sandbox_id)
        demand_running(sandbox.state)
        await self._activity.touch(sandbox)
        return await self.get(caller, sandbox_id)

    @asynccontextmanager
    async def use(self, caller: Caller, sandbox_id: str, what: str) -> AsyncIterator[Guest]:
        """The guest of a running sandbox, which does not become idle while the block lasts. A paused one with `auto_resume` is woken first. `what` is for
        the log. Raises NotFound, Denied, what a resume raises, HostUnavailable, GuestLost."""
        sandbox = await self._awake(caller, sandbox_id)
        async with self._activity.inside(sandbox):
            try:
                guest = await self._context.hosts.get(sandbox.host_id).guest(sandbox_id)
            except (NotFound, Denied, GuestLost) as error:
                now = await self._reconciler.look_at(sandbox_id)  # the record may not know yet
                if now is not None:
                    demand_running(now.state)
                raise GuestLost(f"The sandbox cannot be reached for {what}: {error.message}") from error
            yield guest

    async def _awake(self, caller: Caller, sandbox_id: str) -> Sandbox:
        sandbox = await self.get(caller, sandbox_id)
        operation = sandbox.operation
        if operation is not None and (sandbox.state in (S.STARTING, S.RESUMING) or (sandbox.auto_resume and _falls_asleep(sandbox.state, operation))):
            sandbox = await self.settled(sandbox_id, operation.id, _WAKE_PATIENCE)
        if sandbox.state is S.PAUSED and sandbox.auto_resume and not sandbox.terms.cold:
            started = await self._wake(caller, sandbox_id, replace(self._wish(caller, K.RESUME), cause="traffic"))
            sandbox = await self.settled(sandbox_id, started.operation_id, _WAKE_PATIENCE)
        if sandbox.state is S.MISSING:
            raise HostUnavailable("The sandbox's host cannot be reached at present.")
        demand_running(sandbox.state)
        return sandbox

    def _wish(self, caller: Caller, kind: OperationKind, target: str = "") -> Wish:
        return Wish(kind, caller.actor, caller.team_id if not _is_over_all(caller) else "", target=target, request_id=caller.request_id)

    async def _mine(self, records: Records, caller: Caller, sandbox_id: str) -> Sandbox:
        sandbox = await records.sandboxes.get(sandbox_id)
        if sandbox is None or (sandbox.team_id != caller.team_id and not _is_over_all(caller)):
            raise NotFound(f"There is no sandbox {sandbox_id[:40]}.")
        return sandbox

    async def _template(self, team_id: str, name: str) -> Template:
        async with self._context.store.look() as records:
            found = await records.templates.find(team_id, name) or await records.templates.get(name)
        if found is None or found.state is not TemplateState.READY or not may_see(found, team_id):
            raise NotFound(f"There is no template {name[:80]!r}.")
        return found


def _is_over_all(caller: Caller) -> bool:
    """An administrator who acts for no team in particular."""
    return caller.is_admin and not caller.team_id


def _falls_asleep(state: SandboxState, operation: Operation) -> bool:
    return state is S.PAUSING or (state is S.SNAPSHOTTING and operation.leads_to is S.PAUSED)
