"""What belongs to the team beside its sandboxes: templates and snapshots, API keys, the audit log."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any, Literal

from torpor.client.answers import AuditEntry, Key, Template, read, read_list
from torpor.client.errors import BadAnswer
from torpor.client.transport import Http, segment


class AsyncTemplates:
    """What sandboxes can start from: the team's own snapshots, and what the platform has for everybody."""

    def __init__(self, http: Http) -> None:
        self._http = http

    async def list(self, *, type: Literal["base", "snapshot"] | None = None, page_size: int = 200) -> AsyncIterator[Template]:
        """All, newest first, fetched in pages."""
        async for tree in self._http.pages("/v1/snapshots", {"type": type, "limit": page_size}):
            for each in read_list(Template, tree):
                yield each

    async def get(self, name: str) -> Template:
        """By name or id. Raises NotFound."""
        return read(Template, (await self._http.ask("GET", f"/v1/snapshots/{segment(name)}")).tree())

    async def delete(self, name: str) -> None:
        """Deletes a snapshot of the team. Raises Conflict while sandboxes that were started from it exist, Forbidden for the platform's, NotFound."""
        await self._http.ask("DELETE", f"/v1/snapshots/{segment(name)}", repeatable=False)


class AsyncKeys:
    """The team's API keys."""

    def __init__(self, http: Http) -> None:
        self._http = http

    async def create(self, name: str = "", *, scopes: Sequence[str] | None = None, expires_at: datetime | None = None) -> Key:
        """A new key; its secret is in `key`, and is never shown again. Raises ValueError for a time without a zone."""
        if expires_at is not None and expires_at.tzinfo is None:
            raise ValueError("expires_at needs a time zone")
        body: dict[str, Any] = {"name": name}
        body |= {"scopes": list(scopes)} if scopes else {}
        body |= {"expires_at": expires_at.isoformat()} if expires_at else {}
        headers = {"Idempotency-Key": secrets.token_hex(16)}
        return read(Key, (await self._http.ask("POST", "/v1/api-keys", json=body, headers=headers, repeatable=True)).tree())

    async def list(self, *, page_size: int = 200) -> AsyncIterator[Key]:
        """Those that were not revoked, newest first, fetched in pages."""
        async for tree in self._http.pages("/v1/api-keys", {"limit": page_size}):
            for each in read_list(Key, tree):
                yield each

    async def revoke(self, key_id: str) -> None:
        """It stops working at once. Raises NotFound."""
        await self._http.ask("DELETE", f"/v1/api-keys/{segment(key_id)}", repeatable=False)


class AsyncAudit:
    """What was done in the team and what was refused."""

    def __init__(self, http: Http) -> None:
        self._http = http

    async def list(self, *, actions: Sequence[str] = (), resource_types: Sequence[str] = (), page_size: int = 100) -> AsyncIterator[AuditEntry]:
        """Newest first, without gaps, fetched in pages."""
        before: str | None = None
        while before != "":
            params = {"limit": page_size, "before_id": before, "action": list(actions) or None, "resource_type": list(resource_types) or None}
            tree = (await self._http.ask("GET", "/v1/audit-logs", params=params)).tree()
            if not isinstance(tree, dict):
                raise BadAnswer("The server sent no audit log.")
            for each in read_list(AuditEntry, tree.get("items")):
                yield each
            before = str(tree.get("next_before_id") or "")
