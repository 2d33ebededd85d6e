"""API keys, logins, single-use tokens, counted tries and chores, in their tables. Of secrets only digests are here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import bindparam, case, delete, insert, or_, select, update

from torpor.model.records import ApiKey, Chore, Session, Token, Tries
from torpor.storage import tables
from torpor.storage.connection import Connection
from torpor.storage.rows import CHORE, KEY, SESSION, TOKEN, TRIES

_K = tables.api_keys.c
_S = tables.sessions.c
_N = tables.tokens.c
_T = tables.tries.c
_C = tables.chores.c

_ADD = insert(tables.api_keys)
_BY_DIGEST = select(*KEY.columns).where(_K.digest == bindparam("digest"))
_OF_TEAM = (_K.team_id == bindparam("team"), _K.id == bindparam("which"))
_GET = select(*KEY.columns).where(*_OF_TEAM)
_LIST = select(*KEY.columns).where(_K.team_id == bindparam("team")).order_by(_K.created_at.desc(), _K.id.desc())
_FIRST_TIME = case((_K.revoked_at.is_(None), bindparam("at")), else_=_K.revoked_at)
_REVOKE = update(tables.api_keys).where(*_OF_TEAM).values(revoked_at=_FIRST_TIME).returning(*KEY.columns)
_REVOKE_OF_USER = (
    update(tables.api_keys).where(_K.created_by == bindparam("who"), _K.revoked_at.is_(None)).values(revoked_at=bindparam("at")).returning(*KEY.columns)
)
_REVOKE_IN_TEAM = (
    update(tables.api_keys)
    .where(_K.created_by == bindparam("who"), _K.team_id == bindparam("team"), _K.revoked_at.is_(None))
    .values(revoked_at=bindparam("at"))
    .returning(*KEY.columns)
)
_RENEW = update(tables.api_keys).where(*_OF_TEAM, _K.last_used_at.is_(None), _K.revoked_at.is_(None))
_RENAME = update(tables.api_keys).where(*_OF_TEAM)
_TOUCH = (
    update(tables.api_keys)
    .where(_K.id == bindparam("which"), or_(_K.last_used_at.is_(None), _K.last_used_at < bindparam("at")))
    .values(last_used_at=bindparam("at"))
)

_ADD_SESSION = insert(tables.sessions)
_SESSION = select(*SESSION.columns).where(_S.digest == bindparam("digest"))
_END_SESSION = delete(tables.sessions).where(_S.digest == bindparam("digest"))
_END_SESSIONS_OF = delete(tables.sessions).where(_S.user_id == bindparam("who"), _S.digest != bindparam("but"))
_SESSIONS_OF = select(*SESSION.columns).where(_S.user_id == bindparam("who")).order_by(_S.created_at.desc(), _S.id.desc())
_SESSION_BY_ID = select(*SESSION.columns).where(_S.user_id == bindparam("who"), _S.id == bindparam("which"))
_KEEP_SESSION = update(tables.sessions).where(_S.digest == bindparam("which"))
_FORGET_SESSIONS = delete(tables.sessions).where(_S.expires_at <= bindparam("now"))

_ADD_TOKEN = insert(tables.tokens)
_USE_TOKEN = delete(tables.tokens).where(_N.digest == bindparam("digest"), _N.purpose == bindparam("purpose")).returning(*TOKEN.columns)
_FORGET_TOKENS = delete(tables.tokens).where(_N.expires_at <= bindparam("now"))
_DROP_TOKENS = delete(tables.tokens).where(_N.purpose == bindparam("purpose"), _N.subject == bindparam("subject"))

_TRIES = select(*TRIES.columns).where(_T.subject == bindparam("subject"))
_ADD_TRIES = insert(tables.tries)
_SET_TRIES = update(tables.tries).where(_T.subject == bindparam("which"))
_DROP_TRIES = delete(tables.tries).where(_T.subject == bindparam("subject"))
_FORGET_TRIES = delete(tables.tries).where(_T.last_at < bindparam("before"), _T.blocked_until <= bindparam("now"))

_ADD_CHORE = insert(tables.chores)
_SAME_CHORE = select(_C.id).where(_C.kind == bindparam("kind"), _C.subject == bindparam("subject"))
_CHORES = select(*CHORE.columns).order_by(_C.created_at, _C.id)
_REMOVE_CHORE = delete(tables.chores).where(_C.id == bindparam("which"))


class KeyRows:
    """See ports.records.Keys."""

    def __init__(self, connection: Connection) -> None:
        self._db = connection

    async def add(self, key: ApiKey) -> None:
        await self._db.change(_ADD, KEY.row(key))

    async def by_digest(self, digest: str) -> ApiKey | None:
        rows = await self._db.fetch(_BY_DIGEST, {"digest": digest})
        return KEY.record(rows[0]) if rows else None

    async def get(self, team_id: str, key_id: str) -> ApiKey | None:
        rows = await self._db.fetch(_GET, {"team": team_id, "which": key_id})
        return KEY.record(rows[0]) if rows else None

    async def list(self, team_id: str) -> Sequence[ApiKey]:
        return [KEY.record(row) for row in await self._db.fetch(_LIST, {"team": team_id}, heavy=True)]

    async def revoke(self, team_id: str, key_id: str, at: float) -> ApiKey | None:
        rows = await self._db.fetch(_REVOKE, {"team": team_id, "which": key_id, "at": at})
        return KEY.record(rows[0]) if rows else None

    async def revoke_of_user(self, user_id: str, at: float, *, team_id: str = "") -> Sequence[ApiKey]:
        statement, team = (_REVOKE_IN_TEAM, {"team": team_id}) if team_id else (_REVOKE_OF_USER, {})
        return [KEY.record(row) for row in await self._db.fetch(statement, {"who": user_id, "at": at, **team}, heavy=True)]

    async def renew(self, team_id: str, key_id: str, digest: str, prefix: str) -> bool:
        return await self._db.change(_RENEW, {"team": team_id, "which": key_id, "digest": digest, "prefix": prefix}) > 0

    async def rename(self, team_id: str, key_id: str, name: str) -> None:
        await self._db.change(_RENAME, {"team": team_id, "which": key_id, "name": name})

    async def touch(self, used: Mapping[str, float]) -> None:
        if used:
            # In one order, so that two processes never wait for each other.
            await self._db.change(_TOUCH, [{"which": key_id, "at": at} for key_id, at in sorted(used.items())], heavy=True)

    async def add_session(self, session: Session) -> None:
        await self._db.change(_ADD_SESSION, SESSION.row(session))

    async def session(self, digest: str) -> Session | None:
        rows = await self._db.fetch(_SESSION, {"digest": digest})
        return SESSION.record(rows[0]) if rows else None

    async def end_session(self, digest: str) -> None:
        await self._db.change(_END_SESSION, {"digest": digest})

    async def sessions_of(self, user_id: str) -> Sequence[Session]:
        return [SESSION.record(row) for row in await self._db.fetch(_SESSIONS_OF, {"who": user_id})]

    async def session_by_id(self, user_id: str, session_id: str) -> Session | None:
        rows = await self._db.fetch(_SESSION_BY_ID, {"who": user_id, "which": session_id})
        return SESSION.record(rows[0]) if rows else None

    async def keep_session(self, digest: str, user_version: int) -> None:
        await self._db.change(_KEEP_SESSION, {"which": digest, "user_version": user_version})

    async def end_sessions_of(self, user_id: str, *, but: str = "") -> None:
        await self._db.change(_END_SESSIONS_OF, {"who": user_id, "but": but})

    async def add_token(self, token: Token) -> None:
        await self._db.change(_ADD_TOKEN, TOKEN.row(token))

    async def use_token(self, digest: str, purpose: str, now: float) -> Token | None:
        rows = await self._db.fetch(_USE_TOKEN, {"digest": digest, "purpose": purpose})
        token = TOKEN.record(rows[0]) if rows else None
        return token if token and token.expires_at > now else None

    async def drop_tokens(self, purpose: str, subject: str) -> None:
        await self._db.change(_DROP_TOKENS, {"purpose": purpose, "subject": subject})

    async def tries(self, subject: str) -> Tries | None:
        rows = await self._db.fetch(_TRIES, {"subject": subject})
        return TRIES.record(rows[0]) if rows else None

    async def set_tries(self, tries: Tries) -> None:
        if not await self._db.change(_SET_TRIES, {"which": tries.subject, **TRIES.row(tries)}):
            await self._db.change(_ADD_TRIES, TRIES.row(tries))

    async def forget_tries(self, subject: str) -> None:
        await self._db.change(_DROP_TRIES, {"subject": subject})

    async def forget_expired(self, now: float, *, tries_before: float = 0.0) -> None:
        await self._db.change(_FORGET_SESSIONS, {"now": now}, heavy=True)
        await self._db.change(_FORGET_TOKENS, {"now": now}, heavy=True)
        await self._db.change(_FORGET_TRIES, {"now": now, "before": tries_before}, heavy=True)


class ChoreRows:
    """See ports.records.Chores."""

    def __init__(self, connection: Connection) -> None:
        self._db = connection

    async def add(self, chore: Chore) -> None:
        if not await self._db.fetch(_SAME_CHORE, {"kind": chore.kind.value, "subject": chore.subject}):
            await self._db.change(_ADD_CHORE, CHORE.row(chore))

    async def list(self) -> Sequence[Chore]:
        return [CHORE.record(row) for row in await self._db.fetch(_CHORES, heavy=True)]

    async def remove(self, chore_id: str) -> None:
        await self._db.change(_REMOVE_CHORE, {"which": chore_id})
