"""Sends what the outbox holds. An event and its deliveries are written in one transaction (ports.records.Events.add), so nothing is forgotten that happened;
here they are carried out, by any number of processes on one store.

    event ──> WAITING ──claim──> in hand ──sent──> DELIVERED
                 ^                  │
                 └── due later ─────┤ failed
                                    └── its event is older than policy.delivery_given_up ──> DEAD, and with it what waited behind it as long

Of a channel only the oldest waiting delivery is claimed, so its events arrive in order. Whoever dies with one in hand leaves it to the next after HAND
seconds: at least once, and twice when the answer was lost. A dead delivery stays visible for as long as its event, and can be sent again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Mapping

from torpor.log import Log
from torpor.model.errors import Corrupt, TorporError, Undelivered
from torpor.model.records import Channel, Delivery, DeliveryState, Event
from torpor.ports.notify import Message, Sealer, Senders
from torpor.service.context import Context

log = Log()

Show = Callable[[Event, str], Message]
"""How an event is told: with the id of the delivery, '' for none."""
HAND = 60.0
"""Seconds for which a delivery in hand is nobody else's."""
SEND_SECONDS = 30.0
CLOSE_SECONDS = 3.0
_AGAIN = 1.0
"""Seconds until a look that found others at work, or no records, is repeated."""


def opened(sealer: Sealer, channel: Channel) -> dict[str, str]:
    """The config of a channel. Raises Corrupt."""
    found: dict[str, str] = json.loads(sealer.unseal(channel.config, channel.id))
    return found


def sealed(sealer: Sealer, channel_id: str, config: Mapping[str, str]) -> str:
    return sealer.seal(json.dumps(dict(config)), channel_id)


class Notifier:
    """`start` when the store and the bus are open; `close` before them."""

    def __init__(self, context: Context, senders: Senders, sealer: Sealer, show: Show) -> None:
        self._context = context
        self._senders = senders
        self._sealer = sealer
        self._show = show
        self._tasks: list[asyncio.Task[None]] = []
        self._sending: dict[asyncio.Task[None], Delivery] = {}
        self._wake = asyncio.Event()

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._run(), name="notifier"), asyncio.create_task(self._listen(), name="notifier-ear")]

    async def close(self) -> None:
        """Takes nothing up any more; what is in hand has CLOSE_SECONDS, and is else put back."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._sending:
            await asyncio.wait(self._sending, timeout=CLOSE_SECONDS)
        left = dict(self._sending)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        for held in left.values():
            with contextlib.suppress(TorporError):  # the next one takes it when HAND is over
                await self._settle(held, DeliveryState.WAITING, held.attempts, held.due_at, held.error)

    async def _listen(self) -> None:
        async with self._context.bus.subscribe("event", "delivery") as notices:
            async for _ in notices:
                self._wake.set()

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            now = self._context.now()
            try:
                until = min(await self._take(now), now + self._context.policy.look_every)
            except TorporError as error:
                log.warning("outbox_out_of_reach", error=str(error))
                until = now + _AGAIN
            woken = asyncio.ensure_future(self._wake.wait())
            try:
                await self._context.wait(woken, until=until)
            finally:
                woken.cancel()

    async def _take(self, now: float) -> float:
        """Takes up what is due; when to look again unless woken."""
        policy, never = self._context.policy, now + self._context.policy.look_every
        free = policy.deliveries_at_once - len(self._sending)
        if not free:
            return never
        async with self._context.store.look() as records:
            due = await records.channels.next_due()
        if due is None or due > now:
            return never if due is None else due
        async with self._context.store.write() as records:
            taken = await records.channels.claim(now, now + HAND, free, of_team=policy.deliveries_of_team)
        for delivery, channel, event in taken:
            task = asyncio.create_task(self._deliver(delivery, channel, event), name=f"deliver-{delivery.id}")
            self._sending[task] = delivery
            task.add_done_callback(self._done)
        return now if taken else now + _AGAIN

    def _done(self, task: asyncio.Task[None]) -> None:
        self._sending.pop(task, None)
        self._wake.set()  # the channel's next may go

    async def _deliver(self, delivery: Delivery, channel: Channel, event: Event) -> None:
        failure = await self._send(delivery, channel, event)
        now, policy, attempts = self._context.now(), self._context.policy, delivery.attempts + 1
        try:
            if failure is None:
                await self._settle(delivery, DeliveryState.DELIVERED, attempts, now, "")
                return
            end = event.at + policy.delivery_given_up
            if now < end:
                pause = policy.delivery_retries[min(delivery.attempts, len(policy.delivery_retries) - 1)]
                due = min(now + max(pause, min(failure.retry_after, max(policy.delivery_retries))), end)
                await self._settle(delivery, DeliveryState.WAITING, attempts, due, failure.message)
            else:
                await self._give_up(delivery, now, attempts, failure)
        except TorporError as error:
            log.warning("delivery_not_noted", delivery=delivery.id, error=str(error))  # it is tried again when HAND is over

    async def _send(self, delivery: Delivery, channel: Channel, event: Event) -> Undelivered | None:
        """What went wrong, if something did."""
        try:
            config = opened(self._sealer, channel)
            async with asyncio.timeout(SEND_SECONDS):
                await self._senders.send(channel.provider, config, self._show(event, delivery.id))
        except Undelivered as error:
            return error
        except TimeoutError:
            return Undelivered(f"No answer within {SEND_SECONDS:.0f} s.")
        except Corrupt as error:
            log.error("channel_unreadable", channel=channel.id, error=str(error))
            return Undelivered("The channel's config cannot be read on this server; give it again.")
        except Exception as error:
            log.error("delivery_broken", delivery=delivery.id, provider=channel.provider, exc_info=error)
            return Undelivered("Something failed on our side.")
        return None

    async def _settle(self, delivery: Delivery, state: DeliveryState, attempts: int, due_at: float, error: str) -> None:
        async with self._context.store.write() as records:
            await records.channels.settle(delivery.id, state, attempts=attempts, due_at=due_at, error=error)

    async def _give_up(self, delivery: Delivery, now: float, attempts: int, failure: Undelivered) -> None:
        """What is as old and waited behind it shares its fate: a channel that is dead for good must not hold more than a day of events."""
        async with self._context.store.write() as records:
            await records.channels.settle(delivery.id, DeliveryState.DEAD, attempts=attempts, due_at=now, error=failure.message)
            others = await records.channels.give_up(
                delivery.channel_id, now - self._context.policy.delivery_given_up, now, f"Given up with the one before it: {failure.message}"
            )
        log.warning("deliveries_dead", channel=delivery.channel_id, deliveries=others + 1, error=failure.message)
