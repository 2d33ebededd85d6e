"""Passwords: argon2id (RFC 9106), in threads, few at a time: each takes memory and a good part of a second of a core.

An unknown account costs what a known one does, so the time of an answer says nothing.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from torpor.model.errors import InvalidInput, RateLimited

T = TypeVar("T")

SHORTEST = 8
LONGEST = 1024
"""Characters of a password."""
_AT_ONCE = 2
_MOST_WAITING = 50


class Passwords:
    """`time_cost` passes over `memory_kib` KiB; tests make it cheap."""

    def __init__(self, *, time_cost: int = 3, memory_kib: int = 65536) -> None:
        self._hasher = PasswordHasher(time_cost=time_cost, memory_cost=memory_kib, parallelism=1)
        self._turn = asyncio.Semaphore(_AT_ONCE)
        self._waiting = 0
        self._nobody = ""

    async def hash(self, password: str) -> str:
        """Raises InvalidInput for one that is too short or too long, RateLimited when many wait already."""
        check_password(password)
        return await self._in_turn(lambda: self._hasher.hash(password))

    async def matches(self, stored: str, password: str) -> bool:
        """Whether `stored` is of this password. `stored` '': no, after the time that a comparison takes. Raises RateLimited."""
        if len(password) > LONGEST:
            password = ""

        def compare() -> bool:
            if not self._nobody:
                self._nobody = self._hasher.hash(secrets.token_hex(16))
            try:
                return self._hasher.verify(stored or self._nobody, password) and bool(stored)
            except (VerificationError, InvalidHashError):
                return False

        return await self._in_turn(compare)

    def is_dated(self, stored: str) -> bool:
        """Whether it was hashed at another cost than is usual now."""
        return self._hasher.check_needs_rehash(stored)

    async def _in_turn(self, work: Callable[[], T]) -> T:
        if self._waiting >= _MOST_WAITING:
            raise RateLimited("Too many people log in at this moment.", 5)
        self._waiting += 1
        try:
            async with self._turn:
                return await asyncio.to_thread(work)
        finally:
            self._waiting -= 1


def check_password(password: str) -> None:
    """Raises InvalidInput."""
    if not SHORTEST <= len(password) <= LONGEST:
        raise InvalidInput(f"A password has {SHORTEST} to {LONGEST} characters.")
    if any("\ud800" <= character <= "\udfff" for character in password):
        raise InvalidInput("A password is whole characters.")
