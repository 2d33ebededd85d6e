"""Background work on the store: re-basing heavy layers, merging disk layers, collecting what nobody refers to. One piece at a time, after the answer
to whoever caused it."""

from __future__ import annotations

import asyncio
from collections import Counter

from torpor.host.context import Context
from torpor.log import Log
from torpor.model.errors import NotFound, TorporError
from torpor.model.snapshots import ArtefactKind
from torpor.ports.store import DiskChain

log = Log()


class Chores:
    """`noticed` is told after each change of the store; `idle` returns when all that was noticed is done. A failed chore is logged and put again
    with the next one: nothing
    depends on it but space and speed."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._task = asyncio.create_task(self._run(), name="chores")

    def noticed(self) -> None:
        self._idle.clear()
        self._wake.set()

    async def idle(self) -> None:
        await self._idle.wait()

    async def close(self) -> None:
        """What nobody refers to any more does not wait for the next owner; the rest does."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        if not self._idle.is_set():
            try:
                await self._collect()
            except TorporError as error:
                log.warning("chore_failed", error=str(error))

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self._rebase()
                await self._merge()
                await self._collect()
            except TorporError as error:
                log.warning("chore_failed", error=str(error))
            if not self._wake.is_set():
                self._idle.set()

    async def _rebase(self) -> None:
        for artefact in self._context.snapshots.list():
            if artefact.layer_bytes > self._context.policy.rebase_above:
                try:
                    await self._context.snapshots.rebase(artefact.id)
                except NotFound:
                    continue

    async def _merge(self) -> None:
        """Merges what one artefact or machine alone stands on, and writes finished merges into the manifests of paused sandboxes."""
        chains = self._context.snapshots.referenced_disks()
        users = Counter(layer for chain in set(chains) for layer in chain.layers)
        shared = [layer for layer, count in users.items() if count > 1]
        for artefact in self._context.snapshots.list(ArtefactKind.PAUSED):
            await self._context.disks.merge(artefact.disk, shared)
            shorter = self._context.disks.shorten(artefact.disk)
            if shorter != artefact.disk:
                try:
                    await self._context.snapshots.replace_disk(artefact.id, shorter)
                except NotFound:
                    continue

    async def _collect(self) -> None:
        freed = await self._context.snapshots.collect(self._context.policy.warm_budget)
        freed += await self._context.disks.collect(self._referenced())
        if freed:
            log.info("space_freed", bytes=freed)

    def _referenced(self) -> list[DiskChain]:
        records, _ = self._context.records.load()
        return [*self._context.snapshots.referenced_disks(), *(record.disk for record in records)]
