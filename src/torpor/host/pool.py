"""Sandboxes made ahead: running, exercised, waiting to be handed out. On a machine without KVM this is what makes a create feel instant.

A pooled sandbox is an ordinary one whose record says `pool`. At hand-out it gets a new generation, fresh entropy, the clock and its names; its id
was its own from the start.
The number kept per kind follows demand: every create that found none raises it, every refill that nobody takes for a while lowers it, within the memory budget.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from torpor.host.boot import exercise
from torpor.host.context import Context
from torpor.host.sandbox import Sandbox
from torpor.host.services import exercise_service
from torpor.log import Log
from torpor.model.errors import TorporError
from torpor.model.sandbox import MachineState, NetworkMode
from torpor.model.shapes import Shape

log = Log()

FALL_AFTER = 300.0
"""Seconds without a miss after which a kind's wanted number falls by one, down to the configured size."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What pooled sandboxes are alike in."""

    template: str
    shape: Shape
    network: NetworkMode


@dataclass(slots=True)
class _Shelf:
    ready: deque[Sandbox] = field(default_factory=deque)
    wanted: int = 0
    making: int = 0
    last_miss: float = 0.0


class Pool:
    """`make` creates a sandbox of a kind, marked as pooled. `hits` and `misses` count hand-outs."""

    def __init__(self, context: Context, make: Callable[[Kind], Awaitable[Sandbox]]) -> None:
        self._context = context
        self._make = make
        self._shelves: dict[Kind, _Shelf] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self.hits = 0
        self.misses = 0

    def stock(self, kind: Kind) -> None:
        """Keeps the configured number of this kind from now on."""
        shelf = self._shelves.setdefault(kind, _Shelf())
        shelf.wanted = max(shelf.wanted, self._context.policy.pool_size)
        self._refill(kind)

    def take(self, kind: Kind) -> Sandbox | None:
        """A ready one, or None; either way demand is noted and the shelf refilled behind it."""
        if self._context.policy.pool_size == 0:
            return None
        shelf = self._shelves.setdefault(kind, _Shelf(wanted=self._context.policy.pool_size))
        found = None
        while shelf.ready and found is None:
            candidate = shelf.ready.popleft()
            found = candidate if candidate.record.state is MachineState.READY else None
        self._note_demand(shelf, hit=found is not None)
        self._refill(kind)
        return found

    def _note_demand(self, shelf: _Shelf, *, hit: bool) -> None:
        now = self._context.now()
        if hit:
            self.hits += 1
            if now - shelf.last_miss > FALL_AFTER and shelf.wanted > self._context.policy.pool_size:
                shelf.wanted -= 1
                shelf.last_miss = now
        else:
            self.misses += 1
            shelf.wanted += 1
            shelf.last_miss = now

    def _committed_bytes(self) -> int:
        return sum((len(shelf.ready) + shelf.making) * kind.shape.memory_bytes for kind, shelf in self._shelves.items())

    def _refill(self, kind: Kind) -> None:
        shelf = self._shelves[kind]
        while not self._closed and len(shelf.ready) + shelf.making < shelf.wanted:
            if self._committed_bytes() + kind.shape.memory_bytes > self._context.policy.pool_memory:
                shelf.wanted = max(len(shelf.ready) + shelf.making, 0)
                return
            shelf.making += 1
            task = asyncio.create_task(self._fill(kind, shelf), name=f"pool-{kind.template}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _fill(self, kind: Kind, shelf: _Shelf) -> None:
        try:
            sandbox = await self._make(kind)
            guest = await sandbox.guest()
            await exercise(guest)
            if (service := self._context.service(kind.template)) is not None:
                await exercise_service(guest, service, kind.template)
            shelf.ready.append(sandbox)
        except TorporError as error:
            shelf.wanted = len(shelf.ready)
            log.warning("pool_not_filled", template=kind.template, error=str(error))
        finally:
            shelf.making -= 1

    async def filled(self) -> None:
        """Returns when nothing is being made."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def close(self) -> None:
        """Ends what is pooled: nobody was promised any of it."""
        self._closed = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for shelf in self._shelves.values():
            while shelf.ready:
                await shelf.ready.popleft().kill()
