"""Users' accounts: sign-up, activation, login, and what users do with their own account.

    (sign-up, or made by an administrator) -> INACTIVE -> ACTIVE <-> DISABLED
                                              ACTIVE -> DELETED

There is no mail. How an account becomes active is the installation's choice: with OPEN sign-up whoever signs up is given the activation token at once; with
APPROVAL an administrator activates the account; with CLOSED only administrators make accounts, and hand their activation token over themselves.
"""

from __future__ import annotations

import secrets
from dataclasses import replace
from enum import Enum

from torpor.model.errors import AccountReason, AccountRefused, InvalidInput, NotFound, Unauthorized
from torpor.model.records import AuditStatus, Member, Role, Team, Token, User, UserStatus
from torpor.ports.bus import Notice
from torpor.ports.records import Records
from torpor.service import tries
from torpor.service.access import digest_of
from torpor.service.audit import Audit, of_platform
from torpor.service.caller import Caller
from torpor.service.context import Context
from torpor.service.names import check_email, check_person, new_slug, team_of
from torpor.service.passwords import Passwords, check_password
from torpor.service.sessions import Client, Login, Sessions, actor_of
from torpor.service.tries import Guard, of_account, of_address

ACTIVATION = "activation"
RESET = "reset"
SIGN_UP_SECONDS = 1800.0
"""How long an activation token of a sign-up is good, and how long the address is kept for whoever signed up with it."""
REASON = AccountReason


class SignUp(Enum):
    CLOSED = "closed"
    APPROVAL = "approval"
    OPEN = "open"


