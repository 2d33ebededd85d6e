"""What a server keeps ready from its start on, before it knows what is asked for."""

from __future__ import annotations

from torpor.apps.engine import Engine
from torpor.host.pool import Kind
from torpor.model.sandbox import NetworkMode
from torpor.model.shapes import Shape

STOCKED = "base"


async def stock(engine: Engine) -> None:
    """`base` as the native API starts it, in the configured number; one as E2B's does, with a network; and one, with a network, of each template with a service
    whose warm image is there, for a service is what takes long to come into its stride. What is asked for then decides (host.pool)."""
    pool = engine.agent.pool
    pool.stock(Kind(STOCKED, Shape(), NetworkMode.OFF))
    if engine.networks.problems():
        return
    pool.stock(Kind(STOCKED, Shape(), NetworkMode.ON), 1)
    for template in engine.agent.context.images.templates():
        if template.service is not None and await engine.agent.is_warm(template.name, Shape()):
            pool.stock(Kind(template.name, Shape(), NetworkMode.ON), 1)
