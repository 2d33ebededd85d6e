"""Teams and their members. Who may do what is read from the records at each request:

                            member    admin    owner
    look, leave             yes       yes      yes, but the last owner stays
    rename                            yes      yes
    add, remove, change members       yes      yes
    the same to an owner                       yes, but a team keeps one
    delete                                     yes

A deleted team is gone at once: its keys and logins end with it. What it had is removed afterwards (service.chores).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torpor.model.errors import AccountReason, AccountRefused, Forbidden, InvalidInput, NotFound
from torpor.model.records import PLATFORM_TEAM, Actor, AuditEntry, AuditStatus, Chore, ChoreKind, Event, Member, Role, Team, User, UserStatus
from torpor.ports.bus import Notice
from torpor.ports.records import Page, Records
from torpor.service import tries
from torpor.service.admission import HOLD
from torpor.service.audit import of_platform
from torpor.service.caller import Caller
from torpor.service.context import Context
from torpor.service.idempotency import recall
from torpor.service.names import check_email, check_team, new_slug
from torpor.service.tries import Guard, of_account

MOST_TEAMS = 100
"""That one user may be in."""
MOST_MEMBERS = 1000
_ALL = (Role.OWNER, Role.ADMIN, Role.MEMBER)
_HEADS = (Role.OWNER, Role.ADMIN)


class Teams:
    """All of it is for people: an API key belongs to a team and has no say in it. Every method may raise NotFound for a team that the caller is no member of,
    and Forbidden for one whose member the caller is without acting for it now."""

    def __init__(self, context: Context, guard: Guard) -> None:
        self._context = context
        self._guard = guard

    # -- teams -----------------------------------------------------------------------------------------------------------------------

    async def list(self, caller: Caller) -> Sequence[tuple[Team, Member]]:
        """The caller's, the default one first."""
        async with self._context.store.look() as records:
            return await records.teams.of_user(caller.user_id)

    async def create(self, caller: Caller, name: str, *, idempotency_key: str = "", request_digest: str = "") -> tuple[Team, Member]:
        """With the caller as its owner. Raises InvalidInput (the name, too many teams), Conflict (the key was used for another request)."""
        name, now = check_team(name), self._context.now()
        team = Team(self._context.new_id(), name, new_slug(), now)
        async with self._context.store.write() as records:
            await records.hold(f"user {caller.user_id}")
            if known := await recall(records, caller.user_id, idempotency_key, request_digest, team.id, now):
                return await self._mine(records, caller.user_id, known)
            if len(await records.teams.of_user(caller.user_id)) >= MOST_TEAMS:
                raise InvalidInput(f"A user may be in {MOST_TEAMS} teams.", mend="Leave some.")
            member = Member(team.id, caller.user_id, Role.OWNER, now)
            await records.teams.add(team)
            await records.teams.add_member(member)
            await _tell(records, replace(caller, team_id=team.id), now, ("team", team.id), "create", AuditStatus.SUCCESS, name=name)
        return team, member

    async def get(self, caller: Caller, team_id: str) -> tuple[Team, Sequence[tuple[Member, User]]]:
        async with self._context.store.read() as records:
            team, _ = await self._standing(records, caller, team_id, _ALL)
            return team, await records.teams.members(team_id)

    async def rename(self, caller: Caller, team_id: str, name: str) -> None:
        """Raises InvalidInput."""
        name, now = check_team(name), self._context.now()
        async with self._context.store.write() as records:
            await records.hold(of_team(team_id))
            team, _ = await self._standing(records, caller, team_id, _HEADS)
            await records.teams.update(replace(team, name=name))
            await _tell(records, caller, now, ("team", team_id), "rename", AuditStatus.INFO, old_name=team.name, new_name=name)
        await self._context.bus.publish(Notice("event", team_id, team_id))

    async def delete(self, caller: Caller, team_id: str) -> Chore:
        """It is gone when this returns; the chore is what is left to do."""
        async with self._context.store.write() as records:
            await records.hold(HOLD, of_team(team_id))
            team, _ = await self._standing(records, caller, team_id, (Role.OWNER,))
            chore = await begin_deletion(self._context, records, team, caller.actor, caller.request_id)
        await self._context.bus.publish(Notice("key", "", team_id), Notice("session", "", team_id))
        return chore

    # -- members ---------------------------------------------------------------------------------------------------------------------

    async def add(self, caller: Caller, team_id: str, email: str) -> tuple[Member, User]:
        """As a plain member. Raises NotFound when there is no active account with this address, InvalidInput for one who is a member already, RateLimited."""
        email, now = check_email(email), self._context.now()
        await self._guard.take(of_account(tries.SEARCH, caller.user_id))
        async with self._context.store.write() as records:
            await records.hold(of_team(team_id))
            await self._standing(records, caller, team_id, _HEADS)
            user = await records.users.by_email(email)
            if user is None or user.status is not UserStatus.ACTIVE:
                raise NotFound("There is no account with this e-mail address.")
            if await records.teams.member(team_id, user.id) is not None:
                raise InvalidInput("The user is a member of the team already.")
            if len(await records.teams.members(team_id)) >= MOST_MEMBERS:
                raise InvalidInput(f"A team may have {MOST_MEMBERS} members.")
            member = Member(team_id, user.id, Role.MEMBER, now)
            await records.teams.add_member(member)
            await _tell(records, caller, now, ("member", user.id), "add", AuditStatus.SUCCESS, email=user.email, role=member.role.value)
        await self._context.bus.publish(Notice("event", user.id, team_id))
        return member, user

    async def set_role(self, caller: Caller, team_id: str, user_id: str, role: Role) -> None:
        """Raises NotFound, Forbidden (an owner is made and unmade by owners only), AccountRefused LAST_OWNER."""
        now = self._context.now()
        async with self._context.store.write() as records:
            await records.hold(of_team(team_id))
            member = await self._changeable(records, caller, team_id, user_id, also=role)
            if member.role is Role.OWNER and role is not Role.OWNER:
                await _demand_other_owner(records, team_id, user_id)
            await records.teams.set_role(team_id, user_id, role)
            await _tell(records, caller, now, ("member", user_id), "role_update", AuditStatus.INFO, old_role=member.role.value, new_role=role.value)
        await self._context.bus.publish(Notice("session", user_id, team_id), Notice("event", user_id, team_id))

    async def remove(self, caller: Caller, team_id: str, user_id: str) -> None:
        """The keys of the team that the user made are revoked. Raises as set_role."""
        now = self._context.now()
        async with self._context.store.write() as records:
            await records.hold(of_team(team_id))
            await self._changeable(records, caller, team_id, user_id)
            await self._part(records, caller, team_id, user_id, "remove", AuditStatus.WARNING, now)
        await self._told_of_parting(team_id, user_id)

    async def leave(self, caller: Caller, team_id: str) -> None:
        """As remove, of oneself. Raises Forbidden for the last owner."""
        now = self._context.now()
        async with self._context.store.write() as records:
            await records.hold(of_team(team_id))
            await self._standing(records, caller, team_id, _ALL)
            await self._part(records, caller, team_id, caller.user_id, "leave", AuditStatus.INFO, now)
        await self._told_of_parting(team_id, caller.user_id)

    async def search(self, caller: Caller, email: str, *, cursor: str = "", limit: int = 10) -> Page[User]:
        """Active users by the beginning of their address: those who share a team with the caller, and whoever is named in full. Raises InvalidInput,
        also for a foreign cursor, RateLimited."""
        if len(email) < 3 or "@" not in email or len(email) > 254:
            raise InvalidInput("An address is searched by 3 characters or more, with the @.")
        await self._guard.take(of_account(tries.SEARCH, caller.user_id))
        async with self._context.store.read() as records:
            return await records.users.search(email, seen_by=caller.user_id, cursor=cursor, limit=limit)

    # -- what they share -------------------------------------------------------------------------------------------------------------

    async def _standing(self, records: Records, caller: Caller, team_id: str, roles: Sequence[Role]) -> tuple[Team, Member]:
        team, member = await self._mine(records, caller.user_id, team_id)
        if caller.team_id != team_id:
            raise Forbidden("You act for another team.", mend="Switch to this one first.")
        if member.role not in roles:
            raise Forbidden(f"This is for the team's {' and '.join(f'{role.value}s' for role in roles)}.")
        return team, member

    async def _mine(self, records: Records, user_id: str, team_id: str) -> tuple[Team, Member]:
        team, member = await records.teams.get(team_id), await records.teams.member(team_id, user_id)
        if team is None or team.deleted_at is not None or member is None:
            raise NotFound("There is no such team.")
        return team, member

    async def _changeable(self, records: Records, caller: Caller, team_id: str, user_id: str, *, also: Role = Role.MEMBER) -> Member:
        _, own = await self._standing(records, caller, team_id, _HEADS)
        member = await records.teams.member(team_id, user_id)
        if member is None:
            raise NotFound("There is no such member.")
        if Role.OWNER in (member.role, also) and own.role is not Role.OWNER:
            raise Forbidden("An owner is made and unmade by owners only.")
        return member

    async def _part(self, records: Records, caller: Caller, team_id: str, user_id: str, action: str, status: AuditStatus, now: float) -> None:
        member = await records.teams.member(team_id, user_id)
        if member is not None and member.role is Role.OWNER:
            await _demand_other_owner(records, team_id, user_id)
        await records.teams.remove_member(team_id, user_id)
        revoked = await records.keys.revoke_of_user(user_id, now, team_id=team_id)
        await _tell(records, caller, now, ("member", user_id), action, status, revoked_keys=str(len(revoked)))

    async def _told_of_parting(self, team_id: str, user_id: str) -> None:
        await self._context.bus.publish(Notice("session", user_id, team_id), Notice("key", "", team_id), Notice("event", user_id, team_id))


