"""What sandboxes start from: looking, deleting, and the base templates that hosts have. Snapshots are made by Sandboxes.snapshot."""

from __future__ import annotations

from dataclasses import replace

from torpor.log import Log
from torpor.model.errors import Conflict, Denied, DenyReason, Forbidden, HostUnavailable, NotFound
from torpor.model.records import PLATFORM_TEAM, Template, TemplateKind, TemplateState
from torpor.ports.bus import Notice
from torpor.ports.hosts import HostTemplate
from torpor.ports.records import Page, TemplateFilter
from torpor.service import snapshots
from torpor.service.caller import Caller
from torpor.service.context import Context

log = Log()

MINIMAL = "minimal"
"""The base template whose id is the all-zero one."""


class Templates:
    def __init__(self, context: Context) -> None:
        self._context = context

    async def list(self, caller: Caller, *, platform: bool = True, only: TemplateFilter | None = None, cursor: str = "", limit: int = 100) -> Page[Template]:
        """READY ones of the team and, with `platform`, of everybody; newest first. Of an administrator without a team: of all teams."""
        async with self._context.store.look() as records:
            return await records.templates.list("" if _is_over_all(caller) else caller.team_id, platform=platform, only=only, cursor=cursor, limit=limit)

    async def find(self, caller: Caller, name: str) -> Template:
        """By name, the team's own first, or by id. Raises NotFound."""
        async with self._context.store.look() as records:
            found = await records.templates.find(caller.team_id or PLATFORM_TEAM, name) or await records.templates.get(name)
        if found is None or found.state is not TemplateState.READY or not (snapshots.may_see(found, caller.team_id) or _is_over_all(caller)):
            raise NotFound(f"There is no template {name[:80]!r}.")
        return found

    async def delete(self, caller: Caller, name: str) -> None:
        """A snapshot, by name or id. When it returns the name is free; the bytes go at once or as soon as the host can be reached. Raises NotFound, Forbidden
        (a base template; the platform's, unless the caller is an administrator), Denied IN_USE while sandboxes that were started from it exist."""
        found = await self.find(caller, name)
        if found.kind is TemplateKind.BASE or (found.team_id == PLATFORM_TEAM and not caller.is_admin):
            raise Forbidden("The platform's templates can be deleted by its administrators only, its base templates where they are built.")
        now = self._context.now()
        async with self._context.store.write() as records:
            await records.hold(f"template {found.id}")
            template = await records.templates.get(found.id)
            if template is None or template.state is not TemplateState.READY:
                raise NotFound(f"There is no template {name[:80]!r}.")
            users = await records.sandboxes.using_template(template.id)
            if users:
                raise Denied(DenyReason.IN_USE, f"{users} sandboxes were started from {template.name!r}.", mend="Delete them first.")
            gone = replace(template, state=TemplateState.DELETING)
            await records.templates.update(gone)
            await snapshots.tell(records, gone, "deleted", caller.actor, now, caller.request_id)
        await self._context.bus.publish(Notice("template", gone.id, gone.team_id), Notice("event", gone.id, gone.team_id))
        await snapshots.remove(self._context, gone)

    async def learn(self) -> None:
        """Records the base templates that hosts have and that nobody recorded yet, as the platform's. Repeatable, by several processes at once."""
        for host in self._context.hosts.online():
            try:
                found = await self._context.ask(host.templates())
            except HostUnavailable as error:
                log.warning("templates_not_learnt", host=host.id, error=str(error))
                continue
            for one in found:
                await self._learn(one)

    async def _learn(self, found: HostTemplate) -> None:
        async with self._context.store.read() as records:
            if await records.templates.find(PLATFORM_TEAM, found.name) is not None:
                return
        template = Template(
            id=PLATFORM_TEAM if found.name == MINIMAL else self._context.new_id(),
            team_id=PLATFORM_TEAM,
            name=found.name,
            kind=TemplateKind.BASE,
            state=TemplateState.READY,
            source=found.name,
            created_at=self._context.now(),
            size_bytes=found.size_bytes,
            default_user=found.default_user,
            home=found.home,
        )
        try:
            async with self._context.store.write() as records:
                if await records.templates.find(PLATFORM_TEAM, found.name) is None:
                    await records.templates.add(template)
        except Conflict:  # another process was first
            return


def _is_over_all(caller: Caller) -> bool:
    return caller.is_admin and not caller.team_id
