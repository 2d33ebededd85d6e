"""The seam to the bus: wake-ups between tasks and processes of one installation. The truth stands in the records; a notice only says where to look.

A notice may be lost (a reader that was away, a restart of Redis): whoever acts on notices also looks by itself at the times its own deadline sets.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Notice:
    """`topic`: 'sandbox', 'event', 'key', 'session', 'delivery', 'template'; `subject`: the id it is about, `team_id`: whose."""

    topic: str
    subject: str = ""
    team_id: str = ""


class Bus(Protocol):
    """Delivered to every subscriber of every process, in the order of each publisher."""

    async def open(self) -> None:
        """Raises HostUnavailable when the bus cannot be reached."""
        ...

    async def close(self) -> None: ...

    async def publish(self, *notices: Notice) -> None:
        """Returns when the bus took them; a bus that cannot be reached is logged and is no error of the publisher, whose records are written."""
        ...

    def subscribe(self, *topics: str) -> AbstractAsyncContextManager[AsyncIterator[Notice]]:
        """Notices of these topics (none given: of all) from the moment the context is entered. The queue is bounded: a reader that falls behind loses the
        oldest and gets Notice('lost') in their place, upon which it looks for itself; so it does when the bus was away. Ends when the bus is closed."""
        ...
