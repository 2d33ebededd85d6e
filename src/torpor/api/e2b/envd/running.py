"""What this server remembers of commands: how far somebody has been told their output, and when one that ended may be forgotten.

Output reaches those who listen. When nobody does, the guest keeps the last of it, and whoever comes next is told what nobody has heard; what was heard once is
not repeated. That a command ended can be heard for RETAINED seconds more.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from contextlib import suppress

from torpor.model.errors import TorporError
from torpor.ports.guest import Guest, Output, StreamName

RETAINED = 30.0
KEPT_OUTPUT = 256 << 10
"""Bytes of a command's output that the guest keeps while nobody listens."""
_LATEST = 1 << 55
"""As an offset: behind all there is."""
_MOST = 8192

Key = tuple[str, str, int]
"""Sandbox, exec id, pid: after a rollback the same exec id may be another command's."""


class Running:
    """The commands this server has streamed, the latest of them."""

    def __init__(self) -> None:
        self._heard: OrderedDict[Key, dict[StreamName, int]] = OrderedDict()
        self._forgetting: set[asyncio.Task[None]] = set()
        self._ending: dict[Key, asyncio.TimerHandle] = {}

    def begin(self, key: Key) -> None:
        """A new command, of whose output nobody has heard anything."""
        self._heard[key] = dict.fromkeys(StreamName, 0)
        self._bound()

    def offsets(self, key: Key) -> tuple[int, int]:
        """From where on stdout and stderr are news. Of a command begun elsewhere: from now on."""
        heard = self._heard.get(key, {})
        return heard.get(StreamName.STDOUT, _LATEST), heard.get(StreamName.STDERR, _LATEST)

    def tell(self, key: Key, piece: Output) -> None:
        """Somebody is told this piece."""
        heard = self._heard.setdefault(key, {})
        heard[piece.stream] = max(heard.get(piece.stream, 0), piece.offset + len(piece.data))
        self._bound()

    def _bound(self) -> None:
        while len(self._heard) > _MOST:
            self._heard.popitem(last=False)

    def ended(self, key: Key, guest: Guest) -> None:
        """Somebody was told how it ended: it is forgotten by and by, here and in the guest."""
        if key not in self._ending:
            self._ending[key] = asyncio.get_running_loop().call_later(RETAINED, self._over, key, guest)

    def _over(self, key: Key, guest: Guest) -> None:
        self._ending.pop(key, None)
        self._heard.pop(key, None)
        task = asyncio.create_task(_forget(guest, key[1]))
        self._forgetting.add(task)
        task.add_done_callback(self._forgetting.discard)


async def _forget(guest: Guest, exec_id: str) -> None:
    with suppress(TorporError):  # gone already, with its sandbox or before it
        await guest.forget(exec_id)
