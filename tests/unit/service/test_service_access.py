"""How long a key's caller is remembered."""

from __future__ import annotations

import pytest
from service_world import TEAM, World

from torpor.model.errors import Unauthorized
from torpor.model.records import ApiKey, Team
from torpor.service.access import CACHE_SECONDS, Access, digest_of
from torpor.service.context import Context


async def test_a_revocation_that_nobody_was_told_of_counts_after_the_time_that_keys_are_remembered(world: World) -> None:
    assert CACHE_SECONDS <= 1.0, "docs/api.md promises a second"
    context = Context(world.store, world.bus, world.hosts, now=world.clock.now, sleep_until=world.clock.sleep_until)
    access, began = Access(context), world.clock.now()
    async with world.store.write() as records:
        await records.teams.add(Team(TEAM, "Ours", "ours", began))
        await records.keys.add(ApiKey("k" * 25, TEAM, "k", digest_of("secret"), "sec", began))
    assert (await access.by_key("secret")).team_id == TEAM
    async with world.store.write() as records:
        await records.keys.revoke(TEAM, "k" * 25, began)
    world.clock.move(CACHE_SECONDS * 0.99)
    assert (await access.by_key("secret")).team_id == TEAM
    world.clock.move(CACHE_SECONDS * 0.02)
    with pytest.raises(Unauthorized):
        await access.by_key("secret")
