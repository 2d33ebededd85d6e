"""Whether there is room: on hosts (vCPUs, memory, low-water marks) and within a team's limits. Asked inside the transaction that takes the room, so that
two who ask at once cannot both get the last of it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Hashable, Mapping
from contextlib import asynccontextmanager
from copy import copy

from torpor.log import Log
from torpor.model.errors import HostUnavailable, NotFound, Overloaded, QuotaExceeded
from torpor.model.records import Limits
from torpor.model.shapes import Shape
from torpor.ports.hosts import Capacity, Host
from torpor.ports.records import Records
from torpor.service.context import Context

log = Log()

Room = Mapping[str, Capacity]
"""Host id -> what it has, asked just before the transaction."""
HOLD = "admission"
"""What a transaction holds from the look at what is taken to the taking."""


class Admission:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._turn = asyncio.Lock()
        self._waiting: Counter[Hashable] = Counter()
        self._refused: dict[Hashable, tuple[int, Overloaded | QuotaExceeded]] = {}
        self._refusals = 0

    @asynccontextmanager
    async def turn(self, want: Hashable) -> AsyncIterator[None]:
        """Those who want room take it one after another. A refusal inside the block is the answer to all who wait for the same at that moment: they asked
        before it was found that there is none, and need not queue for the database to hear it again. Who comes later is looked at anew."""
        came = self._refusals
        self._waiting[want] += 1
        try:
            async with self._turn:
                number, refusal = self._refused.get(want, (0, None))
                if refusal is not None and number > came:
                    raise copy(refusal)
                try:
                    yield
                except (Overloaded, QuotaExceeded) as error:
                    self._refusals += 1
                    self._refused[want] = (self._refusals, error)
                    raise
        finally:
            self._waiting[want] -= 1
            if not self._waiting[want]:
                del self._waiting[want]
                self._refused.pop(want, None)

    async def room(self, *host_ids: str) -> Room:
        """Of these hosts, or of all that are online. Those that give no answer are left out. Raises HostUnavailable when none is left."""
        hosts = [self._context.hosts.get(host_id) for host_id in host_ids] if host_ids else self._context.hosts.online()
        answers = await asyncio.gather(*(self._ask(host) for host in hosts))
        found = {host.id: answer for host, answer in zip(hosts, answers, strict=True) if answer is not None}
        if not found:
            raise HostUnavailable("No host can be reached at present.")
        return found

    async def _ask(self, host: Host) -> Capacity | None:
        try:
            return await self._context.ask(host.capacity())
        except HostUnavailable as error:
            log.warning("host_without_capacity", host=host.id, error=str(error))
            return None

    async def place(self, records: Records, room: Room, shape: Shape, count: int = 1) -> str:
        """The host with the most memory left that takes `count` more of this shape. Raises Overloaded."""
        best, best_left, problem = "", -1.0, "every host is full"
        for host_id, capacity in room.items():
            if not capacity.accepts:
                problem = capacity.problem
                continue
            taken = await records.sandboxes.reserved(host_id=host_id)
            memory_left = capacity.memory_mib * self._context.policy.memory_overcommit - taken.memory_mib - count * shape.memory_mib
            vcpus_left = capacity.vcpus * self._context.policy.vcpu_overcommit - taken.vcpus - count * shape.vcpus
            if memory_left >= 0 and vcpus_left >= 0 and memory_left > best_left:
                best, best_left = host_id, memory_left
        if not best:
            raise Overloaded(f"There is no room for {shape} at present: {problem}", self._context.policy.overload_retry)
        return best

    async def demand_limits(self, records: Records, team_id: str, shape: Shape, count: int = 1) -> None:
        """`count` more of this shape that run fit the team's limits. Raises QuotaExceeded, NotFound (the team was deleted)."""
        limits = await self._limits(records, team_id)
        taken = await records.sandboxes.reserved(team_id=team_id)
        wanted = (
            ("running sandboxes", limits.sandboxes, taken.sandboxes + count),
            ("vCPUs", limits.vcpus, taken.vcpus + count * shape.vcpus),
            ("MiB of memory", limits.memory_mib, taken.memory_mib + count * shape.memory_mib),
        )
        for what, limit, would_be in wanted:
            if limit is not None and would_be > limit:
                raise QuotaExceeded(f"The team may have {limit} {what}; this would make {would_be}.", mend="Pause or delete sandboxes, or ask for more.")

    async def demand_storage(self, records: Records, team_id: str) -> None:
        """The team has not used up its storage. What it has keeps; nothing is added. Raises QuotaExceeded."""
        limit = (await self._limits(records, team_id)).storage_bytes
        if limit is None:
            return
        stored = (await records.sandboxes.reserved(team_id=team_id)).stored_bytes + await records.templates.stored_bytes(team_id)
        if stored >= limit:
            raise QuotaExceeded(
                f"The team's paused sandboxes and snapshots take {stored >> 20} MiB of {limit >> 20}.", mend="Delete snapshots or paused sandboxes."
            )

    async def _limits(self, records: Records, team_id: str) -> Limits:
        team = await records.teams.get(team_id)
        if team is not None and team.deleted_at is not None:
            raise NotFound("The team was deleted.")
        own, usual = team.limits if team else Limits(), self._context.policy.limits
        return Limits(
            sandboxes=usual.sandboxes if own.sandboxes is None else own.sandboxes,
            vcpus=usual.vcpus if own.vcpus is None else own.vcpus,
            memory_mib=usual.memory_mib if own.memory_mib is None else own.memory_mib,
            storage_bytes=usual.storage_bytes if own.storage_bytes is None else own.storage_bytes,
        )
