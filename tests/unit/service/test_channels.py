"""Who may set up channels, and configs that cannot be read."""

from __future__ import annotations

from dataclasses import replace

import pytest
from service_world import ME, TEAM, World
from test_notify import SEALER, Office, Post, show

from torpor.model.errors import Forbidden, InvalidInput
from torpor.model.records import Actor, ActorKind, Role
from torpor.notify.seal import random_sealer
from torpor.service.caller import Caller
from torpor.service.channels import Channels
from torpor.service.notify import opened

HOOK = {"url": "https://hooks.example/x", "secret": "s"}


def channels_of(world: World) -> Channels:
    return Channels(Office(world).context(), Post(), SEALER, show)  # type: ignore[arg-type]


def person(role: Role) -> Caller:
    return Caller(TEAM, Actor(ActorKind.USER, "u" * 25, "Ann"), user_id="u" * 25, role=role)


async def test_members_see_channels_and_owners_and_admins_change_them(world: World) -> None:
    channels = channels_of(world)
    channel, _ = await channels.create(person(Role.OWNER), "ops", "webhook", HOOK, ["capsule.created"])
    member = person(Role.MEMBER)
    assert list(await channels.list(member)) == [channel]
    assert (await channels.deliveries(member, channel.id)).items == []
    for refused in (
        channels.create(member, "x", "webhook", HOOK, ["capsule.created"]),
        channels.update(member, channel.id, "x", ["capsule.created"]),
        channels.configure(member, channel.id, HOOK),
        channels.delete(member, channel.id),
        channels.test(member, "webhook", HOOK),
        channels.test_saved(member, channel.id),
        channels.retry(member, channel.id, "d" * 25),
    ):
        with pytest.raises(Forbidden, match="owners and admins"):
            await refused
    await channels.delete(person(Role.ADMIN), channel.id)
    assert await channels.list(member) == []


async def test_a_config_sealed_with_a_lost_key_is_replaced(world: World) -> None:
    channels = channels_of(world)
    channel, _ = await channels.create(ME, "ops", "webhook", HOOK, ["capsule.created"])
    async with world.store.write() as records:
        await records.channels.update(replace(channel, config=random_sealer().seal("{}", channel.id)))
    with pytest.raises(InvalidInput, match="cannot be read on this server"):
        await channels.configure(ME, channel.id, {"url": "https://hooks.example/y"})
    changed = await channels.configure(ME, channel.id, {"url": "https://hooks.example/y", "secret": "new"})
    assert opened(SEALER, changed) == {"url": "https://hooks.example/y", "secret": "new"}
