"""What administrators of the installation do: users, teams, and the platform's own sandboxes, out of which its templates are made. That the caller is one was
read from the records with this very request."""

from __future__ import annotations

from dataclasses import replace

from torpor.lifecycle.sandbox import FINAL
from torpor.model.errors import AccountReason, AccountRefused, Forbidden, InvalidInput, NotFound
from torpor.model.records import PLATFORM_TEAM, AuditStatus, Chore, Limits, Sandbox, TeamSummary, Template, User, UserStatus, UserSummary
from torpor.ports.bus import Notice
from torpor.ports.records import Page, Records
from torpor.service.accounts import ACTIVATION, RESET, new_token, of_user
from torpor.service.admission import HOLD
from torpor.service.audit import of_platform
from torpor.service.caller import Caller
from torpor.service.chores import Chores
from torpor.service.context import DAY, Context
from torpor.service.idempotency import recall
from torpor.service.leaving import ADMINS, demand_other_admin, rest_teams, shut_out, tell_all
from torpor.service.names import check_email, check_person
from torpor.service.sandboxes import Sandboxes, Started
from torpor.service.teams import begin_deletion, of_team
from torpor.service.templates import Templates

INVITATION_SECONDS = 7 * DAY
RESET_SECONDS = 3600.0


class Admin:
    """Every change stands in the platform's audit log."""

    def __init__(self, context: Context, sandboxes: Sandboxes, templates: Templates, chores: Chores) -> None:
        self._context = context
        self._sandboxes = sandboxes
        self._templates = templates
        self._chores = chores

    # -- users -----------------------------------------------------------------------------------------------------------------------

    async def users(self, *, cursor: str = "", offset: int = 0, limit: int = 100) -> tuple[Page[UserSummary], int]:
        """A page, newest first, and how many there are."""
        async with self._context.store.read() as records:
            return await records.users.summaries(cursor=cursor, offset=offset, limit=limit), await records.users.count()

    async def create_user(self, caller: Caller, email: str, name: str, *, idempotency_key: str = "", request_digest: str = "") -> tuple[User, str]:
        """An account without a password, and the token it is activated with, for the administrator to hand over. Asked again with the same idempotency key: the
        same account with a new token, '' once it is active. Raises InvalidInput, AccountRefused EMAIL_TAKEN, Conflict."""
        now = self._context.now()
        user = User(self._context.new_id(), check_email(email), check_person(name), "", UserStatus.INACTIVE, False, now)
        async with self._context.store.write() as records:
            await records.hold(f"e-mail {user.email.casefold()}")
            if known := await recall(records, caller.user_id, idempotency_key, request_digest, user.id, now):
                there = await self._user(records, known)
                waits = there.status is UserStatus.INACTIVE
                return there, await new_token(self._context, records, ACTIVATION, known, INVITATION_SECONDS) if waits else ""
            if await records.users.by_email(user.email) is not None:
                raise AccountRefused(AccountReason.EMAIL_TAKEN, "There is an account with this e-mail address.")
            await records.users.add(user)
            await self._note(records, caller, user.id, "create", AuditStatus.SUCCESS, email=user.email)
            return user, await new_token(self._context, records, ACTIVATION, user.id, INVITATION_SECONDS)

    async def invitation(self, caller: Caller, user_id: str) -> str:
        """A new activation token of an account that was never active, in the place of the old one. Raises NotFound, AccountRefused ALREADY_ACTIVATED."""
        async with self._context.store.write() as records:
            await records.hold(of_user(user_id))
            user = await self._user(records, user_id)
            if user.status is not UserStatus.INACTIVE:
                raise AccountRefused(AccountReason.ALREADY_ACTIVATED, "The account was activated already.")
            await self._note(records, caller, user_id, "invite", AuditStatus.INFO, email=user.email)
            return await new_token(self._context, records, ACTIVATION, user_id, INVITATION_SECONDS)

    async def reset(self, caller: Caller, user_id: str) -> str:
        """A token to set another password with. Raises NotFound, AccountRefused (NOT_ACTIVATED, DISABLED)."""
        async with self._context.store.write() as records:
            await records.hold(of_user(user_id))
            user = await self._user(records, user_id)
            if user.status is not UserStatus.ACTIVE:
                reason = AccountReason.NOT_ACTIVATED if user.status is UserStatus.INACTIVE else AccountReason.DISABLED
                raise AccountRefused(reason, f"The account is {user.status.value}.")
            await self._note(records, caller, user_id, "reset_password", AuditStatus.WARNING, email=user.email)
            return await new_token(self._context, records, RESET, user_id, RESET_SECONDS)

    async def refuse(self, caller: Caller, user_id: str) -> None:
        """Removes an account that was never active. Raises NotFound, AccountRefused ALREADY_ACTIVATED."""
        async with self._context.store.write() as records:
            await records.hold(of_user(user_id))
            user = await self._user(records, user_id)
            if user.status is not UserStatus.INACTIVE or user.version > 1:
                raise AccountRefused(AccountReason.ALREADY_ACTIVATED, "The account was active.", mend="Deactivate it.")
            await records.keys.drop_tokens(ACTIVATION, user_id)
            await records.users.remove(user_id)
            await self._note(records, caller, user_id, "refuse", AuditStatus.WARNING, email=user.email)

    async def set_active(self, caller: Caller, user_id: str, *, active: bool) -> None:
        """Deactivation counts at once: logins and keys end; what runs in teams that nobody else owns is paused. Nothing is destroyed. Repeatable. Raises
        NotFound, InvalidInput (oneself; an account without a password cannot be made active)."""
        if user_id == caller.user_id and not active:
            raise InvalidInput("Nobody deactivates themselves.")
        chores: list[Chore] = []
        async with self._context.store.write() as records:
            await records.hold(ADMINS, of_user(user_id))
            user = await self._user(records, user_id)
            if active and not user.password:
                raise InvalidInput("The account has no password yet: its owner activates it.")
            if (user.status is UserStatus.ACTIVE) == active and user.status is not UserStatus.INACTIVE:
                return
            status = UserStatus.ACTIVE if active else UserStatus.DISABLED
            if not active:
                await demand_other_admin(records, user)
                await shut_out(records, user_id, self._context.now())
                chores = await rest_teams(self._context, records, user_id, caller.actor)
            await records.users.update(replace(user, status=status, version=user.version + 1))
            words = ("activate", AuditStatus.SUCCESS) if active else ("deactivate", AuditStatus.WARNING)
            await self._note(records, caller, user_id, *words, email=user.email)
        await tell_all(self._context, user_id)
        await self._chores.done(chores, 0)

    async def set_admin(self, caller: Caller, user_id: str, *, admin: bool) -> None:
        """Counts from the user's next request on. Raises NotFound, InvalidInput (an account that is not active), AccountRefused LAST_ADMIN."""
        async with self._context.store.write() as records:
            await records.hold(ADMINS, of_user(user_id))
            user = await self._user(records, user_id)
            if user.is_admin == admin:
                return
            if admin and user.status is not UserStatus.ACTIVE:
                raise InvalidInput(f"The account is {user.status.value}.")
            if not admin:
                await demand_other_admin(records, user)
            await records.users.update(replace(user, is_admin=admin))
            words = ("grant_admin", AuditStatus.SUCCESS) if admin else ("revoke_admin", AuditStatus.WARNING)
            await self._note(records, caller, user_id, *words, email=user.email)
        await self._context.bus.publish(Notice("session", user_id))

    # -- teams -----------------------------------------------------------------------------------------------------------------------

    async def teams(self, *, cursor: str = "", offset: int = 0, limit: int = 100) -> tuple[Page[TeamSummary], int]:
        """A page, newest first, and how many there are; deleted ones too."""
        async with self._context.store.read() as records:
            return await records.teams.summaries(cursor=cursor, offset=offset, limit=limit), await records.teams.count()

    async def delete_team(self, caller: Caller, team_id: str) -> Chore:
        """As Teams.delete. Raises NotFound, Forbidden (the platform's)."""
        async with self._context.store.write() as records:
            await records.hold(HOLD, of_team(team_id))
            team = await records.teams.get(team_id)
            if team is None or team.deleted_at is not None:
                raise NotFound("There is no such team.")
            chore = await begin_deletion(self._context, records, team, caller.actor, caller.request_id)
        await self._context.bus.publish(Notice("key", "", team_id), Notice("session", "", team_id))
        return chore

    async def set_limits(self, caller: Caller, team_id: str, limits: Limits) -> None:
        """None: the installation's. Raises NotFound."""
        now = self._context.now()
        async with self._context.store.write() as records:
            await records.hold(of_team(team_id))
            team = await records.teams.get(team_id)
            if team is None or team.deleted_at is not None:
                raise NotFound("There is no such team.")
            await records.teams.set_limits(team_id, limits)
            shown = {name: str(value) for name in Limits.__dataclass_fields__ if (value := getattr(limits, name)) is not None}
            await of_platform(records, caller.actor, now, ("team", team_id), "set_limits", AuditStatus.INFO, caller.request_id, **shown)

    # -- templates -------------------------------------------------------------------------------------------------------------------

    async def templates(self, *, cursor: str = "", limit: int = 100) -> Page[Template]:
        """Every team's, newest first."""
        async with self._context.store.look() as records:
            return await records.templates.list("", cursor=cursor, limit=limit)

    async def delete_template(self, caller: Caller, name: str) -> None:
        """One of the platform's. Raises as Templates.delete."""
        found = await self._templates.find(caller, name)
        if found.team_id != PLATFORM_TEAM:
            raise Forbidden("This is a team's own.")
        await self._templates.delete(caller, found.id)

    async def snapshot(self, caller: Caller, sandbox_id: str, name: str, *, idempotency_key: str = "", request_digest: str = "") -> Started:
        """A platform template of one of the platform's sandboxes, which ends when the template is there. One of that name stays until the new one is complete.
        Raises as Sandboxes.snapshot."""
        return await self._sandboxes.snapshot(
            caller,
            sandbox_id,
            name,
            overwrite=True,
            keep_running=False,
            platform=True,
            end_source=True,
            idempotency_key=idempotency_key,
            request_digest=request_digest,
        )

    async def ended(self, sandbox: Sandbox, template_id: str, seconds: float) -> bool:
        """Waits so long for the end of a sandbox that a template was made of; whether it has ended."""
        async with self._context.store.look() as records:
            chores = [chore for chore in await records.chores.list() if chore.subject == template_id]
        return sandbox.state in FINAL or await self._chores.done(chores, seconds)

    # --------------------------------------------------------------------------------------------------------------------------------

    async def _user(self, records: Records, user_id: str) -> User:
        user = await records.users.get(user_id)
        if user is None or user.status is UserStatus.DELETED:
            raise NotFound("There is no such user.")
        return user

    async def _note(self, records: Records, caller: Caller, user_id: str, action: str, status: AuditStatus, **metadata: str) -> None:
        await of_platform(records, caller.actor, self._context.now(), ("user", user_id), action, status, caller.request_id, **metadata)


def page_of(number: int, per_page: int) -> int:
    """How many come before the page of this number, which counts from 1."""
    return (number - 1) * per_page


def pages_of(total: int, per_page: int) -> int:
    return -(-total // per_page)
