"""What every use case works with: the ports, a clock, and the policy of the installation. Seconds, MiB and bytes."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torpor.model.errors import HostUnavailable
from torpor.model.records import Limits, OperationKind
from torpor.model.sandbox import base36
from torpor.ports.bus import Bus
from torpor.ports.hosts import Hosts
from torpor.ports.records import Store

T = TypeVar("T")

DAY = 86400.0
_STRIDE = 60.0
"""Seconds. A sleep is never longer than this without a look at the clock, so that a clock that was set forward is noticed."""


_LIMITS = Limits(storage_bytes=200 << 30)


def new_id() -> str:
    """25 base-36 digits of 128 random bits."""
    return base36(secrets.randbits(128))


async def sleep_until(moment: float) -> None:
    """Returns when the wall clock shows `moment` or later, or when as much time has passed as it was away: a clock that is set back makes nobody wait longer
    than was meant. Who must not act before the moment looks at the clock again."""
    end = time.monotonic() + moment - time.time()
    while (rest := min(moment - time.time(), end - time.monotonic())) > 0:  # noqa: ASYNC110 (the condition is the clock)
        await asyncio.sleep(min(rest, _STRIDE))


def _deadlines() -> dict[OperationKind, float]:
    long = dict.fromkeys((OperationKind.PAUSE, OperationKind.SNAPSHOT, OperationKind.FORK), 300.0)
    return dict.fromkeys(OperationKind, 180.0) | long | {OperationKind.KILL: 60.0}


@dataclass(frozen=True, slots=True)
class Policy:
    """Bounds. `deadlines`: how long an operation of each kind may be under way.

    `sole`: this is the only control plane of its store; a host that it does not have nobody has. `embedded`: no other control plane has the hosts of this one
    (they are part of its process), so that whatever is under way on them and not performed here is taken up at once: a dead one left it, or another began it
    that has not got the host. Where control planes share hosts only the deadline tells the dead from the slow.

    A host may be promised `vcpu_overcommit` times its vCPUs and `memory_overcommit` times its memory. `limits` hold for teams that have none of their own.
    A host that gives no answer for `host_silence` is silent; so is one of another process that has not told for so long that it lives, which it does every
    `beat_every`. Machines and snapshots that no record ever named (the records were lost) are removed after `orphan_grace`; those whose record has ended at
    once.

    A delivery that failed is tried again after `delivery_retries`, the last of them for ever, until its event is `delivery_given_up` old."""

    deadlines: Mapping[OperationKind, float] = field(default_factory=_deadlines)
    sole: bool = True
    embedded: bool = True
    vcpu_overcommit: float = 64.0
    memory_overcommit: float = 3.0
    limits: Limits = _LIMITS
    most_children: int = 100
    overload_retry: int = 10
    retry_first: float = 0.5
    retry_most: float = 15.0
    answer_patience: float = 20.0
    clearing_patience: float = 60.0
    host_silence: float = 30.0
    beat_every: float = 10.0
    orphan_grace: float = DAY
    reconcile_every: float = 60.0
    look_every: float = 30.0
    postponed: float = 60.0
    sample_every: float = 1.0
    team_sample_every: float = 10.0
    ended_kept: float = 30 * DAY
    samples_kept: float = 60 * DAY
    answers_kept: float = DAY
    retention_every: float = 3600.0
    channels_of_team: int = 50
    deliveries_at_once: int = 32
    deliveries_of_team: int = 4
    delivery_retries: tuple[float, ...] = (10.0, 30.0, 120.0, 600.0, 1800.0, 3600.0)
    delivery_given_up: float = DAY
    channel_tests_a_minute: int = 10


@dataclass(frozen=True, slots=True)
class Context:
    """`now` and `sleep_until` are one clock; tests move it."""

    store: Store
    bus: Bus
    hosts: Hosts
    now: Callable[[], float] = time.time
    new_id: Callable[[], str] = new_id
    policy: Policy = field(default_factory=Policy)
    sleep_until: Callable[[float], Awaitable[None]] = sleep_until

    def has(self, host_id: str) -> bool:
        """Whether this process can give orders to the host."""
        return any(host.id == host_id for host in self.hosts.online())

    async def wait(self, *futures: asyncio.Future[Any], until: float) -> bool:
        """Waits for the first of the futures, or for the moment; whether one of the futures is done. They are left as they are."""
        alarm: asyncio.Future[object] = asyncio.ensure_future(_quiet(self.sleep_until(until)))
        try:
            await asyncio.wait({*futures, alarm}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            alarm.cancel()
        return any(future.done() for future in futures)

    async def ask(self, asked: Awaitable[T], patience: float = 0.0) -> T:
        """The answer of a host. Raises HostUnavailable when none comes in `patience` seconds (0: the policy's), and what the host raises. The host may do what
        it was asked all the same."""
        asking = asyncio.ensure_future(asked)
        try:
            if await self.wait(asking, until=self.now() + (patience or self.policy.answer_patience)):
                return asking.result()
            raise HostUnavailable("The host gives no answer.")
        finally:
            asking.cancel()


async def _quiet(sleeping: Awaitable[None]) -> object:
    await sleeping
    return None
