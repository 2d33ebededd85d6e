"""The outbox: what is sent, in which order, how often, and what survives whoever sends it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from service_world import LONG, ME, OTHER, TEAM, World, done, running

from torpor.model.errors import HostUnavailable, Undelivered
from torpor.model.records import Channel, Delivery, DeliveryState, Event
from torpor.model.sandbox import base36
from torpor.notify.seal import KeySealer, random_sealer
from torpor.ports.bus import Notice
from torpor.ports.notify import Message
from torpor.service.context import DAY, Context, Policy
from torpor.service.notify import HAND, Notifier, sealed

D = DeliveryState
SEALER = random_sealer()


@dataclass
class Post:
    """Senders that note what they are given. `refuse`: names of channels that take nothing; `hold`: sending waits for it."""

    sent: list[tuple[str, str]] = field(default_factory=list)
    tries: list[tuple[str, str]] = field(default_factory=list)
    refuse: dict[str, Exception] = field(default_factory=dict)
    hold: asyncio.Event | None = None
    under_way: int = 0
    most: int = 0
    tried: asyncio.Event = field(default_factory=asyncio.Event)

    async def send(self, provider: str, config: dict[str, str], message: Message) -> None:
        where = config["url"]
        self.tries.append((where, message.title))
        self.tried.set()
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            if self.hold is not None:
                await self.hold.wait()
        finally:
            self.under_way -= 1
        if where in self.refuse:
            raise self.refuse[where]
        self.sent.append((where, message.title))

    async def prepare(self, provider: str, config: dict[str, str], present: Any = None) -> dict[str, str]:
        return dict(config)


def show(event: Event, delivery_id: str) -> Message:
    return Message(delivery_id, b"{}", f"{event.name} {event.resource_id}", "")


@dataclass
class Office:
    world: World
    post: Post = field(default_factory=Post)
    notifiers: list[Notifier] = field(default_factory=list)

    def context(self, **policy: Any) -> Context:
        world = self.world
        return Context(world.store, world.bus, world.hosts, now=world.clock.now, policy=Policy(**policy), sleep_until=world.clock.sleep_until)

    def start(self, *, sealer: KeySealer = SEALER, **policy: Any) -> Notifier:
        notifier = Notifier(self.context(**policy), self.post, sealer, show)  # type: ignore[arg-type]
        self.notifiers.append(notifier)
        notifier.start()
        return notifier

    async def kill(self, notifier: Notifier) -> None:
        """As kill -9 would: what is in hand stays so."""
        tasks = [*notifier._tasks, *notifier._sending]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def channel(self, name: str, *events: str, team_id: str = TEAM) -> str:
        channel_id = base36(next(self.world.ids))
        config = sealed(SEALER, channel_id, {"url": name})
        async with self.world.store.write() as records:
            await records.channels.add(Channel(channel_id, team_id, name, "webhook", config, events or ("a",), 0.0, 0.0))
        return channel_id

    async def happen(self, *subjects: str, name: str = "a", team_id: str = TEAM) -> None:
        for subject in subjects:
            async with self.world.store.write() as records:
                await records.events.add(Event(team_id, self.world.clock.now(), name, "thing", subject))
        await self.world.bus.publish(Notice("event", "", team_id))

    async def deliveries(self, channel_id: str, team_id: str = TEAM) -> list[Delivery]:
        """Oldest first."""
        async with self.world.store.look() as records:
            return list((await records.channels.deliveries(team_id, channel_id, limit=1000)).items)[::-1]

    async def states(self, channel_id: str) -> list[tuple[DeliveryState, int]]:
        return [(one.state, one.attempts) for one in await self.deliveries(channel_id)]

    async def until(self, holds: Callable[[], Awaitable[bool]]) -> None:
        """Waits for a state of the records."""
        async with asyncio.timeout(60):
            while not await holds():
                await asyncio.sleep(0)

    async def until_states(self, channel_id: str, *states: tuple[DeliveryState, int]) -> None:
        async def holds() -> bool:
            return await self.states(channel_id) == list(states)

        await self.until(holds)

    async def pass_(self, seconds: float) -> None:
        """Lets the notifier fall asleep, then moves the clock."""
        await self.world.clock.sleeper(LONG)
        self.world.clock.move(seconds)


@pytest.fixture
async def office(world: World) -> AsyncIterator[Office]:
    made = Office(world)
    yield made
    for notifier in made.notifiers:
        await notifier.close()


async def test_events_reach_the_channels_that_asked_for_them(office: Office) -> None:
    office.start()
    both, one = await office.channel("both", "a", "b"), await office.channel("one", "b")
    other = await office.channel("other", "a", team_id=OTHER.team_id)
    await office.happen("1")
    await office.happen("2", name="b")
    await office.happen("3", name="c")
    await office.until_states(both, (D.DELIVERED, 1), (D.DELIVERED, 1))
    await office.until_states(one, (D.DELIVERED, 1))
    assert await office.deliveries(other, OTHER.team_id) == []
    assert sorted(office.post.sent) == [("both", "a 1"), ("both", "b 2"), ("one", "b 2")]


async def test_what_happened_while_nobody_sent_is_sent_later(office: Office) -> None:
    channel = await office.channel("late")
    await office.happen("1", "2", "3")
    office.start()
    await office.until_states(channel, *[(D.DELIVERED, 1)] * 3)
    assert office.post.sent == [("late", "a 1"), ("late", "a 2"), ("late", "a 3")]


async def test_a_real_sandbox_is_told_of(office: Office) -> None:
    plane = await office.world.start()
    office.start()
    channel = await office.channel("c", "capsule.created", "capsule.destroyed")
    sandbox_id = await running(plane)
    await done(plane, await plane.sandboxes.kill(ME, sandbox_id))
    await office.until_states(channel, (D.DELIVERED, 1), (D.DELIVERED, 1))
    assert office.post.sent == [("c", f"capsule.created {sandbox_id}"), ("c", f"capsule.destroyed {sandbox_id}")]


async def test_a_failure_is_tried_again_in_order_and_the_others_do_not_wait(office: Office) -> None:
    office.start()
    bad, good = await office.channel("bad"), await office.channel("good")
    office.post.refuse["bad"] = Undelivered("bad answered 500.")
    await office.happen("1", "2")
    await office.until_states(good, (D.DELIVERED, 1), (D.DELIVERED, 1))
    await office.until_states(bad, (D.WAITING, 1), (D.WAITING, 0))
    (first, _) = await office.deliveries(bad)
    assert (first.due_at - office.world.clock.now(), first.error) == (10.0, "bad answered 500.")
    for number, pause in enumerate((10.0, 30.0, 120.0, 600.0, 1800.0, 3600.0, 3600.0), 2):
        await office.pass_(pause)
        await office.until_states(bad, (D.WAITING, number), (D.WAITING, 0))
    del office.post.refuse["bad"]
    await office.pass_(3600.0)
    await office.until_states(bad, (D.DELIVERED, 9), (D.DELIVERED, 1))
    assert [title for where, title in office.post.sent if where == "bad"] == ["a 1", "a 2"]


async def test_a_server_that_asks_for_more_time_gets_it_within_bounds(office: Office) -> None:
    office.start()
    patient, greedy = await office.channel("patient"), await office.channel("greedy")
    office.post.refuse |= {"patient": Undelivered("Slow.", retry_after=77.0), "greedy": Undelivered("Slow.", retry_after=1e9)}
    await office.happen("1")
    await office.until_states(patient, (D.WAITING, 1))
    await office.until_states(greedy, (D.WAITING, 1))
    now = office.world.clock.now()
    assert [(await office.deliveries(one))[0].due_at - now for one in (patient, greedy)] == [77.0, 3600.0]


async def test_what_is_a_day_old_dies_with_what_waited_as_long_and_the_rest_goes_on(office: Office) -> None:
    channel = await office.channel("gone")
    office.post.refuse["gone"] = Undelivered("gone answered 410.")
    await office.happen("1", "2")
    office.world.clock.move(3600.0)
    await office.happen("3")
    office.world.clock.move(DAY - 1800.0)  # nobody sent all the while
    office.start()
    await office.until_states(channel, (D.DEAD, 1), (D.DEAD, 0), (D.WAITING, 1))
    first, second, third = await office.deliveries(channel)
    assert (first.error, second.error) == ("gone answered 410.", "Given up with the one before it: gone answered 410.")
    for number in range(2, 7):
        await office.pass_(third.due_at - office.world.clock.now())
        (*_, third) = await until_tried(office, channel, number)
    await office.until_states(channel, (D.DEAD, 1), (D.DEAD, 0), (D.DEAD, 6))
    assert (await office.deliveries(channel))[2].due_at == 1_700_000_000.0 + 3600.0 + DAY  # its last try is when its day is over


async def until_tried(office: Office, channel: str, attempts: int) -> list[Delivery]:
    async def holds() -> bool:
        return (await office.deliveries(channel))[-1].attempts == attempts

    await office.until(holds)
    return await office.deliveries(channel)


async def test_who_dies_with_a_delivery_in_hand_leaves_it_to_the_next(office: Office) -> None:
    channel = await office.channel("c")
    office.post.hold = asyncio.Event()
    first = office.start()
    await office.happen("1", "2")
    await office.post.tried.wait()
    await office.kill(first)
    office.post.hold = None
    office.start()
    await office.world.clock.sleeper(HAND)
    assert await office.states(channel) == [(D.WAITING, 0), (D.WAITING, 0)]  # it may still be in hand
    office.world.clock.move(HAND)
    await office.until_states(channel, (D.DELIVERED, 1), (D.DELIVERED, 1))
    assert office.post.tries == [("c", "a 1"), ("c", "a 1"), ("c", "a 2")]


async def test_an_orderly_end_puts_back_what_is_in_hand(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torpor.service.notify.CLOSE_SECONDS", 0.05)
    channel = await office.channel("c")
    office.post.hold = asyncio.Event()
    first = office.start()
    await office.happen("1")
    await office.post.tried.wait()
    await first.close()
    office.post.hold = None
    office.start()
    await office.until_states(channel, (D.DELIVERED, 1))  # the clock has not moved


async def test_an_orderly_end_waits_a_moment_for_what_is_in_hand(office: Office) -> None:
    channel = await office.channel("c")
    office.post.hold = asyncio.Event()
    notifier = office.start()
    await office.happen("1")
    await office.post.tried.wait()
    closing = asyncio.ensure_future(notifier.close())
    await asyncio.sleep(0)
    office.post.hold.set()
    await closing
    assert await office.states(channel) == [(D.DELIVERED, 1)]


async def test_two_processes_send_each_event_once_and_in_order(office: Office) -> None:
    channels = [await office.channel(f"c{number}") for number in range(3)]
    office.start()
    office.start()
    await office.happen(*map(str, range(20)))
    for channel in channels:
        await office.until_states(channel, *[(D.DELIVERED, 1)] * 20)
    for number in range(3):
        assert [title for where, title in office.post.sent if where == f"c{number}"] == [f"a {each}" for each in range(20)]


async def test_a_slow_team_leaves_workers_to_the_others(office: Office) -> None:
    for number in range(9):
        await office.channel(f"slow{number}")
    quick = await office.channel("quick", team_id=OTHER.team_id)
    office.post.hold = asyncio.Event()
    office.start(deliveries_of_team=2)
    await office.happen("1")
    await office.post.tried.wait()
    await office.happen("2", team_id=OTHER.team_id)

    async def asked() -> bool:
        return ("quick", "a 2") in office.post.tries

    await office.until(asked)
    assert office.post.most == 3
    office.post.hold.set()

    async def all_sent() -> bool:
        return len(office.post.sent) == 10

    while not await all_sent():
        await office.world.clock.sleeper(LONG)
        office.world.clock.move(1.0)
        await asyncio.sleep(0)
    assert office.post.most == 3
    assert [one.state for one in await office.deliveries(quick, OTHER.team_id)] == [D.DELIVERED]


async def test_a_broken_sender_or_config_stops_nobody(office: Office) -> None:
    office.start()
    broken, good = await office.channel("broken"), await office.channel("good")
    office.post.refuse["broken"] = RuntimeError("secret words")
    unreadable = base36(next(office.world.ids))
    async with office.world.store.write() as records:
        await records.channels.add(Channel(unreadable, TEAM, "unreadable", "webhook", sealed(random_sealer(), unreadable, {}), ("a",), 0.0, 0.0))
    await office.happen("1")
    await office.until_states(good, (D.DELIVERED, 1))
    await office.until_states(broken, (D.WAITING, 1))
    await office.until_states(unreadable, (D.WAITING, 1))
    assert (await office.deliveries(broken))[0].error == "Something failed on our side."
    assert (await office.deliveries(unreadable))[0].error == "The channel's config cannot be read on this server; give it again."


async def test_records_that_are_out_of_reach_are_asked_again(office: Office) -> None:
    channel = await office.channel("c")
    await office.happen("1")
    notifier = office.start()
    real, failures = office.world.store.look, iter([HostUnavailable("The database is away.")] * 2)
    asked = asyncio.Event()

    def look() -> Any:
        asked.set()
        if failure := next(failures, None):
            raise failure
        return real()

    object.__setattr__(notifier._context.store, "look", look)
    try:
        for _ in range(2):
            await asked.wait()
            asked.clear()
            await office.pass_(1.0)
        await office.until_states(channel, (D.DELIVERED, 1))
    finally:
        object.__setattr__(notifier._context.store, "look", real)


async def test_a_channel_that_goes_takes_its_deliveries_along(office: Office) -> None:
    office.start()
    channel = await office.channel("c")
    office.post.hold = asyncio.Event()
    await office.happen("1", "2")
    await office.post.tried.wait()
    async with office.world.store.write() as records:
        await records.channels.remove(TEAM, channel)
    office.post.hold.set()

    async def sent() -> bool:
        return office.post.sent == [("c", "a 1")]

    await office.until(sent)
    assert await office.deliveries(channel) == []
