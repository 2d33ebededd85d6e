"""`torpor templates` and `torpor build`: what there is to start from, and making it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from torpor.apps.engine import Engine
from torpor.apps.settings import Settings
from torpor.model.errors import HomeBusy
from torpor.model.shapes import Shape
from torpor.ports.images import Progress

COMMON_SHAPES = (Shape(1, 512, 4096), Shape(2, 1024, 4096))
"""What `torpor build --warm` boots ahead for each template; other shapes are booted at first use."""

_DIGEST = re.compile("[0-9a-f]{64}")

Row = dict[str, object]


def listing(settings: Settings) -> list[Row]:
    """One row per template, built or buildable."""
    return _rows(Engine(settings))


def _rows(engine: Engine) -> list[Row]:
    built = {template.name: template for template in engine.images.templates()}
    rows: list[Row] = []
    built |= {alias: template for template in list(built.values()) for alias in template.aliases}
    for name in sorted({*built, *engine.images.buildable()}):
        template = built.get(name)
        if template is None:
            rows.append({"name": name, "built": "no", "size_mib": "", "user": "", "digest": "", "description": "Built at first use."})
            continue
        size = template.disk.stat().st_blocks * 512 >> 20
        rows.append(
            {"name": name, "built": "yes", "size_mib": size, "user": template.user, "digest": template.digest[:12], "description": template.description}
        )
    return rows


def build(names: Sequence[str], settings: Settings, progress: Progress, say: Callable[[str], None], *, warm: bool, refresh: bool) -> list[Row]:
    """Builds what is missing, or with `refresh` all of it anew; with `warm`, also boots the common shapes. Then removes older images that nothing needs any
    more. Returns the listing."""
    return asyncio.run(_build(names, settings, progress, say, warm, refresh))


async def _build(names: Sequence[str], settings: Settings, progress: Progress, say: Callable[[str], None], warm: bool, refresh: bool) -> list[Row]:
    engine = Engine(settings)
    wanted = list(names) or list(engine.images.standard())
    await engine.images.ensure(wanted, progress, refresh=refresh)
    if warm:
        engine.lock()
        async with engine:
            jobs = [(name, shape) for name in wanted for shape in COMMON_SHAPES]
            for done, (name, shape) in enumerate(jobs):
                progress(f"booting {name} once with {shape}", done / len(jobs))
                await engine.agent.warm(name, shape)
    await _tidy(engine, say)
    return _rows(engine)


async def _tidy(engine: Engine, say: Callable[[str], None]) -> None:
    """Not while the home has an owner: it may start sandboxes from images that no file names yet."""
    try:
        engine.lock()
    except HomeBusy:
        return
    try:
        freed = await engine.images.collect(digests_named(engine.settings.home))
    finally:
        engine.unlock()
    if freed:
        say(f"{freed >> 20} MiB of older images were removed: nothing needs them any more.")


def digests_named(home: Path) -> set[str]:
    """Every SHA-256 that stands in a record or a manifest of the home, damaged ones included: what a sandbox or an artefact may need is among them."""
    files = [path for room in ("sandboxes", "store") for path in (home / room).rglob("*.json*") if path.is_file()]
    return {digest for path in files for digest in _DIGEST.findall(path.read_text(errors="replace"))}
