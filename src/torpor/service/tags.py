"""Names within names: what a team calls a template, and the tags that point to it or to others.

    name          the template of that name: the team's own, else the platform's
    name:default  the same
    name:tag      what the tag points to: another name for the same template, or for one that has only a made-up name of its own

A tag is a pointer and no copy. It goes with the template it points to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torpor.model.errors import Conflict, Forbidden, InvalidInput, NotFound
from torpor.model.records import PLATFORM_TEAM, Team, Template, TemplateState, TemplateTag
from torpor.ports.records import Records
from torpor.service.caller import Caller
from torpor.service.context import Context
from torpor.service.snapshots import may_see

DEFAULT = "default"
MOST_TAGS = 100
_PLATFORM = ("e2bdev", "platform")
"""What stands before the name of a template of the platform's."""


@dataclass(frozen=True, slots=True)
class Reference:
    """`space` '': the team's own, else the platform's. `tag` '': none was given, which is DEFAULT."""

    name: str
    space: str = ""
    tag: str = ""


class Tags:
    def __init__(self, context: Context) -> None:
        self._context = context

    async def team(self, caller: Caller) -> Team:
        """The caller's; its slug is what stands before its names. Raises NotFound."""
        async with self._context.store.look() as records:
            return await _team(records, caller)

    async def find(self, caller: Caller, wanted: Reference) -> Template:
        """Raises NotFound."""
        async with self._context.store.look() as records:
            return await self._find(records, caller, wanted)

    async def _find(self, records: Records, caller: Caller, wanted: Reference) -> Template:
        missing = NotFound(f"There is no template {wanted.name[:80]!r}" + (f" with the tag {wanted.tag[:80]!r}." if wanted.tag else "."))
        teams = await self._teams(records, caller, wanted.space)
        if wanted.tag not in ("", DEFAULT):
            for team_id in teams:
                for tag in await records.templates.tagged(team_id, wanted.name):
                    if tag.tag == wanted.tag:
                        return await _ready(records, tag.template_id, missing)
            raise missing
        for team_id in teams:
            found = await records.templates.find(team_id, wanted.name)
            if found is not None and found.team_id == team_id:
                return found
        if wanted.space:
            raise missing
        found = await _ready(records, wanted.name, missing)
        if not may_see(found, caller.team_id):
            raise missing
        return found

    async def _teams(self, records: Records, caller: Caller, space: str) -> Sequence[str]:
        if not space:
            return (caller.team_id, PLATFORM_TEAM)
        if space in _PLATFORM:
            return (PLATFORM_TEAM,)
        return (caller.team_id,) if (await _team(records, caller)).slug == space else ()

    # -- tags ------------------------------------------------------------------------------------------------------------------------

    async def assign(self, caller: Caller, target: Reference, tags: Sequence[str]) -> Template:
        """The tags of the target's name point to the target from now on. Raises NotFound, Forbidden (the platform's), InvalidInput (too many tags), Conflict
        (DEFAULT, of what is not called so)."""
        now = self._context.now()
        async with self._context.store.write() as records:
            template, name = await self._own(records, caller, target)
            present = {tag.tag for tag in await records.templates.tagged(template.team_id, name)}
            if len(present | set(tags)) > MOST_TAGS:
                raise InvalidInput(f"A template may have {MOST_TAGS} tags.")
            for tag in tags:
                if tag != DEFAULT:
                    await records.templates.tag(TemplateTag(self._context.new_id(), template.team_id, name, tag, template.id, now))
                elif template.name != name:
                    raise Conflict(f"The tag {DEFAULT!r} is the name itself, and belongs to another template.", mend="Take a snapshot under that name.")
        return template

    async def point(self, caller: Caller, wanted: Reference, template: Template) -> None:
        """A tag of a name, whether anything is called so or not, to a template of the caller's own. Raises Forbidden, InvalidInput, NotFound (it is gone)."""
        _demand_own(caller, template)
        async with self._context.store.write() as records:
            await _ready(records, template.id, NotFound("The template is gone."))
            if len(await records.templates.tagged(caller.team_id, wanted.name)) >= MOST_TAGS:
                raise InvalidInput(f"A template may have {MOST_TAGS} tags.")
            tag = TemplateTag(self._context.new_id(), caller.team_id, wanted.name, wanted.tag, template.id, self._context.now())
            await records.templates.tag(tag)

    async def remove(self, caller: Caller, name: Reference, tags: Sequence[str]) -> None:
        """Raises NotFound (no such name, or none of these tags), Forbidden, InvalidInput (DEFAULT)."""
        if DEFAULT in tags:
            raise InvalidInput(f"The tag {DEFAULT!r} is the name itself and stays.")
        async with self._context.store.write() as records:
            team_id = await self._team_of(records, caller, name)
            doomed = [tag for tag in await records.templates.tagged(team_id, name.name) if tag.tag in tags]
            if not doomed:
                raise NotFound(f"{name.name[:80]!r} has none of these tags.")
            for tag in doomed:
                await records.templates.untag(tag.id)

    async def list(self, caller: Caller, name: Reference) -> Sequence[tuple[TemplateTag, Template]]:
        """All tags of a name, DEFAULT too, each with what it points to; the latest assigned first. `name` may also be an id. Raises NotFound."""
        async with self._context.store.look() as records:
            template = await self._find_any(records, caller, name)
            named = await records.templates.find(template.team_id, template.name)
            called = name.name if name.name != template.id else template.name
            found = []
            for tag in await records.templates.tagged(template.team_id, called):
                pointed = await records.templates.get(tag.template_id)
                if pointed is not None and pointed.state is TemplateState.READY:
                    found.append((tag, pointed))
            if named is not None and named.id == template.id and template.name == called:
                found.append((TemplateTag(template.id, template.team_id, called, DEFAULT, template.id, template.created_at), template))
        return sorted(found, key=lambda each: each[0].assigned_at, reverse=True)

    async def _find_any(self, records: Records, caller: Caller, name: Reference) -> Template:
        """What is of that name, or what any tag of it points to."""
        try:
            return await self._find(records, caller, replace(name, tag=""))
        except NotFound:
            for team_id in await self._teams(records, caller, name.space):
                for tag in await records.templates.tagged(team_id, name.name):
                    found = await records.templates.get(tag.template_id)
                    if found is not None and found.state is TemplateState.READY:
                        return found
            raise

    async def _team_of(self, records: Records, caller: Caller, name: Reference) -> str:
        template = await self._find_any(records, caller, name)
        _demand_own(caller, template)
        return template.team_id

    async def _own(self, records: Records, caller: Caller, target: Reference) -> tuple[Template, str]:
        """The template, and the name that its tags hang on."""
        template = await self._find(records, caller, target)
        _demand_own(caller, template)
        return template, template.name if target.name == template.id else target.name

    async def labels(self, template: Template) -> Sequence[TemplateTag]:
        """The tags that point to it."""
        async with self._context.store.look() as records:
            return await records.templates.tags_of(template.id)

    async def starts(self, template: Template) -> int:
        """How many sandboxes that live were started from it."""
        async with self._context.store.look() as records:
            return await records.sandboxes.using_template(template.id)


def _demand_own(caller: Caller, template: Template) -> None:
    if template.team_id != caller.team_id:
        raise Forbidden("The platform's templates are not the team's to change.")


async def _team(records: Records, caller: Caller) -> Team:
    team = await records.teams.get(caller.team_id)
    if team is None:
        raise NotFound("The team is gone.")
    return team


async def _ready(records: Records, template_id: str, missing: NotFound) -> Template:
    found = await records.templates.get(template_id)
    if found is None or found.state is not TemplateState.READY:
        raise missing
    return found