class Accounts:
    def __init__(self, context: Context, sessions: Sessions, passwords: Passwords, guard: Guard, audit: Audit, sign_up: SignUp) -> None:
        self._context = context
        self._sessions = sessions
        self._passwords = passwords
        self._guard = guard
        self._audit = audit
        self._sign_up = sign_up

    # -- coming in -------------------------------------------------------------------------------------------------------------------

    async def sign_up(self, client: Client, email: str, password: str, name: str) -> str:
        """The activation token; '' where an administrator has to approve, and then whether the address was taken is not told. Raises InvalidInput, RateLimited,
        AccountRefused (SIGNUP_CLOSED, EMAIL_TAKEN, SIGNUP_COOLDOWN: taken by somebody who did not activate it yet)."""
        if self._sign_up is SignUp.CLOSED:
            raise AccountRefused(REASON.SIGNUP_CLOSED, "Accounts are made by this installation's administrators.")
        email, name = check_email(email), check_person(name)
        check_password(password)
        await self._guard.take(of_address(tries.SIGN_UP, client.address))
        hashed, now = await self._passwords.hash(password), self._context.now()
        user = User(self._context.new_id(), email, name, hashed, UserStatus.INACTIVE, False, now)
        async with self._context.store.write() as records:
            await records.hold(f"e-mail {digest_of(email.casefold())}")
            if not await self._is_free(records, email, now):
                return ""
            await records.users.add(user)
            await of_platform(records, actor_of(user), now, ("user", user.id), "sign_up", AuditStatus.SUCCESS, client.request_id, email=email)
            if self._sign_up is SignUp.APPROVAL:
                return ""
            return await new_token(self._context, records, ACTIVATION, user.id, SIGN_UP_SECONDS)

    async def _is_free(self, records: Records, email: str, now: float) -> bool:
        """One who signed up long ago and never came is forgotten for it, but not while somebody may approve."""
        there = await records.users.by_email(email)
        if there is None:
            return True
        if self._sign_up is SignUp.APPROVAL:
            return False
        if there.status is not UserStatus.INACTIVE or not there.password:
            raise AccountRefused(REASON.EMAIL_TAKEN, "There is an account with this e-mail address.")
        if now - there.created_at < SIGN_UP_SECONDS:
            raise AccountRefused(REASON.SIGNUP_COOLDOWN, "Somebody just signed up with this e-mail address.")
        await records.keys.drop_tokens(ACTIVATION, there.id)
        await records.users.remove(there.id)
        return True

    async def activate(self, client: Client, token: str, password: str = "") -> Login:
        """Makes the account active, gives it its first team, and logs in. `password` sets one; it is needed when the account has none. Raises InvalidInput,
        RateLimited, AccountRefused (INVALID_TOKEN, ALREADY_ACTIVATED): then the token is as good as before."""
        await self._guard.take(of_address(tries.LOGIN, client.address))
        hashed, now = await self._passwords.hash(password) if password else "", self._context.now()
        async with self._context.store.write() as records:
            user = await self._by_token(records, ACTIVATION, token, now)
            if user.status is not UserStatus.INACTIVE:
                raise AccountRefused(REASON.ALREADY_ACTIVATED, "The account is active already.")
            if not (hashed or user.password):
                raise InvalidInput("The account has no password yet.", mend="Send one as `password`.")
            user = replace(user, status=UserStatus.ACTIVE, password=hashed or user.password, version=user.version + 1)
            await records.users.update(user)
            await records.keys.drop_tokens(ACTIVATION, user.id)
            await of_platform(records, actor_of(user), now, ("user", user.id), "activate", AuditStatus.SUCCESS, client.request_id, email=user.email)
            return await self._let_in(records, user, client)

    async def log_in(self, client: Client, email: str, password: str) -> Login:
        """Into the user's default team. Raises Unauthorized, whatever it is that does not fit; RateLimited; and once the password was right AccountRefused
        (NOT_ACTIVATED, DISABLED)."""
        account = of_account(tries.PASSWORD, email.strip())
        await self._guard.take(of_address(tries.LOGIN, client.address), account)
        async with self._context.store.look() as records:
            user = await records.users.by_email(email.strip())
        right = await self._passwords.matches(user.password if user is not None else "", password)
        if user is None or not right:
            await self._audit.denied_login(user.id if user else "", "login", "password", client.address, client.request_id)
            raise Unauthorized("The e-mail address or the password is wrong.")
        if user.status is not UserStatus.ACTIVE:
            await self._audit.denied_login(user.id, "login", user.status.value, client.address, client.request_id)
            reason = REASON.NOT_ACTIVATED if user.status is UserStatus.INACTIVE else REASON.DISABLED
            raise AccountRefused(reason, f"The account is {user.status.value}.")
        renewed = await self._passwords.hash(password) if self._passwords.is_dated(user.password) else ""
        async with self._context.store.write() as records:
            await records.hold(of_user(user.id))
            present = await records.users.get(user.id)
            if present is None or present.version != user.version:
                raise Unauthorized("The e-mail address or the password is wrong.")
            if renewed:
                await records.users.update(replace(present, password=renewed))
            await tries.forget(records, account)
            login = await self._let_in(records, present, client)
            await of_platform(
                records, actor_of(user), self._context.now(), ("user", user.id), "login", AuditStatus.SUCCESS, client.request_id, address=client.address
            )
            return login

    async def switch_team(self, caller: Caller, client: Client, team_id: str) -> Login:
        """A new login for another of the user's teams. A browser's takes the place of the one it has. Raises NotFound."""
        async with self._context.store.write() as records:
            member, team = await records.teams.member(team_id, caller.user_id), await records.teams.get(team_id)
            if member is None or team is None or team.deleted_at is not None:
                raise NotFound("There is no such team.")
            user = await _present(records, caller.user_id)
            if client.wants_cookie and (old := await records.keys.session_by_id(user.id, caller.session_id)) is not None:
                await records.keys.end_session(old.digest)
            return await self._sessions.begin(records, user, team_id, member.role, client)

    async def _let_in(self, records: Records, user: User, client: Client) -> Login:
        teams = await records.teams.of_user(user.id)
        if teams:
            team, member = teams[0]
        else:
            team, member = await first_team(self._context, records, user)
        return await self._sessions.begin(records, user, team.id, member.role, client)

    # -- one's own account -----------------------------------------------------------------------------------------------------------

    async def me(self, caller: Caller) -> User:
        async with self._context.store.look() as records:
            return await _present(records, caller.user_id)

    async def rename(self, caller: Caller, name: str) -> User:
        """Raises InvalidInput."""
        name, now = check_person(name), self._context.now()
        async with self._context.store.write() as records:
            await records.hold(of_user(caller.user_id))
            user = replace(await _present(records, caller.user_id), name=name)
            await records.users.update(user)
            await of_platform(records, caller.actor, now, ("user", user.id), "rename", AuditStatus.INFO, caller.request_id, new_name=name)
        return user

    async def again(self, caller: Caller, client: Client) -> Login:
        """Another login beside the present one, for the same team: its token names the user as the user is now."""
        async with self._context.store.write() as records:
            user = await _present(records, caller.user_id)
            assert caller.role is not None
            return await self._sessions.begin(records, user, caller.team_id, caller.role, client)

    async def change_password(self, caller: Caller, current: str, new: str) -> None:
        """Every other login of the user ends. Raises InvalidInput, RateLimited, AccountRefused (WRONG_PASSWORD)."""
        check_password(new)
        account = of_account(tries.PASSWORD, caller.user_id)
        await self._guard.take(account)
        before = await self.me(caller)
        if not await self._passwords.matches(before.password, current):
            await self._audit.denied_login(caller.user_id, "change_password", "password", "", caller.request_id)
            raise AccountRefused(REASON.WRONG_PASSWORD, "The present password is wrong.")
        hashed = await self._passwords.hash(new)
        async with self._context.store.write() as records:
            await records.hold(of_user(caller.user_id))
            user = await _present(records, caller.user_id)
            if user.version != before.version:
                raise AccountRefused(REASON.WRONG_PASSWORD, "The present password is wrong.")
            own = await records.keys.session_by_id(user.id, caller.session_id)
            await self._set_password(records, user, hashed, own.digest if own else "", caller.request_id)
            await tries.forget(records, account)
        await self._context.bus.publish(Notice("session", caller.user_id))

    async def reset_password(self, client: Client, token: str, new: str) -> None:
        """With a token that an administrator handed over. Every login of the user ends. Raises InvalidInput, RateLimited, AccountRefused (INVALID_TOKEN)."""
        check_password(new)
        await self._guard.take(of_address(tries.LOGIN, client.address))
        hashed, now = await self._passwords.hash(new), self._context.now()
        async with self._context.store.write() as records:
            user = await self._by_token(records, RESET, token, now)
            await records.keys.drop_tokens(RESET, user.id)
            await self._set_password(records, user, hashed, "", client.request_id)
            await tries.forget(records, of_account(tries.PASSWORD, user.email))
        await self._context.bus.publish(Notice("session", user.id))

    async def _set_password(self, records: Records, user: User, hashed: str, kept: str, request_id: str) -> None:
        after = replace(user, password=hashed, version=user.version + 1)
        await records.users.update(after)
        await records.keys.end_sessions_of(user.id, but=kept)
        if kept:
            await records.keys.keep_session(kept, after.version)
        await of_platform(records, actor_of(user), self._context.now(), ("user", user.id), "change_password", AuditStatus.WARNING, request_id)

    async def _by_token(self, records: Records, purpose: str, token: str, now: float) -> User:
        found = await records.keys.use_token(digest_of(token), purpose, now)
        if found is not None:
            await records.hold(of_user(found.subject))
        user = await records.users.get(found.subject) if found is not None else None
        if user is None or user.status is UserStatus.DELETED:
            raise AccountRefused(REASON.INVALID_TOKEN, "The token is unknown, over or used.")
        return user


def of_user(user_id: str) -> str:
    """What is held while a user's record is changed."""
    return f"user {user_id}"


async def new_token(context: Context, records: Records, purpose: str, user_id: str, seconds: float) -> str:
    """A secret for one use, in the place of those that the user has for this purpose."""
    secret = secrets.token_hex(16)
    await records.keys.drop_tokens(purpose, user_id)
    await records.keys.add_token(Token(digest_of(secret), purpose, user_id, context.now() + seconds))
    return secret


async def first_team(context: Context, records: Records, user: User) -> tuple[Team, Member]:
    """A team of the user's own, for one who is in none."""
    now = context.now()
    team = Team(context.new_id(), team_of(user.name), new_slug(), now)
    member = Member(team.id, user.id, Role.OWNER, now, is_default=True)
    await records.teams.add(team)
    await records.teams.add_member(member)
    actor = actor_of(user)
    await of_platform(records, actor, now, ("team", team.id), "create", AuditStatus.SUCCESS, name=team.name)
    return team, member


async def _present(records: Records, user_id: str) -> User:
    user = await records.users.get(user_id)
    if user is None or user.status is not UserStatus.ACTIVE:
        raise AccountRefused(REASON.DEACTIVATED, "The account is deactivated.")
    return user
