"""Tries that are counted: of a password, a sign-up, a search. After the free ones each further try has to wait twice as long as the one before.

The count is on record, so a restart forgets nothing and several servers count together; it is taken before the try is looked at, so that many at once are no
way around it. After a rest the count starts anew.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address, ip_network

from torpor.model.errors import RateLimited
from torpor.model.records import Tries
from torpor.ports.records import Records
from torpor.service.context import Context


@dataclass(frozen=True, slots=True)
class Rule:
    """`free` tries cost no waiting; then `first` seconds, doubled with each, `most` at most. `rest` seconds without a try forget all."""

    name: str
    free: int
    first: float
    most: float
    rest: float = 3600.0


PASSWORD = Rule("password", 5, 2.0, 300.0)
"""Of one account. What others do wrong keeps its owner out for `most` at worst; logins and keys that exist work on."""
LOGIN = Rule("login", 30, 2.0, 900.0)
"""From one address."""
SIGN_UP = Rule("sign-up", 5, 60.0, 3600.0)
"""From one address."""
SEARCH = Rule("search", 60, 2.0, 60.0, rest=300.0)
"""Of one user."""


def of_address(rule: Rule, address: str) -> tuple[Rule, str]:
    """An IPv6 network of 64 bits counts as one address: whoever has one of it has them all."""
    try:
        found = ip_address(address)
    except ValueError:
        return rule, address[:64]
    if isinstance(found, IPv6Address):
        return rule, str(found.ipv4_mapped or ip_network((found, 64), strict=False))
    return rule, str(found)


def of_account(rule: Rule, name: str) -> tuple[Rule, str]:
    """By e-mail address or user id, whether there is such an account or not."""
    return rule, hashlib.sha256(name.casefold().encode("utf-8", "surrogatepass")).hexdigest()[:40]


class Guard:
    def __init__(self, context: Context) -> None:
        self._context = context

    async def take(self, *tries: tuple[Rule, str]) -> None:
        """Counts one try of each. Raises RateLimited when one of them must wait still; then none is counted."""
        now = self._context.now()
        async with self._context.store.write() as records:
            await records.hold(*(_subject(rule, whose) for rule, whose in tries))
            for rule, whose in tries:
                await self._count(records, rule, _subject(rule, whose), now)

    async def _count(self, records: Records, rule: Rule, subject: str, now: float) -> None:
        before = await records.keys.tries(subject)
        if before is not None and before.blocked_until > now:
            raise RateLimited("Too many tries.", math.ceil(before.blocked_until - now))
        count = 1 if before is None or now - before.last_at > rule.rest else before.count + 1
        pause = min(rule.most, rule.first * 2.0 ** min(30, count - rule.free)) if count >= rule.free else 0.0
        await records.keys.set_tries(Tries(subject, count, now, now + pause if pause else 0.0))


async def forget(records: Records, tries: tuple[Rule, str]) -> None:
    """After a try that went well."""
    await records.keys.forget_tries(_subject(*tries))


def _subject(rule: Rule, whose: str) -> str:
    return f"{rule.name} {whose}"
