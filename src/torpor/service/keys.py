"""API keys of a team: made, listed, revoked. A key is shown once and kept as its SHA-256."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from torpor.model.errors import Forbidden, InvalidInput, NotFound
from torpor.model.records import ApiKey, AuditEntry, AuditStatus, Event, Role
from torpor.ports.bus import Notice
from torpor.ports.records import Records
from torpor.service.access import Access, digest_of
from torpor.service.caller import Caller
from torpor.service.context import Context
from torpor.service.first import NATIVE_PREFIX, new_key
from torpor.service.idempotency import recall
from torpor.service.scopes import SCOPES

UNNAMED = "Unnamed API Key"
MOST_KEYS = 1000


class Keys:
    def __init__(self, context: Context, access: Access) -> None:
        self._context = context
        self._access = access

    async def create(
        self,
        caller: Caller,
        name: str,
        scopes: Collection[str] = (),
        expires_at: float | None = None,
        *,
        shape: str = NATIVE_PREFIX,
        idempotency_key: str = "",
        request_digest: str = "",
    ) -> tuple[ApiKey, str]:
        """The key's record and the key itself, which begins with `shape`. `scopes` empty: everything a key may do. Asked again with the same idempotency key:
        the same record, with a new secret in the place of the one that got lost; without one ('') when the first was used already. Raises Forbidden (a member
        who is neither owner nor admin; a limited key that would make a wider one), InvalidInput (an unknown scope, an expiry that is over, too many keys),
        Conflict (the idempotency key was used for another request), NotFound (what it made was revoked)."""
        _demand_standing(caller)
        if unknown := set(scopes) - set(SCOPES):
            raise InvalidInput(f"There is no scope {min(unknown)[:40]!r}.", mend=f"Known: {', '.join(SCOPES)}.")
        if caller.scopes and not (scopes and set(scopes) <= caller.scopes):
            raise Forbidden("A limited key makes keys within its own scopes only.")
        now, secret = self._context.now(), new_key(shape)
        if expires_at is not None and expires_at <= now:
            raise InvalidInput("The expiry is over already.")
        ordered = tuple(scope for scope in SCOPES if scope in scopes)
        key = ApiKey(self._context.new_id(), caller.team_id, name.strip() or UNNAMED, digest_of(secret), secret[:10], now, caller.actor.id, ordered, expires_at)
        async with self._context.store.write() as records:
            await records.hold(f"keys {caller.team_id}")
            if known := await recall(records, caller.team_id, idempotency_key, request_digest, key.id, now):
                return await self._again(records, caller, known, secret)
            if len([each for each in await records.keys.list(caller.team_id) if each.revoked_at is None]) >= MOST_KEYS:
                raise InvalidInput(f"A team may have {MOST_KEYS} keys.", mend="Revoke some.")
            await records.keys.add(key)
            await self._tell(records, caller, key, "create", AuditStatus.SUCCESS, now)
        return key, secret

    async def _again(self, records: Records, caller: Caller, key_id: str, secret: str) -> tuple[ApiKey, str]:
        renewed = await records.keys.renew(caller.team_id, key_id, digest_of(secret), secret[:10])
        key = await records.keys.get(caller.team_id, key_id)
        if key is None or key.revoked_at is not None:
            raise NotFound("What this Idempotency-Key made is gone.")
        return key, secret if renewed else ""

    async def list(self, caller: Caller) -> Sequence[ApiKey]:
        """Those that were not revoked, newest first."""
        async with self._context.store.look() as records:
            found = [key for key in await records.keys.list(caller.team_id) if key.revoked_at is None]
        return sorted(found, key=lambda key: key.created_at, reverse=True)

    async def creators(self, keys: Sequence[ApiKey]) -> Mapping[str, str]:
        """The e-mail addresses of the users among those who made these keys, by their ids."""
        async with self._context.store.look() as records:
            users = [await records.users.get(made_by) for made_by in {key.created_by for key in keys} if made_by]
        return {user.id: user.email for user in users if user is not None}

    async def rename(self, caller: Caller, key_id: str, name: str) -> None:
        """Raises Forbidden as create, NotFound as revoke."""
        _demand_standing(caller)
        now = self._context.now()
        async with self._context.store.write() as records:
            before = await _valid(records, caller, key_id)
            await records.keys.rename(caller.team_id, key_id, name.strip() or UNNAMED)
            await self._tell(records, caller, replace(before, name=name), "rename", AuditStatus.SUCCESS, now)
        self._access.forget()

    async def revoke(self, caller: Caller, key_id: str) -> ApiKey:
        """Counts at once in this process, within a second in all. Raises Forbidden as create, NotFound for one that is unknown, another team's or revoked."""
        _demand_standing(caller)
        now = self._context.now()
        async with self._context.store.write() as records:
            before = await _valid(records, caller, key_id)
            await records.keys.revoke(caller.team_id, key_id, now)
            await self._tell(records, caller, before, "revoke", AuditStatus.WARNING, now)
        self._access.forget()
        await self._context.bus.publish(Notice("key", key_id, caller.team_id), Notice("event", key_id, caller.team_id))
        return replace(before, revoked_at=now)

    async def _tell(self, records: Records, caller: Caller, key: ApiKey, action: str, status: AuditStatus, now: float) -> None:
        entry = AuditEntry(caller.team_id, now, caller.actor, "api_key", key.id, action, status, metadata={"name": key.name}, request_id=caller.request_id)
        await records.audit.add(entry)
        await records.events.add(
            Event(caller.team_id, now, f"api_key.{action}d" if action.endswith("e") else f"api_key.{action}", "api_key", key.id, caller.actor)
        )


def _demand_standing(caller: Caller) -> None:
    """Raises Forbidden for a person who is neither owner nor admin of the team; a key has been judged by its scopes."""
    if caller.user_id and caller.role not in (Role.OWNER, Role.ADMIN):
        raise Forbidden("Keys are for the team's owners and admins.")


async def _valid(records: Records, caller: Caller, key_id: str) -> ApiKey:
    """Raises NotFound for one that is unknown, another team's or revoked."""
    key = await records.keys.get(caller.team_id, key_id)
    if key is None or key.revoked_at is not None:
        raise NotFound("There is no such key.")
    return key
