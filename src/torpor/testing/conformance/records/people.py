"""Users, teams, members."""

from __future__ import annotations

from dataclasses import replace

import pytest

from torpor.model.errors import Conflict, InvalidInput, NotFound
from torpor.model.records import (
    Limits,
    Member,
    Role,
    SandboxState,
    Session,
    Team,
    TeamSample,
    TeamSummary,
    UserStatus,
    UserSummary,
)
from torpor.model.sandbox import base36
from torpor.testing.conformance.records.samples import ODD, OTHER, TEAM, StoreRig, a_channel, a_key, a_sandbox, a_user, an_event, whole


async def check_users(rig: StoreRig) -> None:
    store = await rig.open()
    ann = a_user(1, email="Ann@Example.org", is_admin=True, name=ODD)
    bob = a_user(2, email="anna@example.org", deleted_at=7.0, status=UserStatus.DELETED, is_admin=True, version=3)
    async with store.write() as records:
        assert await records.users.count_admins() == 0
        for one in (ann, bob):
            await records.users.add(one)
        assert [await records.users.get(one.id) for one in (ann, bob)] == [ann, bob]
        assert await records.users.by_email("aNN@example.ORG") == ann
        assert await records.users.by_email("nobody@example.org") is None
        assert (await records.users.count(), await records.users.count_admins()) == (2, 1)
        assert [one.id for one in await whole(lambda cursor: records.users.list(cursor=cursor, limit=1))] == [bob.id, ann.id]
        await records.users.remove(bob.id)
        assert await records.users.get(bob.id) is None
        with pytest.raises(NotFound):
            await records.users.update(bob)
    for taken in (replace(ann, id=base36(9)), replace(ann, email="other@example.org")):
        with pytest.raises(Conflict):
            async with store.write() as records:
                await records.users.add(taken)
    async with store.write() as records:
        await records.users.add(bob)
    with pytest.raises(Conflict):
        async with store.write() as records:
            await records.users.update(replace(bob, email="ANN@example.org"))


async def check_users_are_found_by_those_who_share_a_team(rig: StoreRig) -> None:
    store = await rig.open()
    everybody = {number: a_user(number, email=f"Ann{number}😀@example.org") for number in (3, 1, 2, 4, 5)}
    everybody[5] = replace(everybody[5], status=UserStatus.DELETED, deleted_at=7.0)
    async with store.write() as records:
        for team in (TEAM, OTHER):
            await records.teams.add(Team(team, team, team, 1.0))
        for user in everybody.values():
            await records.users.add(user)
        for team, number in ((TEAM, 1), (TEAM, 3), (TEAM, 5), (OTHER, 1), (OTHER, 3), (OTHER, 4)):
            await records.teams.add_member(Member(team, everybody[number].id, Role.MEMBER, 1.0))

    async def found(prefix: str, limit: int = 1, by: int = 1) -> list[int]:
        async with store.read() as records:
            pages = await whole(lambda cursor: records.users.search(prefix, seen_by=everybody[by].id, cursor=cursor, limit=limit))
        return [number for one in pages for number, user in everybody.items() if user == one]

    assert await found("ANN") == await found("ann", 10) == [1, 3, 4]
    assert await found("ann", by=2) == await found("%") == await found("ann1%") == []
    assert await found(everybody[2].email.upper()) == [2]  # a stranger, named in full
    assert await found(everybody[5].email) == []
    async with store.read() as records:
        foreign = (await records.users.list(limit=1)).next
        with pytest.raises(InvalidInput):
            await records.users.search("ann", seen_by=everybody[1].id, cursor=foreign)


