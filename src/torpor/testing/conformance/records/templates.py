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
    TemplateTag,
)
from torpor.model.sandbox import base36
from torpor.model.shapes import Shape
from torpor.ports.records import TemplateFilter
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


async def check_templates_of_a_kind_a_name_and_a_sandbox(rig: StoreRig) -> None:
    store = await rig.open()
    base = a_template(1, kind=TemplateKind.BASE)
    one, two = a_template(2, sandbox_id=base36(50)), a_template(3, sandbox_id=base36(51))
    async with store.write() as records:
        for each in (base, one, two):
            await records.templates.add(each)
        cases = [
            (TemplateFilter(), [two, one, base]),
            (TemplateFilter(kind=TemplateKind.SNAPSHOT), [two, one]),
            (TemplateFilter(name=one.name), [one]),
            (TemplateFilter(sandbox_id=base36(51)), [two]),
            (TemplateFilter(kind=TemplateKind.BASE, sandbox_id=base36(51)), []),
        ]
        for only, expected in cases:
            assert list((await records.templates.list(TEAM, only=only)).items) == expected, only


async def check_tags(rig: StoreRig) -> None:
    store = await rig.open()
    one, two = a_template(1), a_template(2)
    first = TemplateTag(base36(81), TEAM, "app", "v1", one.id, 10.0)
    second = TemplateTag(base36(82), TEAM, "app", "v2", one.id, 11.0)
    others = TemplateTag(base36(83), OTHER, "app", "v1", two.id, 12.0)
    async with store.write() as records:
        for template in (one, two):
            await records.templates.add(template)
        for tag in (first, second, others):
            await records.templates.tag(tag)
        assert await records.templates.tagged(TEAM, "app") == [second, first]
        assert await records.templates.tags_of(one.id) == [second, first]
        moved = replace(first, id=base36(84), template_id=two.id, assigned_at=13.0)
        await records.templates.tag(moved)
        assert await records.templates.tagged(TEAM, "app") == [moved, second]
        await records.templates.untag(second.id)
        assert await records.templates.tagged(TEAM, "app") == [moved]
        await records.templates.remove(two.id)
        assert await records.templates.tagged(TEAM, "app") == []
        assert await records.templates.tagged(OTHER, "app") == []
