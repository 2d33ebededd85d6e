"""How a user's account ends: deleted by its owner, or switched off by an administrator. Teams that nobody is left to own go with it, or come to rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torpor.model.errors import AccountReason, AccountRefused, InvalidInput, NotFound
from torpor.model.records import Actor, AuditStatus, Chore, ChoreKind, Member, Role, Team, User, UserStatus
from torpor.ports.bus import Notice
from torpor.ports.records import Records
from torpor.service.accounts import of_user
from torpor.service.admission import HOLD
from torpor.service.audit import of_platform
from torpor.service.caller import Caller
from torpor.service.context import Context
from torpor.service.teams import begin_deletion, of_team, other_owners

ADMINS = "administrators"
"""Held while their number may fall."""
DELETED_NAME = "deleted-user"


class Leaving:
    def __init__(self, context: Context) -> None:
        self._context = context

    async def delete(self, caller: Caller, confirmation: str) -> Sequence[Chore]:
        """The caller's own account: what names the person is removed from it, logins end, keys the user made are revoked, teams the user owns alone are
        deleted (the chores are what is left to do for that). Raises InvalidInput unless `confirmation` is the account's e-mail address, AccountRefused
        (OWNS_TEAM: a team with other members, LAST_ADMIN)."""
        async with self._context.store.look() as records:
            held = [of_team(team.id) for team, _ in await records.teams.of_user(caller.user_id)]
        async with self._context.store.write() as records:
            await records.hold(HOLD, ADMINS, of_user(caller.user_id), *held)
            user, now = await records.users.get(caller.user_id), self._context.now()
            if user is None or user.status is UserStatus.DELETED:
                raise NotFound("There is no such user.")
            if confirmation.strip().casefold() != user.email.casefold():
                raise InvalidInput("Send the account's e-mail address as `confirmation`.")
            await demand_other_admin(records, user)
            chores = [
                await begin_deletion(self._context, records, team, caller.actor, caller.request_id)
                for team, member in await records.teams.of_user(user.id)
                if await self._owns_alone(records, team, member)
            ]
            await self._erase(records, user, now)
            await of_platform(records, caller.actor, now, ("user", user.id), "delete", AuditStatus.WARNING, caller.request_id)
        await tell_all(self._context, user.id)
        return chores

    async def _owns_alone(self, records: Records, team: Team, member: Member) -> bool:
        if member.role is not Role.OWNER or await other_owners(records, team.id, member.user_id):
            return False
        if len(await records.teams.members(team.id)) > 1:
            raise AccountRefused(
                AccountReason.OWNS_TEAM, f"The team {team.name!r} has members and no other owner.", mend="Make one its owner, or delete the team."
            )
        return True

    async def _erase(self, records: Records, user: User, now: float) -> None:
        gone = replace(
            user,
            email=f"deleted-{user.id}@deleted.invalid",
            name=DELETED_NAME,
            password="",
            status=UserStatus.DELETED,
            is_admin=False,
            version=user.version + 1,
            deleted_at=now,
        )
        await records.users.update(gone)
        await shut_out(records, user.id, now)
        await records.keys.end_sessions_of(user.id)
        for team, _ in await records.teams.of_user(user.id):
            await records.teams.remove_member(team.id, user.id)


async def shut_out(records: Records, user_id: str, now: float) -> None:
    """No key or token of the user works any more. Logins are void by the user's new version; who still comes with one is told why."""
    await records.keys.revoke_of_user(user_id, now)
    for purpose in ("activation", "reset"):
        await records.keys.drop_tokens(purpose, user_id)


async def rest_teams(context: Context, records: Records, user_id: str, actor: Actor) -> list[Chore]:
    """For a user who is switched off: teams that are left without an active owner come to rest; nothing of theirs is lost."""
    chores = []
    for team, member in await records.teams.of_user(user_id):
        if member.role is Role.OWNER and not await other_owners(records, team.id, user_id):
            chores.append(Chore(context.new_id(), ChoreKind.REST_TEAM, team.id, context.now(), {"actor": actor.id}))
            await records.chores.add(chores[-1])
    return chores


async def demand_other_admin(records: Records, user: User) -> None:
    """Inside a transaction that holds ADMINS. Raises AccountRefused LAST_ADMIN."""
    if user.is_admin and user.status is UserStatus.ACTIVE and await records.users.count_admins() <= 1:
        raise AccountRefused(AccountReason.LAST_ADMIN, "The installation keeps an administrator.", mend="Make another user one first.")


async def tell_all(context: Context, user_id: str) -> None:
    """After a change that ends logins and keys."""
    await context.bus.publish(Notice("session", user_id), Notice("key", user_id))
