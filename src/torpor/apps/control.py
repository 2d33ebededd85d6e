"""The control plane of one process, wired: store, bus, use cases, and what the HTTP layer is given."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from torpor.api.native.notices import message
from torpor.api.services import Services
from torpor.bus.local import LocalBus
from torpor.model.records import SandboxState
from torpor.notify.client import Client
from torpor.notify.seal import random_sealer
from torpor.notify.senders import Senders
from torpor.ports.bus import Bus
from torpor.ports.hosts import Hosts
from torpor.ports.notify import Sealer
from torpor.ports.records import Store
from torpor.service.access import Access
from torpor.service.accounts import Accounts, SignUp
from torpor.service.admin import Admin
from torpor.service.audit import Audit
from torpor.service.channels import Channels
from torpor.service.context import Context, Policy, sleep_until
from torpor.service.control import ControlPlane
from torpor.service.first import FirstStart, first_start
from torpor.service.keys import Keys
from torpor.service.leaving import Leaving
from torpor.service.lives import Lives
from torpor.service.notify import Notifier
from torpor.service.passwords import Passwords
from torpor.service.sessions import Sessions
from torpor.service.tags import Tags
from torpor.service.teams import Teams
from torpor.service.tokens import PURPOSE, SandboxTokens
from torpor.service.tries import Guard
from torpor.storage.store import make_store


@dataclass(frozen=True, slots=True)
class Wired:
    """`first` when this was the installation's first start."""

    services: Services
    context: Context
    plane: ControlPlane
    first: FirstStart | None


@dataclass(frozen=True, slots=True)
class Clock:
    """The wall clock and the sleeping by it; tests move another."""

    now: Callable[[], float] = time.time
    sleep_until: Callable[[float], Awaitable[None]] = sleep_until


@dataclass(frozen=True, slots=True)
class People:
    """How the installation deals with people: see Accounts, Passwords, and Services for `origins` and `proxies`."""

    sign_up: SignUp = SignUp.CLOSED
    passwords: Passwords = field(default_factory=Passwords)
    origins: Collection[str] = ()
    proxies: Collection[IPv4Network | IPv6Network] = ()


@dataclass(frozen=True, slots=True)
class Outside:
    """How messages leave, and the home's sealer. Without one, what is sealed opens in this process only."""

    client: Client = field(default_factory=Client)
    sealer: Sealer = field(default_factory=random_sealer)


@asynccontextmanager
async def control_plane(
    hosts: Hosts,
    database: str | Path,
    redis: str = "",
    policy: Policy | None = None,
    *,
    clock: Clock | None = None,
    people: People | None = None,
    outside: Outside | None = None,
) -> AsyncIterator[Wired]:
    """Opens everything in order, and closes it in the other. `redis` '': the bus of this process alone, which then is the only one on its database, unless
    `policy` says otherwise. Raises what a store and a bus raise when opened."""
    people, outside = people or People(), outside or Outside()
    async with AsyncExitStack() as stack:
        store, bus = make_store(database), _bus(redis)
        await store.open()
        stack.push_async_callback(store.close)
        await bus.open()
        stack.push_async_callback(bus.close)
        clock = clock or Clock()
        context = Context(store, bus, hosts, now=clock.now, policy=policy or Policy(sole=not redis), sleep_until=clock.sleep_until)
        first = await first_start(context, people.passwords)
        access, plane = Access(context), ControlPlane(context)
        await plane.open()
        stack.push_async_callback(plane.close)
        await access.open()
        stack.push_async_callback(access.close)
        senders = Senders(outside.client)
        stack.callback(senders.close)
        notifier = Notifier(context, senders, outside.sealer, message)
        notifier.start()
        stack.push_async_callback(notifier.close)
        channels = Channels(context, senders, outside.sealer, message)
        lives = Lives(context)
        await lives.open()
        stack.push_async_callback(lives.close)
        services = _services(context, plane, access, people, channels, SandboxTokens(outside.sealer.derive(PURPOSE)), lives)
        yield Wired(services, context, plane, first)


def _services(context: Context, plane: ControlPlane, access: Access, people: People, channels: Channels, tokens: SandboxTokens, lives: Lives) -> Services:
    audit, guard, sessions = Audit(context), Guard(context), Sessions(context, access)
    return Services(
        access=access,
        sandboxes=plane.sandboxes,
        templates=plane.templates,
        figures=plane.figures,
        events=plane.events,
        keys=Keys(context, access),
        audit=audit,
        sessions=sessions,
        accounts=Accounts(context, sessions, people.passwords, guard, audit, people.sign_up),
        leaving=Leaving(context),
        teams=Teams(context, guard),
        chores=plane.chores,
        admin=Admin(context, plane.sandboxes, plane.templates, plane.chores),
        channels=channels,
        tokens=tokens,
        tags=Tags(context),
        lives=lives,
        counts=partial(_counts, context.store),
        origins=people.origins,
        proxies=people.proxies,
    )


async def _counts(store: Store) -> Mapping[SandboxState, int]:
    async with store.look() as records:
        return await records.sandboxes.counts()


def _bus(redis: str) -> Bus:
    if not redis:
        return LocalBus()
    bus: Bus = import_module("torpor.bus.streams").RedisBus(redis)  # its client is imported where it is used: most servers have none, and start without it
    return bus
