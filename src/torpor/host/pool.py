"""Sandboxes made ahead: running, exercised, waiting to be handed out. On a machine without KVM this is what makes a create feel instant.

    asked for -- ready? -- yes ------------------------------------------------> handed out
                    no, one is being made that nobody waits for -- it is up ---> handed out, without the exercise if that has not begun
                    no ---------------------------------------------------------> the caller starts one

A pooled sandbox is an ordinary one whose record says `pool`. At hand-out it gets a new generation, fresh entropy, the clock and its names; its id
was its own from the start. Only templates are pooled: what a snapshot runs is its owner's, and would run before anybody asked.

The number kept per kind follows demand: each time nothing was ready it rises, within the memory budget; it falls when nobody asked for a while, and what was
not asked for the longest makes room for what is. Refills wait for a core that nobody needs (host.quiet), so the pool costs those nothing who find it empty.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torpor.host.boot import exercise
from torpor.host.context import Context
from torpor.host.quiet import Quiet
from torpor.host.sandbox import Sandbox
from torpor.host.services import exercise_service
from torpor.log import Log
from torpor.model.errors import TorporError
from torpor.model.sandbox import MachineState, NetworkMode
from torpor.model.shapes import Shape

log = Log()
T = TypeVar("T")

FALL_AFTER = 300.0
"""Seconds in which what there was of a kind sufficed, after which the wanted number falls by one."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What pooled sandboxes are alike in."""

    template: str
    shape: Shape
    network: NetworkMode


@dataclass(slots=True)
class _Making:
    """One on its way. `claimed`: somebody waits for it."""

    task: asyncio.Task[Sandbox | None] | None = None
    claimed: bool = False


@dataclass(slots=True)
class _Shelf:
    """`least`: the number kept though nobody asks. `asked`: when somebody last did, `short`: when nothing was ready then, or the number fell; by the loop's
    clock."""

    asked: float
    short: float
    least: int = 0
    wanted: int = 0
    ready: deque[Sandbox] = field(default_factory=deque)
    making: list[_Making] = field(default_factory=list)

    @property
    def held(self) -> int:
        return len(self.ready) + len(self.making)


