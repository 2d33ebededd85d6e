"""What an Idempotency-Key made before, inside the transaction that would make it."""

from __future__ import annotations

from torpor.model.errors import Conflict
from torpor.model.records import Remembered
from torpor.ports.records import Records


async def recall(records: Records, owner: str, key: str, digest: str, making: str, now: float) -> str:
    """The id of what this key made for this owner (a team, or a user), '' the first time or without a key: then `making` is remembered. Raises Conflict when
    the key was used for another request."""
    if not key:
        return ""
    known = await records.memory.begin(Remembered(owner, key, digest, making, now))
    if known is None:
        return ""
    if known.request != digest:
        raise Conflict("This Idempotency-Key was used for another request.")
    return known.result
