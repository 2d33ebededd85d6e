"""The audit log: what was done by whom, and what was refused. What is done is written where it is done, in the same transaction; here it is read, and refusals
are added."""

from __future__ import annotations

from collections.abc import Collection

from torpor.model.records import PLATFORM_TEAM, SYSTEM, Actor, AuditEntry, AuditStatus, Role
from torpor.ports.records import Page, Records
from torpor.service.caller import Caller
from torpor.service.context import Context

REFUSAL_SECONDS = 60.0
"""The same refusal of the same caller is written once in this time: whoever is refused cannot fill the log."""
_MOST_REMEMBERED = 10_000


class Audit:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._refused: dict[tuple[str, str], float] = {}

    async def list(
        self,
        caller: Caller,
        *,
        resource_types: Collection[str] = (),
        actions: Collection[str] = (),
        before: float | None = None,
        cursor: str = "",
        limit: int = 50,
    ) -> Page[AuditEntry]:
        """The team's, newest first; with `before` (seconds since 1970) of what happened earlier only. What concerns its administration is for owners, admins
        and unlimited keys. Raises InvalidInput for a foreign cursor."""
        sees_all = caller.role in (Role.OWNER, Role.ADMIN) or caller.is_admin or (not caller.user_id and not caller.scopes)
        scopes = ("team", "admin") if sees_all else ("team",)
        async with self._context.store.look() as records:
            return await records.audit.list(
                caller.team_id, scopes=scopes, resource_types=resource_types, actions=actions, before=before, cursor=cursor, limit=limit
            )

    async def refused(self, caller: Caller, what: str, reason: str) -> None:
        """Notes that a known caller was not allowed `what`."""
        if self._is_new(caller.actor.id, what):
            entry = AuditEntry(
                caller.team_id, self._context.now(), caller.actor, "request", what, "refuse", AuditStatus.DENIED, "admin", {"reason": reason}, caller.request_id
            )
            await self._write(entry)

    async def denied_login(self, user_id: str, action: str, reason: str, address: str, request_id: str) -> None:
        """Notes in the platform's log that somebody was not let in. `user_id` '': there is no such account."""
        if self._is_new(user_id or address, f"{action} {reason}"):
            metadata = {"reason": reason, "address": address}
            entry = AuditEntry(PLATFORM_TEAM, self._context.now(), SYSTEM, "user", user_id, action, AuditStatus.DENIED, "admin", metadata, request_id)
            await self._write(entry)

    def _is_new(self, who: str, what: str) -> bool:
        now = self._context.now()
        if now - self._refused.get((who, what), -REFUSAL_SECONDS) < REFUSAL_SECONDS:
            return False
        if len(self._refused) >= _MOST_REMEMBERED:
            self._refused.clear()
        self._refused[who, what] = now
        return True

    async def _write(self, entry: AuditEntry) -> None:
        async with self._context.store.write() as records:
            await records.audit.add(entry)


async def of_platform(
    records: Records, actor: Actor, now: float, resource: tuple[str, str], action: str, status: AuditStatus, request_id: str = "", **metadata: str
) -> None:
    """An entry in the platform's log, about users and teams; `resource`: type and id."""
    await records.audit.add(AuditEntry(PLATFORM_TEAM, now, actor, *resource, action, status, "admin", metadata, request_id))