class Pool:
    """`make` creates a sandbox of a kind, marked as pooled; `end` ends and removes one by its id. `hits` and `misses` count what was asked for, by whether one
    was there or on its way."""

    def __init__(self, context: Context, quiet: Quiet, make: Callable[[Kind], Awaitable[Sandbox]], end: Callable[[str], Awaitable[None]]) -> None:
        self._context = context
        self._quiet = quiet
        self._make = make
        self._kill = end
        self._shelves: dict[Kind, _Shelf] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._refilling: asyncio.Task[None] | None = None
        self._ebbing: asyncio.Task[None] | None = None
        self._closed = False
        self.hits = 0
        self.misses = 0

    def stock(self, kind: Kind, most: int | None = None) -> None:
        """Keeps the configured number of this kind from now on, `most` at most, whether or not anybody asks."""
        size = self._context.policy.pool_size
        if size == 0:
            return
        if kind not in self._shelves:
            self._shelves[kind] = _Shelf(float("-inf"), asyncio.get_running_loop().time())
        shelf = self._shelves[kind]
        shelf.least = size if most is None else min(size, most)
        shelf.wanted = max(shelf.wanted, shelf.least)
        self._refill()

    def kept(self) -> dict[Kind, int]:
        """How many of each kind are ready or on their way."""
        return {kind: shelf.held for kind, shelf in self._shelves.items()}

    async def take(self, kind: Kind) -> Sandbox | None:
        """One that runs, or None where the caller does better to start one; either way demand is noted. Cancelled while one is on its way, that one goes to the
        next who asks."""
        if self._context.policy.pool_size == 0 or self._closed:
            return None
        shelf = self._shelf(kind)
        shelf.asked = asyncio.get_running_loop().time()
        try:
            found = self._ready(shelf)
            if found is None:
                shelf.wanted += 1
                shelf.short = shelf.asked
                found = await self._on_its_way(shelf)
        finally:
            self._refill()
        self.hits += found is not None
        self.misses += found is None
        return found

    def _shelf(self, kind: Kind) -> _Shelf:
        shelf = self._shelves.get(kind)
        if shelf is None:
            shelf = self._shelves[kind] = _Shelf(now := asyncio.get_running_loop().time(), now, wanted=self._context.policy.pool_size)
        return shelf

    def _ready(self, shelf: _Shelf) -> Sandbox | None:
        while shelf.ready:
            candidate = shelf.ready.popleft()
            if candidate.record.state is MachineState.READY:
                return candidate
            self._end(candidate)
        return None

    async def _on_its_way(self, shelf: _Shelf) -> Sandbox | None:
        making = next((one for one in shelf.making if not one.claimed), None)
        if making is None or making.task is None:
            return None
        making.claimed = True
        try:
            await asyncio.wait({making.task})
        except asyncio.CancelledError:
            making.claimed = False
            if making.task.done():
                self._put(shelf, making.task)
            raise
        return None if making.task.cancelled() else making.task.result()

    def _put(self, shelf: _Shelf, done: asyncio.Task[Sandbox | None]) -> None:
        made = None if done.cancelled() else done.result()
        if made is not None:
            shelf.ready.append(made)

    # -- making ----------------------------------------------------------------------------------------------------------------------

    def _refill(self) -> None:
        if self._ebbing is None and not self._closed:
            self._ebbing = self._begin(self._ebb_now_and_then(), "pool-ebb")
        if self._refilling is None and not self._closed:
            self._refilling = self._begin(self._refill_in_quiet(), "pool-refill")

    async def _refill_in_quiet(self) -> None:
        """Begins what is missing, one after the other, the kind that was asked for last first."""
        try:
            while self._missing() is not None:
                await self._quiet.room(lambda: sum(len(shelf.making) for shelf in self._shelves.values()))
                if (kind := self._missing()) is not None:
                    shelf, making = self._shelves[kind], _Making()
                    shelf.making.append(making)
                    making.task = self._begin(self._fill(kind, shelf, making), f"pool-{kind.template}")
        finally:
            self._refilling = None

    def _missing(self) -> Kind | None:
        for kind, shelf in sorted(self._shelves.items(), key=lambda entry: -entry[1].asked):
            if shelf.held < shelf.wanted:
                if self._has_room(kind, shelf):
                    return kind
                shelf.wanted = shelf.held
        return None

    def _has_room(self, kind: Kind, shelf: _Shelf) -> bool:
        """Whether another of the kind is within the budget, if need be after others left that were not asked for since."""
        budget = self._context.policy.pool_memory
        need = kind.shape.memory_bytes
        others = sorted((other for other in self._shelves.items() if other[1].asked < shelf.asked), key=lambda other: other[1].asked)
        spare = sum(len(other.ready) * elsewhere.shape.memory_bytes for elsewhere, other in others)
        if self._committed_bytes() - spare + need > budget:
            return False
        for _, other in others:
            while other.ready and self._committed_bytes() + need > budget:
                self._end(other.ready.popleft())
                other.wanted = other.held
        return True

    def _committed_bytes(self) -> int:
        return sum(shelf.held * kind.shape.memory_bytes for kind, shelf in self._shelves.items())

    async def _fill(self, kind: Kind, shelf: _Shelf, making: _Making) -> Sandbox | None:
        """The one made: for whoever claimed it, else it is put on the shelf and None returned."""
        made: Sandbox | None = None
        try:
            made = await self._make(kind)
            await self._exercise(kind, made, making)
        except (TorporError, OSError) as error:
            shelf.wanted = len(shelf.ready)
            log.warning("pool_not_filled", template=kind.template, error=str(error))
            if made is not None:
                self._end(made)
            return None
        except asyncio.CancelledError:
            if made is not None:
                shelf.ready.append(made)  # for `close` to end
            raise
        finally:
            shelf.making.remove(making)
            self._quiet.told()
        if making.claimed:
            return made
        shelf.ready.append(made)
        return None

    async def _exercise(self, kind: Kind, made: Sandbox, making: _Making) -> None:
        guest = await made.guest()
        if not making.claimed:
            await exercise(guest)
        service = self._context.service(kind.template)
        if service is not None and not making.claimed:
            await exercise_service(guest, service, kind.template)

    # -- letting go ------------------------------------------------------------------------------------------------------------------

    async def _ebb_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(FALL_AFTER / 10)
            self.ebb(asyncio.get_running_loop().time())

    def ebb(self, now: float) -> None:
        """`now`: the loop's clock. A kind that sufficed for FALL_AFTER loses one, down to the configured number, or to none where nobody asked for it and
        it is not stocked. What is too many then is ended. A stocked kind that lost some, to a failure or to others, is tried again."""
        for kind, shelf in list(self._shelves.items()):
            least = shelf.least if now - shelf.asked > FALL_AFTER else self._context.policy.pool_size
            if now - shelf.short > FALL_AFTER and shelf.wanted > least:
                shelf.wanted -= 1
                shelf.short = now
            while shelf.ready and shelf.held > shelf.wanted:
                self._end(shelf.ready.popleft())
            shelf.wanted = max(shelf.wanted, shelf.least)
            if shelf.wanted == shelf.held == 0:
                del self._shelves[kind]
        self._refill()

    def _end(self, sandbox: Sandbox) -> None:
        self._begin(self._ended(sandbox.id), f"pool-end-{sandbox.id}")

    async def _ended(self, sandbox_id: str) -> None:
        try:
            await self._kill(sandbox_id)
        except TorporError as error:
            log.warning("pool_not_ended", sandbox=sandbox_id, error=str(error))

    def _begin(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def filled(self) -> None:
        """Returns when nothing is being made, nor about to be."""
        while tasks := self._tasks - {self._ebbing}:
            await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        """Ends what is pooled: nobody was promised any of it."""
        self._closed = True
        while tasks := list(self._tasks):
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for shelf in self._shelves.values():
            while shelf.ready:
                await self._ended(shelf.ready.popleft().id)