async def check_teams_and_members(rig: StoreRig) -> None:
    store = await rig.open()
    one, two = Team(TEAM, "One", "one", 1.0, limits=Limits(1, 2, 3, 2**40)), Team(OTHER, "Two", "two", 2.0)
    ann, bob = a_user(1), a_user(2)
    async with store.write() as records:
        for team in (one, two):
            await records.teams.add(team)
        for user in (ann, bob):
            await records.users.add(user)
        first = Member(TEAM, ann.id, Role.OWNER, 5.0)
        second = Member(TEAM, bob.id, Role.MEMBER, 4.0)
        default = Member(OTHER, ann.id, Role.ADMIN, 6.0, is_default=True)
        for member in (first, second, default):
            await records.teams.add_member(member)
        assert await records.teams.get(TEAM) == one
        assert await records.teams.members(TEAM) == [(second, bob), (first, ann)]
        assert await records.teams.of_user(ann.id) == [(two, default), (one, first)]
        await records.teams.set_role(TEAM, bob.id, Role.ADMIN)
        assert await records.teams.member(TEAM, bob.id) == replace(second, role=Role.ADMIN)
        await records.teams.remove_member(TEAM, bob.id)
        assert await records.teams.member(TEAM, bob.id) is None
        await records.teams.set_limits(OTHER, Limits(sandboxes=9))
        assert await records.teams.get(OTHER) == replace(two, limits=Limits(sandboxes=9))
        await records.teams.update(replace(two, deleted_at=9.0))
        assert await records.teams.of_user(ann.id) == [(one, first)]
        assert await records.teams.count() == 2
        assert [team.id for team in await whole(lambda cursor: records.teams.list(cursor=cursor, limit=1))] == [OTHER, TEAM]
        with pytest.raises(NotFound):
            await records.teams.set_role(TEAM, bob.id, Role.ADMIN)
        with pytest.raises(NotFound):
            await records.teams.remove_member(TEAM, bob.id)
        with pytest.raises(NotFound):
            await records.teams.update(Team("x", "x", "x", 1.0))
    with pytest.raises(Conflict):
        async with store.write() as records:
            await records.teams.add_member(replace(first, role=Role.MEMBER))


async def check_a_teams_things_go_with_it(rig: StoreRig) -> None:
    store = await rig.open()
    async with store.write() as records:
        for team_id, number in ((TEAM, 1), (OTHER, 2)):
            await records.keys.add(a_key(number, team_id=team_id))
            await records.keys.add_session(Session(f"session-{number}", base36(1), team_id, "csrf", 1.0, 100.0, 1))
            await records.channels.add(a_channel(number, team_id=team_id))
            await records.events.add(an_event(number, team_id=team_id))
            await records.figures.add_samples([TeamSample(team_id, 1.0, 1, 1, 1)])
            await records.teams.add_member(Member(team_id, base36(1), Role.OWNER, 1.0))
        await records.teams.remove_things(TEAM)
        for team_id, number, left in ((TEAM, 1, 0), (OTHER, 2, 1)):
            assert len(await records.keys.list(team_id)) == left
            assert (await records.keys.session(f"session-{number}") is not None) == bool(left)
            assert len(await records.channels.list(team_id)) == left
            assert (await records.teams.member(team_id, base36(1)) is not None) == bool(left)
            assert len((await records.channels.deliveries(team_id, base36(number))).items) == left
            assert len(await records.figures.samples(team_id, 0.0)) == left


async def check_summaries_for_administrators(rig: StoreRig) -> None:
    store = await rig.open()
    one, two = Team(TEAM, "One", "one", 1.0), Team(OTHER, "Two", "two", 2.0, deleted_at=5.0)
    ann, bob = a_user(1), a_user(2)
    async with store.write() as records:
        for team in (one, two):
            await records.teams.add(team)
        for user in (ann, bob):
            await records.users.add(user)
        for team_id, user, role, at in ((TEAM, ann, Role.OWNER, 6.0), (TEAM, bob, Role.OWNER, 5.0), (OTHER, ann, Role.OWNER, 5.0)):
            await records.teams.add_member(Member(team_id, user.id, role, at))
        for number, state in enumerate((SandboxState.RUNNING, SandboxState.PAUSED, SandboxState.STOPPED)):
            await records.sandboxes.add(a_sandbox(number, state=state))
        await records.channels.add(a_channel(1))
    async with store.read() as records:
        assert list((await records.teams.summaries()).items) == [TeamSummary(two, 1, ann, 0, 0), TeamSummary(one, 2, bob, 2, 1)]
        assert list((await records.teams.summaries(offset=1)).items) == [TeamSummary(one, 2, bob, 2, 1)]
        assert [each.team.id for each in await whole(lambda cursor: records.teams.summaries(cursor=cursor, limit=1))] == [OTHER, TEAM]
        assert list((await records.users.summaries()).items) == [UserSummary(bob, 1, 1), UserSummary(ann, 1, 1)]
        assert [each.user.id for each in await whole(lambda cursor: records.users.summaries(cursor=cursor, limit=1))] == [bob.id, ann.id]
        assert list((await records.users.summaries(offset=2)).items) == []
    async with store.write() as records:
        await records.teams.remove_things(TEAM)
        assert (await records.teams.summaries(offset=1)).items[0] == TeamSummary(one, 0, None, 2, 0)
