"""Chores under every fault: each step fails, each step is repeated, whoever does them dies at any point."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from service_people import People, people_on
from service_world import World, done, opened, until_state

from torpor.model.errors import NotFound, TorporError
from torpor.model.records import PLATFORM_TEAM, Chore, Role, SandboxState, UserStatus
from torpor.ports.records import SandboxFilter
from torpor.service.caller import Caller
from torpor.service.control import ControlPlane
from torpor.service.sandboxes import CreateRequest
from torpor.testing.fake_hosts import Fault, Trouble

S = SandboxState
TINY = CreateRequest("tiny", 1, 256, 1024)


@dataclass
class Scene:
    """Ann owns a team with a running and a paused sandbox, a snapshot and a key."""

    world: World
    people: People
    caller: Caller

    @property
    def plane(self) -> ControlPlane:
        return self.people.plane

    async def chores(self) -> list[Chore]:
        async with self.world.store.look() as records:
            return list(await records.chores.list())

    async def states(self, team_id: str = "") -> list[SandboxState]:
        async with self.world.store.look() as records:
            return [one.state for one in (await records.sandboxes.list(SandboxFilter(team_id or self.caller.team_id))).items]


async def a_team(world: World) -> Scene:
    people = await people_on(world, await world.start())
    caller = await people.caller(await people.person("ann"))
    plane = people.plane
    running, asleep = [(await done(plane, await plane.sandboxes.create(caller, TINY))).id for _ in range(2)]
    await done(plane, await plane.sandboxes.snapshot(caller, running, "mine"))
    await done(plane, await plane.sandboxes.pause(caller, asleep))
    return Scene(world, people, caller)


@pytest.fixture
async def scene(world: World) -> Scene:
    return await a_team(world)


async def nothing_is_left(scene: Scene) -> None:
    world, team_id = scene.world, scene.caller.team_id
    assert await scene.chores() == []
    assert world.host.statuses() == {}
    assert world.host.snapshots() == {}
    assert set(await scene.states()) == {S.STOPPED}
    async with world.store.read() as records:
        assert await records.teams.members(team_id) == []
        assert await records.keys.list(team_id) == []
        assert await records.keys.sessions_of(scene.caller.user_id) == []
        team = await records.teams.get(team_id)
        assert team is not None and team.deleted_at is not None
        cleared = await records.audit.list(PLATFORM_TEAM, scopes=["admin"], actions=["clear"])
        assert len(cleared.items) == 1


# --- a team


async def test_a_deleted_team_is_gone_at_once_and_then_all_it_had(scene: Scene) -> None:
    chore = await scene.people.teams.delete(scene.caller, scene.caller.team_id)
    with pytest.raises(NotFound):
        await scene.people.teams.get(scene.caller, scene.caller.team_id)
    with pytest.raises(NotFound):  # a request that had come in before
        await scene.plane.sandboxes.create(scene.caller, TINY)
    with pytest.raises(NotFound):
        await scene.people.teams.delete(scene.caller, scene.caller.team_id)
    assert await scene.plane.chores.done([chore], 60)
    await nothing_is_left(scene)
    await scene.plane.chores.round()
    assert await scene.plane.chores.done([chore], 60)  # done once more: nothing happens
    await scene.plane.chores.round()
    assert await scene.chores() == []


@pytest.mark.parametrize("trouble", [Trouble.LOST_REPLY, Trouble.REFUSED, Trouble.UNREACHABLE, Trouble.ERROR_AFTER])
@pytest.mark.parametrize("verb", ["kill", "delete_snapshot"])
async def test_each_step_that_fails_is_done_later(scene: Scene, verb: str, trouble: Trouble) -> None:
    scene.world.host.faults.append(Fault(verb, trouble))
    chore = await scene.people.teams.delete(scene.caller, scene.caller.team_id)
    await scene.plane.chores.done([chore], 0)
    for _ in range(4):
        await scene.plane.operations.idle()
        await scene.plane.chores.round()
        await scene.plane.reconciler.run()
    await nothing_is_left(scene)


async def test_several_do_the_same_chore_at_once(scene: Scene) -> None:
    chore = await scene.people.teams.delete(scene.caller, scene.caller.team_id)
    other = await scene.world.start(sole=False)
    assert all(await asyncio.gather(scene.plane.chores.done([chore], 60), other.chores.done([chore], 60)))
    async with scene.world.store.write() as records:  # the audit log may say it twice; that is all
        assert await records.chores.list() == []
    assert scene.world.host.statuses() == {}


async def _delete_team(scene: Scene) -> None:
    chore = await scene.people.teams.delete(scene.caller, scene.caller.team_id)
    await scene.plane.chores.done([chore], 60)


async def _rest(scene: Scene) -> None:
    await scene.people.admin.set_active(await scene.people.root(), scene.caller.user_id, active=False)
    await scene.plane.chores.round()


async def _template(scene: Scene) -> None:
    root = await scene.people.root()
    plane = scene.plane
    sandbox = await done(plane, await plane.sandboxes.create(root, TINY))
    started = await scene.people.admin.snapshot(root, sandbox.id, "for-all")
    assert started.sandbox.operation is not None
    settled = await done(plane, started)
    await scene.people.admin.ended(settled, started.sandbox.operation.target, 60)


async def _team_is_whole_or_gone(scene: Scene) -> None:
    async with scene.world.store.look() as records:
        team = await records.teams.get(scene.caller.team_id)
    assert team is not None
    if team.deleted_at is None:
        assert sorted(state.value for state in await scene.states()) == ["paused", "running"]
    else:
        await nothing_is_left(scene)


async def _rests_or_runs(scene: Scene) -> None:
    async with scene.world.store.look() as records:
        user = await records.users.get(scene.caller.user_id)
    assert user is not None
    expected = ["paused", "paused"] if user.status is UserStatus.DISABLED else ["paused", "running"]
    assert sorted(state.value for state in await scene.states()) == expected


async def _template_or_capsule(scene: Scene) -> None:
    """Never neither: a capsule ends only when the template is there."""
    async with scene.world.store.look() as records:
        template = await records.templates.find(PLATFORM_TEAM, "for-all")
    states = set(await scene.states(PLATFORM_TEAM))
    assert states <= ({S.STOPPED} if template else {S.RUNNING, S.PAUSED, S.ERROR}), (template, states)


SAGAS: dict[str, tuple[Callable[[Scene], Awaitable[None]], Callable[[Scene], Awaitable[None]]]] = {
    "a team is deleted": (_delete_team, _team_is_whole_or_gone),
    "a team comes to rest": (_rest, _rests_or_runs),
    "a capsule becomes a template": (_template, _template_or_capsule),
}


@pytest.mark.parametrize("name", SAGAS)
async def test_whoever_does_it_may_die_at_any_point(name: str, fresh: Callable[[], Path]) -> None:
    act, check = SAGAS[name]
    at = 0
    while True:
        at += 1
        async with opened(fresh()) as world:
            scene = await a_team(world)
            plane = scene.plane
            world.points, world.die_at = 0, at
            acting, dying = asyncio.ensure_future(act(scene)), asyncio.ensure_future(world.died.wait())
            await asyncio.wait({acting, dying}, return_when=asyncio.FIRST_COMPLETED)
            died = world.died.is_set()
            dying.cancel()
            acting.cancel()
            await asyncio.gather(acting, dying, return_exceptions=True)
            point, world.die_at = world.point, 0
            if died:
                await world.kill(plane)
                scene.people.plane = await world.start()
            for _ in range(3):
                await scene.plane.operations.idle()
                await scene.plane.chores.round()
                await scene.plane.reconciler.run()
            assert await scene.chores() == [], (at, point)
            await check(scene)
            await world.check()
            if not died:
                assert at > 5
                return


# --- rest


async def test_a_team_with_another_owner_works_on(scene: Scene) -> None:
    people = scene.people
    bob = await people.person("robert")
    await people.teams.add(scene.caller, scene.caller.team_id, "robert@example.org")
    await people.teams.set_role(scene.caller, scene.caller.team_id, bob.user.id, Role.OWNER)
    await _rest(scene)
    assert sorted(state.value for state in await scene.states()) == ["paused", "running"]


async def test_rest_ends_when_the_owner_is_back(scene: Scene) -> None:
    root = await scene.people.root()
    scene.world.host.faults.append(Fault("pause", Trouble.REFUSED))
    await scene.people.admin.set_active(root, scene.caller.user_id, active=False)
    await scene.plane.chores.round()
    assert len(await scene.chores()) == 1
    await scene.people.admin.set_active(root, scene.caller.user_id, active=True)
    await scene.plane.chores.round()
    assert await scene.chores() == []
    assert sorted(state.value for state in await scene.states()) == ["paused", "running"]


# --- capsules


async def test_a_capsule_whose_template_fails_stays(scene: Scene) -> None:
    root, plane = await scene.people.root(), scene.plane
    sandbox = await done(plane, await plane.sandboxes.create(root, TINY))
    scene.world.host.faults.append(Fault("snapshot", Trouble.REFUSED))
    started = await scene.people.admin.snapshot(root, sandbox.id, "for-all")
    with pytest.raises(TorporError):
        await done(plane, started)
    await plane.chores.round()
    assert await scene.chores() == []
    assert (await until_state(scene.world, sandbox.id, S.RUNNING, S.PAUSED)).end_reason is None
