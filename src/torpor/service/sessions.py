"""Logins of people: begun, listed, ended. A browser's is a cookie with a CSRF secret beside it, any other's a token to send as bearer."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from torpor.model.errors import NotFound
from torpor.model.records import Actor, ActorKind, AuditStatus, Role, Session, User
from torpor.ports.bus import Notice
from torpor.ports.records import Records
from torpor.service.access import Access, digest_of
from torpor.service.audit import of_platform
from torpor.service.caller import Caller
from torpor.service.context import DAY, Context

COOKIE_SECONDS = 7 * DAY
TOKEN_SECONDS = 6 * 3600.0
MOST_LOGINS = 50
"""Of one user; the oldest ends for one more."""


@dataclass(frozen=True, slots=True)
class Client:
    """Where a request comes from. `wants_cookie`: it is a browser's page. `agent`: what it calls itself."""

    address: str = ""
    agent: str = ""
    wants_cookie: bool = False
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Login:
    """A login that was begun. `cookie` and `token`: the one of them that was wanted, the other ''; shown this once."""

    user: User
    team_id: str
    session: Session
    cookie: str = ""
    token: str = ""


class Sessions:
    def __init__(self, context: Context, access: Access) -> None:
        self._context = context
        self._access = access

    async def begin(self, records: Records, user: User, team_id: str, role: Role, client: Client) -> Login:
        """Inside the transaction of whatever let the user in."""
        now, secret = self._context.now(), secrets.token_hex(32)
        open_ones = await records.keys.sessions_of(user.id)
        for oldest in open_ones[MOST_LOGINS - 1 :]:
            await records.keys.end_session(oldest.digest)
        session = Session(
            digest=digest_of(secret),
            user_id=user.id,
            team_id=team_id,
            csrf=secrets.token_hex(20) if client.wants_cookie else "",
            created_at=now,
            expires_at=now + (COOKIE_SECONDS if client.wants_cookie else TOKEN_SECONDS),
            user_version=user.version,
            id=self._context.new_id(),
            address=client.address[:64],
            agent=printable(client.agent)[:200],
        )
        await records.keys.add_session(session)
        if client.wants_cookie:
            return Login(user, team_id, session, cookie=secret)
        return Login(user, team_id, session, token=self._access.sign(secret, session, user, role))

    async def list(self, caller: Caller) -> Sequence[Session]:
        """The caller's own that are not over, newest first."""
        now = self._context.now()
        async with self._context.store.look() as records:
            user = await records.users.get(caller.user_id)
            found = await records.keys.sessions_of(caller.user_id)
        return [one for one in found if one.expires_at > now and user is not None and one.user_version == user.version]

    async def own(self, caller: Caller) -> Session:
        """The login of this request. Raises NotFound when it ended meanwhile."""
        async with self._context.store.look() as records:
            session = await records.keys.session_by_id(caller.user_id, caller.session_id)
        if session is None:
            raise NotFound("There is no such login.")
        return session

    async def end(self, caller: Caller, session_id: str) -> None:
        """One of the caller's own, at once. Raises NotFound."""
        async with self._context.store.write() as records:
            session = await records.keys.session_by_id(caller.user_id, session_id)
            if session is None:
                raise NotFound("There is no such login.")
            await records.keys.end_session(session.digest)
            action = "logout" if session_id == caller.session_id else "end_login"
            await of_platform(records, caller.actor, self._context.now(), ("user", caller.user_id), action, AuditStatus.INFO, caller.request_id)
        await self._context.bus.publish(Notice("session", caller.user_id))


def actor_of(user: User) -> Actor:
    return Actor(ActorKind.USER, user.id, user.name)


def printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)
