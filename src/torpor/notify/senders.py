"""All providers, by name: what their config holds, and how they are told."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping

from torpor.model.errors import InvalidInput
from torpor.notify import chats, webhook
from torpor.notify.chats import Chats
from torpor.notify.client import Client
from torpor.notify.guard import MOST_URL, server_of
from torpor.ports.notify import Message

PROVIDERS: Mapping[str, tuple[str, ...]] = {
    "webhook": ("url",),
    "slack": ("webhook_url",),
    "discord": ("webhook_url",),
    "teams": ("webhook_url",),
    "googlechat": ("webhook_url",),
    "telegram": ("bot_token", "chat_id"),
    "matrix": ("homeserver_url", "access_token", "room_id"),
}
"""Provider -> the keys that its config must have."""
SECRET = "secret"  # noqa: S105 - a key's name
_VALUE = re.compile(r"[\x21-\x7e]+\Z")


class Senders:
    """See ports.notify.Senders."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._chats = Chats(client)

    def close(self) -> None:
        self._chats.close()

    async def prepare(self, provider: str, config: Mapping[str, str], present: Mapping[str, str] | None = None) -> dict[str, str]:
        if provider not in PROVIDERS:
            raise InvalidInput(f"There is no provider {provider[:40]!r}.", mend=f"Known: {', '.join(PROVIDERS)}.")
        kept = {key: _checked(key, config.get(key, "")) for key in PROVIDERS[provider]}
        if provider == "webhook":
            given = config.get(SECRET, "") or (present or {}).get(SECRET, "") or secrets.token_hex(32)
            await self._client.guard.check(*server_of(kept["url"]))
            return kept | {SECRET: _checked(SECRET, given)}
        host, port = chats.server(provider, kept)
        await self._chats.check(provider, kept)
        await self._client.guard.check(host, port)
        return kept

    async def send(self, provider: str, config: Mapping[str, str], message: Message) -> None:
        if provider == "webhook":
            await webhook.send(self._client, config, message)
        else:
            await self._chats.send(provider, config, message)


def _checked(key: str, value: str) -> str:
    """Raises InvalidInput."""
    value = value.strip()
    if not value:
        raise InvalidInput(f"The config lacks {key}.")
    if len(value) > MOST_URL or not _VALUE.match(value):
        raise InvalidInput(f"{key} has up to {MOST_URL} visible ASCII characters.")
    return value
