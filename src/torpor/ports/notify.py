"""The seams of notification: whoever carries a message to somebody else's server, and whoever keeps secrets unreadable in the records.

A tenant names the servers, so senders trust none of what they are told: see Senders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Message:
    """One event, ready to be sent. `delivery_id` is the same at every try, so that a receiver can tell a repetition. `payload`: JSON, for programs; `title`
    and `text` (lines): the same for people."""

    delivery_id: str
    payload: bytes
    title: str
    text: str


class Senders(Protocol):
    """Every provider. Addresses of the private, loopback, link-local and metadata kind are refused by what a name resolves to, at every call, and the
    address that was looked at is the one that is used; redirects are not followed; answers are read up to a bound and never shown."""

    async def prepare(self, provider: str, config: Mapping[str, str], present: Mapping[str, str] | None = None) -> dict[str, str]:
        """The config as it is to be kept: known keys only, with what is made where it is missing (the secret of a webhook; that of `present` goes on).
        Raises InvalidInput for an unknown provider, a missing or malformed value, a server that may not be reached or has no address."""
        ...

    async def send(self, provider: str, config: Mapping[str, str], message: Message) -> None:
        """Returns when the server took it. Raises Undelivered, within 30 s. After a cancel, or a lost answer, it may have arrived."""
        ...


class Sealer(Protocol):
    """Text that the records keep and only this installation can read."""

    def seal(self, text: str, about: str) -> str:
        """`about` names what the text belongs to: it opens under that name only."""
        ...

    def unseal(self, sealed: str, about: str) -> str:
        """Raises Corrupt: it was changed, belongs elsewhere, or was sealed with another key."""
        ...

    def derive(self, purpose: str) -> bytes:
        """32 bytes that only this installation can make, other ones for each purpose, the same as long as the key is."""
        ...
