"""Channels of a team: where it wants to hear of what happens. Their configs are sealed in the records and shown to nobody, the team included."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from torpor.model.errors import Corrupt, Denied, DenyReason, Forbidden, InvalidInput, NotFound, RateLimited
from torpor.model.records import AuditEntry, AuditStatus, Channel, Delivery, DeliveryState, Event, Role
from torpor.ports.bus import Notice
from torpor.ports.notify import Sealer, Senders
from torpor.ports.records import Page, Records
from torpor.service.caller import Caller
from torpor.service.context import Context
from torpor.service.idempotency import recall
from torpor.service.notify import Show, opened, sealed

EVENTS: Mapping[str, str] = {
    "capsule.created": "A sandbox runs for the first time.",
    "capsule.running": "A paused sandbox runs again.",
    "capsule.paused": "A sandbox was paused, by somebody or by its time-out.",
    "capsule.destroyed": "A sandbox has ended.",
    "capsule.error": "A sandbox could not be started, or broke.",
    "capsule.failed": "What somebody wanted of a sandbox failed; it is as before.",
    "capsule.missing": "A sandbox's host does not answer.",
    "template.snapshot.created": "A snapshot was made.",
    "template.snapshot.deleted": "A snapshot was deleted.",
    "host.up": "A host of the team can be reached again.",
    "host.down": "A host of the team cannot be reached.",
}
"""What can be subscribed to."""
TEST = "channel.test"
_MINUTE = 60.0


@dataclass(frozen=True, slots=True)
class Told:
    """A delivery with what it is about; None when that is forgotten already."""

    delivery: Delivery
    event: Event | None


class Channels:
    """Raises Forbidden for a person who is neither owner nor admin of the team; a key has been judged by its scopes."""

    def __init__(self, context: Context, senders: Senders, sealer: Sealer, show: Show) -> None:
        self._context = context
        self._senders = senders
        self._sealer = sealer
        self._show = show
        self._tested: dict[str, deque[float]] = {}

    async def create(
        self,
        caller: Caller,
        name: str,
        provider: str,
        config: Mapping[str, str],
        events: Collection[str],
        *,
        idempotency_key: str = "",
        request_digest: str = "",
    ) -> tuple[Channel, dict[str, str]]:
        """The channel, and its config, to be shown this once. Asked again with the same idempotency key: the same one, with the config that it has. Raises
        InvalidInput (see Senders.prepare; an unknown event, none, too many), Conflict (the name; the key was used for another request), NotFound (what the
        key made is gone)."""
        _demand_standing(caller)
        wanted = _ordered(events)
        kept = await self._senders.prepare(provider, config)
        now, channel_id = self._context.now(), self._context.new_id()
        channel = Channel(channel_id, caller.team_id, name, provider, sealed(self._sealer, channel_id, kept), wanted, now, now)
        async with self._context.store.write() as records:
            await records.hold(f"channels {caller.team_id}")
            if known := await recall(records, caller.team_id, idempotency_key, request_digest, channel_id, now):
                present = await _present(records, caller, known)
                return present, self._present_secret(present) if provider == "webhook" else {}
            if len(await records.channels.list(caller.team_id)) >= self._context.policy.channels_of_team:
                raise InvalidInput(f"A team may have {self._context.policy.channels_of_team} channels.", mend="Delete some.")
            await records.channels.add(channel)
            await self._note(records, caller, channel, "create", AuditStatus.SUCCESS, now)
        return channel, kept

    async def list(self, caller: Caller) -> Sequence[Channel]:
        """Newest first."""
        async with self._context.store.look() as records:
            return await records.channels.list(caller.team_id)

    async def get(self, caller: Caller, channel_id: str) -> Channel:
        """Raises NotFound."""
        async with self._context.store.look() as records:
            return await _present(records, caller, channel_id)

    async def update(self, caller: Caller, channel_id: str, name: str, events: Collection[str]) -> Channel:
        """What it is called and what it hears of from now on. Raises NotFound, InvalidInput, Conflict."""
        _demand_standing(caller)
        wanted, now = _ordered(events), self._context.now()
        async with self._context.store.write() as records:
            before = await _present(records, caller, channel_id)
            channel = replace(before, name=name, events=wanted, updated_at=now)
            await records.channels.update(channel)
            await self._note(records, caller, channel, "update", AuditStatus.INFO, now)
        return channel

    async def configure(self, caller: Caller, channel_id: str, config: Mapping[str, str]) -> Channel:
        """Another destination of the same provider; what waits goes there at once. A webhook keeps its secret unless another is given. Raises NotFound,
        InvalidInput."""
        _demand_standing(caller)
        before = await self.get(caller, channel_id)
        present = self._present_secret(before) if before.provider == "webhook" and not config.get("secret") else {}
        kept = await self._senders.prepare(before.provider, config, present)
        now = self._context.now()
        async with self._context.store.write() as records:
            channel = replace(await _present(records, caller, channel_id), config=sealed(self._sealer, channel_id, kept), updated_at=now)
            await records.channels.update(channel)
            await records.channels.hurry(channel_id, now)
            await self._note(records, caller, channel, "rotate_config", AuditStatus.INFO, now)
        await self._context.bus.publish(Notice("delivery", channel_id, caller.team_id))
        return channel

    async def delete(self, caller: Caller, channel_id: str) -> None:
        """With all its deliveries. One that is not there is deleted already."""
        _demand_standing(caller)
        async with self._context.store.write() as records:
            channel = await records.channels.get(caller.team_id, channel_id)
            if channel is None:
                return
            await records.channels.remove(caller.team_id, channel_id)
            await self._note(records, caller, channel, "delete", AuditStatus.WARNING, self._context.now())

    async def test(self, caller: Caller, provider: str, config: Mapping[str, str]) -> None:
        """Sends an event `channel.test` now. Raises InvalidInput as create, Undelivered, RateLimited."""
        _demand_standing(caller)
        self._pace(caller.team_id)
        await self._try(caller, provider, await self._senders.prepare(provider, config), "")

    async def test_saved(self, caller: Caller, channel_id: str) -> None:
        """The same to a channel that is there. Raises NotFound, Undelivered, RateLimited, Corrupt."""
        _demand_standing(caller)
        channel = await self.get(caller, channel_id)
        self._pace(caller.team_id)
        await self._try(caller, channel.provider, opened(self._sealer, channel), channel.id)

    async def deliveries(self, caller: Caller, channel_id: str, *, state: DeliveryState | None = None, cursor: str = "", limit: int = 50) -> Page[Told]:
        """Newest events first. Raises NotFound, InvalidInput for a foreign cursor."""
        async with self._context.store.look() as records:
            await _present(records, caller, channel_id)
            found = await records.channels.deliveries(caller.team_id, channel_id, state=state, cursor=cursor, limit=limit)
            events = await records.events.numbered(caller.team_id, {one.event_sequence for one in found.items})
        return Page([Told(one, events.get(one.event_sequence)) for one in found.items], found.next)

    async def retry(self, caller: Caller, channel_id: str, delivery_id: str) -> Told:
        """A dead delivery is sent again, before all others of its channel. Raises NotFound, Denied when it is not dead."""
        _demand_standing(caller)
        async with self._context.store.write() as records:
            channel = await _present(records, caller, channel_id)
            revived = await records.channels.revive(caller.team_id, channel_id, delivery_id, self._context.now())
            delivery = await records.channels.delivery(caller.team_id, channel_id, delivery_id)
            if delivery is None:
                raise NotFound("There is no such delivery.")
            if not revived:
                raise Denied(DenyReason.BUSY, f"The delivery is {delivery.state.value}; only a dead one is sent again.")
            events = await records.events.numbered(caller.team_id, [delivery.event_sequence])
            await self._note(records, caller, channel, "retry_delivery", AuditStatus.INFO, self._context.now())
        await self._context.bus.publish(Notice("delivery", channel_id, caller.team_id))
        return Told(delivery, events.get(delivery.event_sequence))

    def _present_secret(self, channel: Channel) -> dict[str, str]:
        try:
            return opened(self._sealer, channel)
        except Corrupt:
            raise InvalidInput("The present secret cannot be read on this server; the config needs one.") from None

    async def _try(self, caller: Caller, provider: str, config: Mapping[str, str], channel_id: str) -> None:
        event = Event(caller.team_id, self._context.now(), TEST, "channel", channel_id, caller.actor)
        await self._senders.send(provider, config, self._show(event, ""))

    def _pace(self, team_id: str) -> None:
        """Raises RateLimited: tests are requests that we make on a tenant's word."""
        now, times = self._context.now(), self._tested.setdefault(team_id, deque())
        while times and times[0] <= now - _MINUTE:
            times.popleft()
        if len(times) >= self._context.policy.channel_tests_a_minute:
            raise RateLimited("Too many tests of channels.", retry_after=int(times[0] + _MINUTE - now) + 1)
        times.append(now)

    async def _note(self, records: Records, caller: Caller, channel: Channel, action: str, status: AuditStatus, now: float) -> None:
        metadata = {"name": channel.name, "provider": channel.provider}
        await records.audit.add(AuditEntry(caller.team_id, now, caller.actor, "channel", channel.id, action, status, "team", metadata, caller.request_id))


async def _present(records: Records, caller: Caller, channel_id: str) -> Channel:
    """Raises NotFound."""
    channel = await records.channels.get(caller.team_id, channel_id)
    if channel is None:
        raise NotFound("There is no such channel.")
    return channel


def _ordered(events: Collection[str]) -> tuple[str, ...]:
    """Raises InvalidInput."""
    if unknown := set(events) - set(EVENTS):
        raise InvalidInput(f"There is no event {min(unknown)[:40]!r}.", mend=f"Known: {', '.join(EVENTS)}.")
    if not events:
        raise InvalidInput("A channel needs at least one event.")
    return tuple(name for name in EVENTS if name in events)


def _demand_standing(caller: Caller) -> None:
    """Raises Forbidden."""
    if caller.user_id and caller.role not in (Role.OWNER, Role.ADMIN):
        raise Forbidden("Channels are for the team's owners and admins.")
