"""Warm images: each template booted once for a shape, kept as an artefact, so that every create is a resume. Built once even when many ask at the
same moment."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from torpor.host.boot import FIRST_GENERATION, BootOrder, cold_boot
from torpor.host.context import Context
from torpor.host.fit import fingerprint
from torpor.log import Log
from torpor.model.shapes import Shape
from torpor.model.snapshots import ArtefactKind
from torpor.ports.images import Template
from torpor.ports.store import Artefact, DiskChain

log = Log()

TEMPLATE_DIGEST = "template_digest"


class WarmImages:
    """One per host agent."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._building: dict[tuple[str, Shape], asyncio.Task[Artefact]] = {}

    def warm_shape(self, shape: Shape) -> Shape:
        """The shape a warm image is made for: a larger disk than the usual is grown after the start, so one image serves all of them."""
        return replace(shape, disk_mib=min(shape.disk_mib, self._context.policy.warm_disk_mib))

    async def get(self, template: Template, shape: Shape) -> Artefact:
        """The warm image of `template` for `shape`, booted now if there is none that fits this machine as it is. A caller that leaves does not stop the build.
        Raises what a cold boot raises."""
        wanted = self.warm_shape(shape)
        found = await self.find(template, wanted)
        if found is not None:
            return found
        key = (template.digest, wanted)
        task = self._building.get(key)
        if task is None:
            task = self._building[key] = asyncio.create_task(self._build(template, wanted), name=f"warm-{template.name}")
            task.add_done_callback(lambda _: self._building.pop(key, None))
        return await asyncio.shield(task)

    async def find(self, template: Template, shape: Shape) -> Artefact | None:
        """The one that is there, for a shape as `warm_shape` makes it."""
        here = await fingerprint(self._context, shape, self._context.images.boot())
        for artefact in self._context.snapshots.list(ArtefactKind.WARM, template.name):
            same = artefact.shape == shape and artefact.extra.get(TEMPLATE_DIGEST) == template.digest
            if same and not any(artefact.fingerprint.differences(here)):
                return artefact
        return None

    async def _build(self, template: Template, shape: Shape) -> Artefact:
        log.info("warm_image_building", template=template.name, shape=str(shape))
        base = DiskChain(template.digest, (), max(template.size_bytes, shape.disk_bytes))
        order = BootOrder(ArtefactKind.WARM, template.name, template.name, shape, base, FIRST_GENERATION, {TEMPLATE_DIGEST: template.digest}, template.service)
        return await cold_boot(self._context, order)

    async def close(self) -> None:
        """Stops builds under way; what they made is removed."""
        tasks = list(self._building.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