def of_team(team_id: str) -> str:
    """What is held while a team or its members are changed."""
    return f"team {team_id}"


async def begin_deletion(context: Context, records: Records, team: Team, actor: Actor, request_id: str) -> Chore:
    """Inside a transaction that holds the admission of sandboxes and the team. Raises Forbidden for the platform's."""
    if team.id == PLATFORM_TEAM:
        raise Forbidden("The platform's team cannot be deleted.")
    now = context.now()
    chore = Chore(context.new_id(), ChoreKind.CLEAR_TEAM, team.id, now)
    await records.teams.update(replace(team, deleted_at=now))
    await records.chores.add(chore)
    await of_platform(records, actor, now, ("team", team.id), "delete", AuditStatus.WARNING, request_id, name=team.name)
    return chore


async def other_owners(records: Records, team_id: str, user_id: str) -> Sequence[User]:
    """Active owners of the team but this one."""
    return [
        user for member, user in await records.teams.members(team_id) if user.id != user_id and member.role is Role.OWNER and user.status is UserStatus.ACTIVE
    ]


async def _demand_other_owner(records: Records, team_id: str, user_id: str) -> None:
    if not await other_owners(records, team_id, user_id):
        raise AccountRefused(AccountReason.LAST_OWNER, "A team keeps an owner.", mend="Make another member its owner first, or delete the team.")


async def _tell(records: Records, caller: Caller, now: float, resource: tuple[str, str], action: str, status: AuditStatus, **metadata: str) -> None:
    """Of members only the team's heads read."""
    scope = "admin" if resource[0] == "member" else "team"
    await records.events.add(Event(caller.team_id, now, f"{resource[0]}.{action}", *resource, caller.actor, metadata))
    await records.audit.add(AuditEntry(caller.team_id, now, caller.actor, *resource, action, status, scope, metadata, caller.request_id))
