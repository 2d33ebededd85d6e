"""From a credential to who is calling. Secrets are never kept: keys, logins and tickets are found by their SHA-256.

A key's caller is remembered for CACHE_SECONDS, so that a request costs no look into the records; a revocation is heard of over the bus, and counts at once
here and within that time wherever the bus was not heard. People are looked up at each request: what is changed about them counts at once.

A login's token is a JWT (RFC 7519) around the same kind of secret that a cookie holds, so that neither the records nor the signing key alone make one.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jwt

from torpor.model.errors import AccountReason, AccountRefused, Unauthorized
from torpor.model.records import Actor, ActorKind, ApiKey, Role, Session, Token, User, UserStatus
from torpor.ports.records import Records
from torpor.service.caller import Caller
from torpor.service.context import Context

CACHE_SECONDS = 1.0
TICKET_SECONDS = 30.0
TOUCH_SECONDS = 10.0
"""Uses of keys are noted this often, many at once."""
_TICKET = "ticket"
_MOST_CACHED = 10_000
_SIGNING = "login signing key"
"""Its name among the installation's values."""
_ALGORITHM = "HS256"


def digest_of(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """A login's caller, and what a browser's changing request must show beside its cookie."""

    caller: Caller
    csrf: str


class Access:
    """Opened after the store and the bus, closed before them."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._known: dict[str, tuple[float, ApiKey]] = {}
        self._used: dict[str, float] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._signing = ""

    async def open(self) -> None:
        async with self._context.store.write() as records:
            self._signing = await records.memory.set_value(_SIGNING, secrets.token_hex(32), only_new=True)
        self._tasks = [asyncio.create_task(self._listen(), name="revocations"), asyncio.create_task(self._note(), name="key-use")]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._write_used()

    # -- keys ------------------------------------------------------------------------------------------------------------------------

    async def by_key(self, secret: str) -> Caller:
        """Raises Unauthorized for a key that is unknown, revoked or expired, or whose team is gone."""
        digest, now = digest_of(secret), self._context.now()
        cached = self._known.get(digest)
        key = cached[1] if cached is not None and now - cached[0] < CACHE_SECONDS else await self._look_up(digest, now)
        caller = _holder(key, now)
        self._used[key.id] = now
        return caller

    async def _look_up(self, digest: str, now: float) -> ApiKey:
        async with self._context.store.look() as records:
            key = await records.keys.by_digest(digest)
            if key is None or not await _is_there(records, key.team_id):
                self._known.pop(digest, None)
                raise Unauthorized("The key is unknown.")
        if len(self._known) >= _MOST_CACHED:
            self._known.clear()
        self._known[digest] = (now, key)
        return key

    def forget(self) -> None:
        """After a revocation here: no key is taken from memory."""
        self._known.clear()

    async def _listen(self) -> None:
        async with self._context.bus.subscribe("key", "session") as notices:
            async for _ in notices:
                self.forget()

    async def _note(self) -> None:
        while True:
            await self._context.sleep_until(self._context.now() + TOUCH_SECONDS)
            await self._write_used()

    async def _write_used(self) -> None:
        used, self._used = self._used, {}
        if used:
            async with self._context.store.write() as records:
                await records.keys.touch(used)

    # -- people ----------------------------------------------------------------------------------------------------------------------

    async def by_session(self, token: str) -> LoggedIn:
        """By a cookie's value or a login's token. Raises Unauthorized for a login that is unknown, over, older than the user's present password, or of a team
        that the user is no member of any more; AccountRefused for a disabled account."""
        secret = self._secret_in(token) if token.count(".") == 2 else token
        async with self._context.store.look() as records:
            return await self._of_login(records, await records.keys.session(digest_of(secret)))

    async def _of_login(self, records: Records, session: Session | None) -> LoggedIn:
        user = await records.users.get(session.user_id) if session is not None else None
        if session is None or user is None or session.expires_at <= self._context.now():
            raise Unauthorized("The login is over.")
        if user.status is not UserStatus.ACTIVE:
            raise AccountRefused(AccountReason.DEACTIVATED, "The account is deactivated.")
        if session.user_version != user.version:
            raise Unauthorized("The login is over.")
        member = await records.teams.member(session.team_id, user.id)
        if member is None or not await _is_there(records, session.team_id):
            raise Unauthorized("The login's team is not the user's any more.", mend="Log in again.")
        actor = Actor(ActorKind.USER, user.id, user.name)
        caller = Caller(session.team_id, actor, user_id=user.id, role=member.role, is_admin=user.is_admin, session_id=session.id)
        return LoggedIn(caller, session.csrf)

    def sign(self, secret: str, session: Session, user: User, role: Role) -> str:
        """The token of a login whose secret this is. What it says of the user is for whoever shows it; it is not relied on."""
        claims = {
            "sub": f"usr-{user.id}",
            "team_id": f"team-{session.team_id}",
            "role": role.value,
            "email": user.email,
            "name": user.name,
            "is_admin": user.is_admin,
            "iat": int(session.created_at),
            "exp": int(session.expires_at),
            "jti": secret,
        }
        return jwt.encode(claims, self._signing, algorithm=_ALGORITHM)

    def _secret_in(self, token: str) -> str:
        """Raises Unauthorized. When it is over is judged by the record, which has the clock of everything else."""
        checks: dict[str, Any] = {"require": ["exp", "jti"], "verify_exp": False, "verify_iat": False}
        try:
            claims: Mapping[str, Any] = jwt.decode(token, self._signing, algorithms=[_ALGORITHM], options=checks)  # type: ignore[arg-type]
        except jwt.PyJWTError:
            raise Unauthorized("The login is over.") from None
        secret = claims["jti"]
        if not isinstance(secret, str) or "typ" in claims:
            raise Unauthorized("The login is over.")
        return secret

    # -- tickets ---------------------------------------------------------------------------------------------------------------------

    async def ticket(self, caller: Caller) -> str:
        """A secret that stands for this caller once, for TICKET_SECONDS: for a browser's WebSocket or event stream."""
        secret = secrets.token_hex(20)
        data = {"team_id": caller.team_id, "user_id": caller.user_id, "session_id": caller.session_id}
        token = Token(digest_of(secret), _TICKET, caller.actor.id, self._context.now() + TICKET_SECONDS, data)
        async with self._context.store.write() as records:
            await records.keys.add_token(token)
        return secret

    async def by_ticket(self, ticket: str) -> Caller:
        """Its maker, as the maker is now. Raises Unauthorized for a ticket that is unknown, over or used, and what the maker's own credential would be refused
        with."""
        now = self._context.now()
        async with self._context.store.write() as records:
            token = await records.keys.use_token(digest_of(ticket), _TICKET, now)
        if token is None:
            raise Unauthorized("The ticket is unknown, over or used.")
        data = token.data
        async with self._context.store.look() as records:
            if data["user_id"]:
                return (await self._of_login(records, await records.keys.session_by_id(data["user_id"], data["session_id"]))).caller
            key = await records.keys.get(data["team_id"], token.subject)
            if key is None or not await _is_there(records, key.team_id):
                raise Unauthorized("The key is unknown.")
            return _holder(key, now)


def _holder(key: ApiKey, now: float) -> Caller:
    """Raises Unauthorized."""
    if key.revoked_at is not None or (key.expires_at is not None and key.expires_at <= now):
        raise Unauthorized("The key was revoked or has expired.")
    return Caller(key.team_id, Actor(ActorKind.API_KEY, key.id, key.name), scopes=frozenset(key.scopes))


async def _is_there(records: Records, team_id: str) -> bool:
    team = await records.teams.get(team_id)
    return team is not None and team.deleted_at is None
