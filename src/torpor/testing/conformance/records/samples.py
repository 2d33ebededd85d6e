"""Records to store, a rig to store them in, and small tools of the suite."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Protocol

from torpor.model.records import (
    Actor,
    ActorKind,
    ApiKey,
    AuditEntry,
    AuditStatus,
    Channel,
    Event,
    Sandbox,
    SandboxState,
    Template,
    TemplateKind,
    TemplateState,
    User,
    UserStatus,
)
from torpor.model.sandbox import NetworkMode, base36
from torpor.model.shapes import Shape
from torpor.ports.records import Page, Store

S = SandboxState
TEAM = base36(1)
OTHER = base36(2)
ODD = "naïve \"quotes\" 'single' %s :name \\ {} ☃ 𝄞"


class StoreRig(Protocol):
    """What a store's test supplies."""

    async def open(self) -> Store:
        """An open store on the rig's one database; each call a new one, as another process would have it. The rig closes them."""
        ...


def a_sandbox(number: int = 1, **changes: Any) -> Sandbox:
    made = Sandbox(
        id=base36(1000 + number),
        team_id=TEAM,
        state=S.RUNNING,
        generation=1,
        template_id=base36(7),
        template="minimal",
        shape=Shape(1, 512, 4096),
        network=NetworkMode.OFF,
        created_at=100.0 + number,
        updated_at=100.0,
        last_active_at=100.0,
    )
    return replace(made, **changes)


def a_user(number: int = 1, **changes: Any) -> User:
    made = User(base36(number), f"user{number}@example.org", f"User {number}", "hash", UserStatus.ACTIVE, False, 100.0 + number)
    return replace(made, **changes)


def a_key(number: int = 1, **changes: Any) -> ApiKey:
    return replace(ApiKey(base36(number), TEAM, f"key {number}", f"digest-{number}", "trp_012345", 100.0 + number), **changes)


def a_template(number: int = 1, **changes: Any) -> Template:
    made = Template(base36(number), TEAM, f"template-{number}", TemplateKind.SNAPSHOT, TemplateState.READY, "artefact", 100.0 + number)
    return replace(made, **changes)


def an_event(number: int = 1, **changes: Any) -> Event:
    return replace(Event(TEAM, 100.0 + number, "capsule.created", "sandbox", base36(number)), **changes)


def a_channel(number: int = 1, **changes: Any) -> Channel:
    return replace(Channel(base36(number), TEAM, f"channel-{number}", "webhook", "sealed", ("capsule.created",), 100.0 + number, 100.0), **changes)


def an_entry(number: int = 1, **changes: Any) -> AuditEntry:
    return replace(AuditEntry(TEAM, 100.0, Actor(ActorKind.USER, base36(5), "Ann"), "sandbox", base36(number), "create", AuditStatus.SUCCESS), **changes)


async def whole(page: Callable[[str], Awaitable[Page[Any]]]) -> list[Any]:
    """All items of a list, page by page."""
    items: list[Any] = []
    cursor = ""
    while True:
        found = await page(cursor)
        items += found.items
        cursor = found.next
        if not cursor:
            return items
