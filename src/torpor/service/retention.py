"""What is kept how long. Ended sandboxes and the events of a team 30 days, figures as their tiers say, answers to idempotency keys a day."""

from __future__ import annotations

import asyncio

from torpor.log import Log
from torpor.model.errors import TorporError
from torpor.service.context import DAY, Context

log = Log()


class Retention:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="retention")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            try:
                await self.run()
            except TorporError as error:
                log.error("retention_failed", error=str(error))
            await self._context.sleep_until(self._context.now() + self._context.policy.retention_every)

    async def run(self) -> None:
        """Forgets what is past its time now. Repeatable."""
        now, policy = self._context.now(), self._context.policy
        async with self._context.store.write() as records:
            sandboxes = await records.sandboxes.forget_ended(now - policy.ended_kept)
        async with self._context.store.write() as records:
            events = await records.events.forget(now - policy.ended_kept)
            await records.channels.forget_delivered(now - policy.ended_kept)
        async with self._context.store.write() as records:
            await records.figures.forget(now - DAY, now - policy.samples_kept)
            await records.memory.forget(now - policy.answers_kept)
            await records.keys.forget_expired(now, tries_before=now - DAY)
        if sandboxes or events:
            log.info("forgotten", sandboxes=sandboxes, events=events)
