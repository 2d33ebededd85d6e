"""The client itself, for programs with an event loop. That for programs without one, in `synchronous`, is made from these classes by `faces`."""

from __future__ import annotations

from typing import Self

from torpor.client.events import AsyncEvents
from torpor.client.sandboxes import AsyncSandboxes
from torpor.client.team import AsyncAudit, AsyncKeys, AsyncTemplates
from torpor.client.transport import Http, where

RETRIES = 4


class AsyncClient:
    """A torpor server, and a key to it; a context, or to be closed.

    `url`, `api_key` and `ca_file` (PEM, for a server's own authority) come from TORPOR_URL (http://127.0.0.1:8080), TORPOR_API_KEY and TORPOR_CA_FILE unless
    given. `retries`: how often a request is sent again, where that is safe, after a pause that respects the server's Retry-After. Raises ConfigurationError.
    """

    def __init__(self, url: str | None = None, api_key: str | None = None, *, ca_file: str | None = None, retries: int = RETRIES) -> None:
        self._http = Http(where(url, api_key, ca_file), retries=retries)
        self._sandboxes = AsyncSandboxes(self._http)
        self._templates = AsyncTemplates(self._http)
        self._keys = AsyncKeys(self._http)
        self._audit = AsyncAudit(self._http)
        self._events = AsyncEvents(self._http)

    @property
    def url(self) -> str:
        return self._http.where.url

    @property
    def sandboxes(self) -> AsyncSandboxes:
        return self._sandboxes

    @property
    def templates(self) -> AsyncTemplates:
        return self._templates

    @property
    def keys(self) -> AsyncKeys:
        return self._keys

    @property
    def audit(self) -> AsyncAudit:
        return self._audit

    @property
    def events(self) -> AsyncEvents:
        return self._events

    async def close(self) -> None:
        """Closes its connections. Commands and sandboxes run on."""
        await self._http.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
