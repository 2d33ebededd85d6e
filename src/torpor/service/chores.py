"""What must still be done because of a change that is on record. Each chore is written in the transaction of the change, every step of it may be repeated, and
it is removed when nothing of it is left: whoever dies in between, somebody goes on.

    CLEAR_TEAM     end the sandboxes, delete the snapshots; when both are gone, one transaction: keys, logins, channels, figures, members, and the chore
    REST_TEAM      pause what runs, unless the team has an active owner again
    END_CAPSULE    when the template that is made of it is there, end the sandbox; when it did not come about, leave it
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from torpor.lifecycle.sandbox import LIVE
from torpor.log import Log
from torpor.model.errors import NotFound, TorporError
from torpor.model.records import PLATFORM_TEAM, SYSTEM, AuditStatus, Chore, ChoreKind, Sandbox, SandboxState, Template, TemplateKind, TemplateState
from torpor.ports.records import SandboxFilter
from torpor.service.admission import HOLD
from torpor.service.audit import of_platform
from torpor.service.caller import Caller
from torpor.service.context import Context
from torpor.service.sandboxes import Sandboxes
from torpor.service.teams import of_team, other_owners
from torpor.service.templates import Templates

log = Log()

S = SandboxState
PATIENCE = 60.0
"""Seconds that one round waits for one sandbox."""
_EVERY = 60.0


class Chores:
    def __init__(self, context: Context, sandboxes: Sandboxes, templates: Templates) -> None:
        self._context = context
        self._sandboxes = sandboxes
        self._templates = templates
        self._doing: dict[str, asyncio.Task[bool]] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Takes up what is left, now and then."""
        self._task = asyncio.create_task(self._run(), name="chores")

    async def close(self) -> None:
        tasks = [*self._doing.values(), *([self._task] if self._task else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def done(self, chores: Sequence[Chore], seconds: float) -> bool:
        """Begins them here and now, whether the caller stays or not, and waits so long for them; whether all are done."""
        doing = [self._begin(chore) for chore in chores]
        if doing:
            await self._context.wait(asyncio.ensure_future(_all(doing)), until=self._context.now() + seconds)
        return all(task.done() and not task.cancelled() and task.exception() is None and task.result() for task in doing)

    async def round(self) -> None:
        """One try at everything that is left. Repeatable, by several processes at once."""
        async with self._context.store.look() as records:
            left = await records.chores.list()
        await _all([self._begin(chore) for chore in left])

    async def _run(self) -> None:
        while True:
            try:
                await self.round()
            except TorporError as error:
                log.error("chores_failed", error=str(error))
            await self._context.sleep_until(self._context.now() + _EVERY)

    def _begin(self, chore: Chore) -> asyncio.Task[bool]:
        if chore.id not in self._doing:
            task = asyncio.create_task(self._try(chore), name=f"chore-{chore.kind.value}")
            self._doing[chore.id] = task
            task.add_done_callback(lambda _: self._doing.pop(chore.id, None))
        return self._doing[chore.id]

    async def _try(self, chore: Chore) -> bool:
        """Whether it is done; what fails is tried again at the next round."""
        work = {ChoreKind.CLEAR_TEAM: self._clear_team, ChoreKind.REST_TEAM: self._rest_team, ChoreKind.END_CAPSULE: self._end_capsule}[chore.kind]
        try:
            done = await work(chore)
        except TorporError as error:
            log.warning("chore_not_done_yet", kind=chore.kind.value, subject=chore.subject, error=str(error))
            return False
        if done:
            async with self._context.store.write() as records:
                await records.chores.remove(chore.id)
        return done

    # -- teams -----------------------------------------------------------------------------------------------------------------------

    async def _clear_team(self, chore: Chore) -> bool:
        caller = Caller(chore.subject, SYSTEM)
        ended = [await self._sandboxes.kill(caller, sandbox.id) for sandbox in await self._held(chore.subject)]
        await asyncio.gather(*(self._sandboxes.settled(one.sandbox.id, one.operation_id, PATIENCE) for one in ended))
        for template in await self._snapshots(chore.subject):
            try:
                await self._templates.delete(caller, template.id)
            except NotFound:
                log.debug("snapshot_gone_already", template=template.id)
        async with self._context.store.write() as records:
            await records.hold(HOLD, of_team(chore.subject))
            left = (await records.sandboxes.list(SandboxFilter(chore.subject, LIVE), limit=1)).items
            unsettled = [one for one in await records.templates.unsettled() if one.team_id == chore.subject and one.state is TemplateState.CREATING]
            if left or unsettled or (await records.templates.list(chore.subject, platform=False, limit=1)).items:
                return False
            await records.teams.remove_things(chore.subject)
            await of_platform(records, SYSTEM, self._context.now(), ("team", chore.subject), "clear", AuditStatus.INFO)
            await records.chores.remove(chore.id)
        return True

    async def _held(self, team_id: str) -> list[Sandbox]:
        found: list[Sandbox] = []
        cursor = ""
        while True:
            async with self._context.store.look() as records:
                page = await records.sandboxes.list(SandboxFilter(team_id, LIVE), cursor=cursor, limit=500)
            found += page.items
            if not (cursor := page.next):
                return found

    async def _snapshots(self, team_id: str) -> list[Template]:
        found: list[Template] = []
        cursor = ""
        while True:
            async with self._context.store.look() as records:
                page = await records.templates.list(team_id, platform=False, cursor=cursor, limit=500)
            found += [one for one in page.items if one.kind is TemplateKind.SNAPSHOT]
            if not (cursor := page.next):
                return found

    async def _rest_team(self, chore: Chore) -> bool:
        async with self._context.store.look() as records:
            if await other_owners(records, chore.subject, ""):
                return True
        caller = Caller(chore.subject, SYSTEM)
        running = [one for one in await self._held(chore.subject) if one.state is not S.PAUSED]
        begun = [await self._sandboxes.pause(caller, one.id) for one in running if one.state in (S.RUNNING, S.PAUSING)]
        await asyncio.gather(*(self._sandboxes.settled(one.sandbox.id, one.operation_id, PATIENCE) for one in begun))
        return len(begun) == len(running)

    # -- capsules of administrators --------------------------------------------------------------------------------------------------

    async def _end_capsule(self, chore: Chore) -> bool:
        sandbox_id, team_id = chore.data["sandbox"], chore.data["team"]
        async with self._context.store.look() as records:
            sandbox, template = await records.sandboxes.get(sandbox_id), await records.templates.get(chore.subject)
        if template is None or template.state is TemplateState.DELETING or sandbox is None or sandbox.state not in LIVE:
            return True
        if template.state is TemplateState.CREATING:
            operation = sandbox.operation
            if operation is None:
                return False
            await self._sandboxes.settled(sandbox_id, operation.id, PATIENCE)
            return await self._end_capsule(chore) if await self._is_ready(chore.subject) else False
        started = await self._sandboxes.kill(Caller(team_id, SYSTEM), sandbox_id)
        await self._sandboxes.settled(sandbox_id, started.operation_id, PATIENCE)
        return True

    async def _is_ready(self, template_id: str) -> bool:
        async with self._context.store.look() as records:
            template = await records.templates.get(template_id)
        return template is not None and template.state is TemplateState.READY and template.team_id == PLATFORM_TEAM


async def _all(tasks: Sequence[asyncio.Task[bool]]) -> None:
    """Waits; one that is cancelled is no error of who waits."""
    if tasks:
        await asyncio.wait(tasks)
