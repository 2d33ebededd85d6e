"""Templates and their names."""

from __future__ import annotations

from dataclasses import replace

import pytest

from torpor.model.errors import Conflict, NotFound
from torpor.model.records import (
    PLATFORM_TEAM,
    Template,
    TemplateKind,
    TemplateState,
)
from torpor.model.sandbox import base36
from torpor.model.shapes import Shape
from torpor.testing.conformance.records.samples import ODD, OTHER, TEAM, StoreRig, a_template, whole


async def check_templates(rig: StoreRig) -> None:
    store = await rig.open()
    full = a_template(
        1,
        kind=TemplateKind.BASE,
        host_id="host",
        shape=Shape(2, 1024, 4096),
        size_bytes=2**40,
        default_user="user",
        home="/home/user",
        sandbox_id="sb",
        metadata={ODD: ODD},
    )
    platform = a_template(2, team_id=PLATFORM_TEAM, name="minimal")
    own = a_template(3, name="minimal", size_bytes=5)
    async with store.write() as records:
        for one in (full, platform):
            await records.templates.add(one)
        assert await records.templates.get(full.id) == full
        assert await records.templates.find(TEAM, "minimal") == platform
        await records.templates.add(own)
        assert await records.templates.find(TEAM, "minimal") == own
        assert await records.templates.find(OTHER, "minimal") == platform
        assert await records.templates.find(OTHER, "template-1") is None
        assert list((await records.templates.list(TEAM)).items) == [own, platform, full]
        assert list((await records.templates.list(TEAM, platform=False)).items) == [own, full]
        assert await whole(lambda cursor: records.templates.list("", cursor=cursor, limit=1)) == [own, platform, full]
        assert await records.templates.stored_bytes(TEAM) == 2**40 + 5
        await records.templates.update(replace(full, size_bytes=1))
        assert await records.templates.get(full.id) == replace(full, size_bytes=1)
        await records.templates.remove(full.id)
        assert await records.templates.get(full.id) is None
        with pytest.raises(NotFound):
            await records.templates.update(full)


async def check_template_names(rig: StoreRig) -> None:
    store = await rig.open()
    old = a_template(1, name="mine")
    new = a_template(2, name="mine", state=TemplateState.CREATING, replaces=old.id)

    async def refused(template: Template) -> None:
        with pytest.raises(Conflict):
            async with store.write() as records:
                await records.templates.add(template)

    async with store.write() as records:
        await records.templates.add(old)
    await refused(a_template(3, name="mine"))
    await refused(a_template(3, name="mine", state=TemplateState.CREATING))
    await refused(a_template(3, name="mine", state=TemplateState.CREATING, replaces=base36(9)))
    async with store.write() as records:
        await records.templates.add(new)
        await records.templates.add(a_template(4, name="mine", team_id=OTHER))
        assert await records.templates.find(TEAM, "mine") == old
        assert await records.templates.unsettled() == [new]
    await refused(a_template(3, name="mine", state=TemplateState.CREATING, replaces=old.id))
    with pytest.raises(Conflict):
        async with store.write() as records:
            await records.templates.update(replace(new, state=TemplateState.READY))
    async with store.write() as records:
        await records.templates.update(replace(old, state=TemplateState.DELETING))
        await records.templates.update(replace(new, state=TemplateState.READY))
    async with store.read() as records:
        assert await records.templates.find(TEAM, "mine") == replace(new, state=TemplateState.READY)
        assert [one.id for one in await records.templates.unsettled()] == [old.id]
