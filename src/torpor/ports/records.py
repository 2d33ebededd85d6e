"""The seam to the control plane's records. SQLite and PostgreSQL stand behind it and pass one conformance suite.

    async with store.write() as records:                     one transaction: committed when the block ends, rolled back when it raises
        if await records.sandboxes.swap(before, after):
            await records.events.add(event)

A compare-and-set (`swap`) is the only way to change a sandbox's state. Work on hosts never happens inside a transaction, and nothing else that waits: on
SQLite one transaction writes at a time. On PostgreSQL several do, each seeing what others have committed so far: what must not change between looking and
writing is guarded by `hold`. Write events and audit entries last, for they keep a team's sequence number locked until the transaction ends.

Every method may also raise HostUnavailable (the database is gone, busy or restarting), NoSpace, and InvalidInput (a value no database can hold, such as a
NUL in text). After any error in it a transaction can only be left.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from torpor.model.records import (
    ApiKey,
    AuditEntry,
    Channel,
    Chore,
    Delivery,
    DeliveryState,
    Event,
    Limits,
    Member,
    MetricPoint,
    Remembered,
    Reserved,
    Role,
    Sandbox,
    SandboxState,
    Session,
    Team,
    TeamSample,
    TeamSummary,
    Template,
    TemplateKind,
    TemplateTag,
    Tier,
    Token,
    Tries,
    UsageDay,
    User,
    UserSummary,
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """`next`: the cursor of the page that follows, '' at the end. Cursors are opaque, stable while rows come and go, and skip or repeat nothing."""

    items: Sequence[T]
    next: str = ""


@dataclass(frozen=True, slots=True)
class SandboxFilter:
    """None or empty: any. `template`: its name or its id. `labels` must all match. `since`: made then or later. A cursor belongs to one order."""

    team_id: str = ""
    states: Collection[SandboxState] = ()
    template: str = ""
    labels: Mapping[str, str] | None = None
    dialect: str = ""
    since: float | None = None
    oldest_first: bool = False


@dataclass(frozen=True, slots=True)
class TemplateFilter:
    """None or empty: any. `sandbox_id`: of which they were made."""

    kind: TemplateKind | None = None
    name: str = ""
    sandbox_id: str = ""


class Sandboxes(Protocol):
    async def add(self, sandbox: Sandbox) -> None: ...

    async def get(self, sandbox_id: str) -> Sandbox | None: ...

    async def swap(self, before: Sandbox, after: Sandbox) -> bool:
        """Writes `after` if the stored record still has `before`'s state and generation; else False and nothing changed. `after.generation` is one higher.
        `last_active_at` never goes back: the later of the stored and the new one is kept."""
        ...

    async def touch(self, sandbox_id: str, at: float) -> None:
        """Notes activity; moves only forward, changes no generation."""
        ...

    async def list(self, wanted: SandboxFilter, *, cursor: str = "", limit: int = 100) -> Page[Sandbox]:
        """Newest first, unless wanted otherwise. Raises InvalidInput for a cursor it did not make."""
        ...

    async def on_host(self, host_id: str) -> Sequence[Sandbox]:
        """All that are not final."""
        ...

    async def overdue(self, now: float) -> Sequence[Sandbox]:
        """Sandboxes whose operation is past its deadline."""
        ...

    async def expiring(self, now: float) -> Sequence[Sandbox]:
        """RUNNING ones whose absolute deadline or idle time is over, and PAUSED ones past an absolute deadline with action kill."""
        ...

    async def next_expiry(self) -> float | None:
        """The earliest moment at which `expiring` or `overdue` will have something."""
        ...

    async def reserved(self, *, host_id: str = "", team_id: str = "") -> Reserved: ...

    async def counts(self) -> Mapping[SandboxState, int]: ...

    async def using_template(self, template_id: str) -> int:
        """How many that are not final were started from it."""
        ...

    async def forget_ended(self, before: float) -> int:
        """Removes final ones that ended before that, with their metric points; how many."""
        ...


class Templates(Protocol):
    async def add(self, template: Template) -> None:
        """Raises Conflict when the team has a READY or CREATING one of that name (a CREATING one may share the name of the one it `replaces`)."""
        ...

    async def get(self, template_id: str) -> Template | None: ...

    async def find(self, team_id: str, name: str) -> Template | None:
        """READY, of the team or else of the platform team."""
        ...

    async def update(self, template: Template) -> None:
        """Raises NotFound; Conflict when it becomes READY while another of its name is: the one it replaces must be DELETING first."""
        ...

    async def remove(self, template_id: str) -> None: ...

    async def list(self, team_id: str, *, platform: bool = True, only: TemplateFilter | None = None, cursor: str = "", limit: int = 100) -> Page[Template]:
        """READY ones, newest first; with the platform team's where `platform`. `team_id` '': every team's."""
        ...

    async def unsettled(self) -> Sequence[Template]:
        """CREATING and DELETING ones."""
        ...

    async def stored_bytes(self, team_id: str) -> int: ...

    async def tag(self, tag: TemplateTag) -> None:
        """In the place of what the tag of that name pointed to."""
        ...

    async def tagged(self, team_id: str, name: str) -> Sequence[TemplateTag]:
        """The tags of a name, the latest assigned first."""
        ...

    async def tags_of(self, template_id: str) -> Sequence[TemplateTag]:
        """The tags that point to it, the latest assigned first."""
        ...

    async def untag(self, tag_id: str) -> None: ...


class Teams(Protocol):
    async def add(self, team: Team) -> None: ...
    async def get(self, team_id: str) -> Team | None: ...
    async def update(self, team: Team) -> None: ...
    async def list(self, *, cursor: str = "", limit: int = 100) -> Page[Team]: ...
    async def count(self) -> int: ...
    async def set_limits(self, team_id: str, limits: Limits) -> None: ...

    async def add_member(self, member: Member) -> None:
        """Raises Conflict when the user is one already."""
        ...

    async def member(self, team_id: str, user_id: str) -> Member | None: ...
    async def members(self, team_id: str) -> Sequence[tuple[Member, User]]: ...
    async def set_role(self, team_id: str, user_id: str, role: Role) -> None: ...
    async def remove_member(self, team_id: str, user_id: str) -> None: ...

    async def of_user(self, user_id: str) -> Sequence[tuple[Team, Member]]:
        """Teams that are not deleted; the default one first, then by the time of joining."""
        ...

    async def remove_things(self, team_id: str) -> None:
        """Keys, sessions, channels, deliveries, samples and members of a team that is being deleted."""
        ...

    async def summaries(self, *, cursor: str = "", offset: int = 0, limit: int = 100) -> Page[TeamSummary]:
        """Newest first, deleted ones too; `offset` leaves out so many."""
        ...


class Users(Protocol):
    async def add(self, user: User) -> None:
        """Raises Conflict when the e-mail address is taken (compared without regard to case)."""
        ...

    async def get(self, user_id: str) -> User | None: ...
    async def by_email(self, email: str) -> User | None: ...

    async def update(self, user: User) -> None:
        """Raises NotFound; Conflict as `add`."""
        ...

    async def remove(self, user_id: str) -> None:
        """For one that was never active; others keep their record, with status DELETED."""
        ...

    async def search(self, prefix: str, *, seen_by: str, cursor: str = "", limit: int = 10) -> Page[User]:
        """Active ones whose e-mail address begins so, in the order of the addresses: those who share a team with the user `seen_by`, and the one whose whole
        address it is. Raises InvalidInput for a foreign cursor."""
        ...

    async def list(self, *, cursor: str = "", limit: int = 100) -> Page[User]: ...

    async def summaries(self, *, cursor: str = "", offset: int = 0, limit: int = 100) -> Page[UserSummary]:
        """Newest first; `offset` leaves out so many."""
        ...

    async def count(self) -> int: ...

    async def count_admins(self) -> int:
        """Active ones."""
        ...


class Keys(Protocol):
    """API keys, logins, single-use tokens, and how often something was tried."""

    async def add(self, key: ApiKey) -> None: ...
    async def by_digest(self, digest: str) -> ApiKey | None: ...
    async def get(self, team_id: str, key_id: str) -> ApiKey | None: ...
    async def list(self, team_id: str) -> Sequence[ApiKey]: ...

    async def revoke(self, team_id: str, key_id: str, at: float) -> ApiKey | None:
        """The key as it then is, its first time of revocation kept; None when the team has no such key."""
        ...

    async def revoke_of_user(self, user_id: str, at: float, *, team_id: str = "") -> Sequence[ApiKey]:
        """Those of the team ('': of every one) that the user made and that were not revoked yet."""
        ...

    async def renew(self, team_id: str, key_id: str, digest: str, prefix: str) -> bool:
        """Gives a key that was never used and not revoked another secret; whether there was such a one."""
        ...

    async def rename(self, team_id: str, key_id: str, name: str) -> None: ...

    async def touch(self, used: Mapping[str, float]) -> None:
        """Key id -> last use, many at once."""
        ...

    async def add_session(self, session: Session) -> None: ...
    async def session(self, digest: str) -> Session | None: ...

    async def sessions_of(self, user_id: str) -> Sequence[Session]:
        """Newest first."""
        ...

    async def session_by_id(self, user_id: str, session_id: str) -> Session | None: ...

    async def keep_session(self, digest: str, user_version: int) -> None:
        """It goes on with the user's new version."""
        ...

    async def end_session(self, digest: str) -> None: ...

    async def end_sessions_of(self, user_id: str, *, but: str = "") -> None:
        """All of the user's but the one with this digest."""
        ...

    async def add_token(self, token: Token) -> None: ...

    async def use_token(self, digest: str, purpose: str, now: float) -> Token | None:
        """Takes it: a second call finds nothing. None when it is unknown or over."""
        ...

    async def drop_tokens(self, purpose: str, subject: str) -> None: ...

    async def tries(self, subject: str) -> Tries | None: ...

    async def set_tries(self, tries: Tries) -> None:
        """In the place of what the subject had."""
        ...

    async def forget_tries(self, subject: str) -> None: ...

    async def forget_expired(self, now: float, *, tries_before: float = 0.0) -> None:
        """Sessions and tokens that are over, and tries that rest since then and block nothing."""
        ...


class Chores(Protocol):
    """What is still to be done."""

    async def add(self, chore: Chore) -> None:
        """One of the same kind and subject that is there already stays as it is."""
        ...

    async def list(self) -> Sequence[Chore]:
        """The oldest first."""
        ...

    async def remove(self, chore_id: str) -> None: ...


class Audit(Protocol):
    async def add(self, entry: AuditEntry) -> int: ...

    async def list(
        self,
        team_id: str,
        *,
        scopes: Collection[str],
        resource_types: Collection[str] = (),
        actions: Collection[str] = (),
        before: float | None = None,
        cursor: str = "",
        limit: int = 50,
    ) -> Page[AuditEntry]:
        """Newest first, of what happened earlier than `before`; the cursor is a sequence number, so nothing is skipped."""
        ...


class Events(Protocol):
    async def add(self, event: Event) -> int:
        """Writes the event, and a waiting delivery for every channel of its team that asked for it."""
        ...

    async def after(self, team_id: str, sequence: int, *, resource_id: str = "", limit: int = 500) -> Sequence[Event]:
        """In order."""
        ...

    async def numbered(self, team_id: str, sequences: Collection[int]) -> Mapping[int, Event]:
        """Those of these numbers that are still there."""
        ...

    async def last(self, team_id: str) -> int: ...
    async def of(self, resource_id: str, limit: int = 50) -> Sequence[Event]: ...
    async def forget(self, before: float) -> int: ...


class Channels(Protocol):
    async def add(self, channel: Channel) -> None:
        """Raises Conflict when the team has one of that name."""
        ...

    async def get(self, team_id: str, channel_id: str) -> Channel | None: ...
    async def update(self, channel: Channel) -> None: ...
    async def list(self, team_id: str) -> Sequence[Channel]: ...
    async def remove(self, team_id: str, channel_id: str) -> None: ...

    async def claim(self, now: float, until: float, limit: int, *, of_team: int = 4) -> Sequence[tuple[Delivery, Channel, Event]]:
        """Due deliveries that nobody has in hand, taken until then. Of a channel only its oldest waiting one: the next is there when that is settled. Of a
        team at most `of_team` are in hand at once. Two workers never get the same one."""
        ...

    async def settle(self, delivery_id: str, state: DeliveryState, *, attempts: int, due_at: float, error: str) -> None:
        """What came of a waiting delivery; one that is settled already stays as it is."""
        ...

    async def give_up(self, channel_id: str, before: float, now: float, error: str) -> int:
        """The waiting deliveries of a channel that were due before that are DEAD; how many."""
        ...

    async def hurry(self, channel_id: str, now: float) -> None:
        """Its waiting deliveries are due now at the latest."""
        ...

    async def revive(self, team_id: str, channel_id: str, delivery_id: str, now: float) -> bool:
        """A DEAD delivery waits again, as if it were new; False: it is not DEAD."""
        ...

    async def delivery(self, team_id: str, channel_id: str, delivery_id: str) -> Delivery | None: ...

    async def deliveries(self, team_id: str, channel_id: str, *, state: DeliveryState | None = None, cursor: str = "", limit: int = 50) -> Page[Delivery]:
        """Newest events first."""
        ...

    async def next_due(self) -> float | None:
        """The earliest moment at which `claim` may have something."""
        ...

    async def forget_delivered(self, before: float) -> int:
        """Removes what was settled before that, and whatever has lost its channel or its event; how many."""
        ...


class Figures(Protocol):
    async def add_points(self, sandbox_id: str, tier: Tier, points: Sequence[MetricPoint]) -> None: ...
    async def points(self, sandbox_id: str, tier: Tier, since: float) -> Sequence[MetricPoint]: ...
    async def add_samples(self, samples: Sequence[TeamSample]) -> None: ...
    async def samples(self, team_id: str, since: float) -> Sequence[TeamSample]: ...
    async def add_usage(self, days: Sequence[UsageDay]) -> None:
        """Adds to what the day has."""
        ...

    async def usage(self, team_id: str, first: str, last: str) -> Sequence[UsageDay]: ...
    async def forget(self, points_before: float, samples_before: float) -> None: ...


class Memory(Protocol):
    """Idempotency keys, and small values of the installation (its secrets, versions)."""

    async def begin(self, entry: Remembered) -> Remembered | None:
        """Writes it and returns None, or returns the one that is there already."""
        ...

    async def finish(self, team_id: str, key: str, result: str) -> None: ...
    async def drop(self, team_id: str, key: str) -> None: ...
    async def forget(self, before: float) -> int: ...
    async def value(self, name: str) -> str | None: ...

    async def set_value(self, name: str, value: str, *, only_new: bool = False) -> str:
        """The value that holds afterwards: with `only_new` the one that was there first."""
        ...


class Records(Protocol):
    """One transaction. Not for several tasks."""

    @property
    def sandboxes(self) -> Sandboxes: ...
    @property
    def templates(self) -> Templates: ...
    @property
    def teams(self) -> Teams: ...
    @property
    def users(self) -> Users: ...
    @property
    def keys(self) -> Keys: ...
    @property
    def audit(self) -> Audit: ...
    @property
    def events(self) -> Events: ...
    @property
    def channels(self) -> Channels: ...
    @property
    def figures(self) -> Figures: ...
    @property
    def memory(self) -> Memory: ...
    @property
    def chores(self) -> Chores: ...

    async def hold(self, *names: str) -> None:
        """In a writing transaction, before it looks: until it ends no other one that holds one of these names gets past its own `hold`. Waits for such a one;
        HostUnavailable after 10 s. Hold all names in one call, the first of the transaction."""
        ...


class Store(Protocol):
    """All records of one installation."""

    async def open(self) -> None:
        """Connects and brings the schema up to date; several processes may do so at once. Raises NoSpace, NoPermission, Corrupt, Incompatible (a later version
        of torpor wrote it), HostUnavailable."""
        ...

    async def close(self) -> None: ...

    def read(self) -> AbstractAsyncContextManager[Records]:
        """A consistent view; writing in it is an error. Raises HostUnavailable when the database cannot be reached."""
        ...

    def look(self) -> AbstractAsyncContextManager[Records]:
        """As `read`, but each call sees what is committed at its own moment. The cheapest way to a record or two: on PostgreSQL one round trip, not three."""
        ...

    def write(self) -> AbstractAsyncContextManager[Records]:
        """A transaction. When the block has ended without an error it is durable. Raises NoSpace, HostUnavailable: then nothing was written, unless the
        connection was lost while committing, when it is committed or not, never half. So it is after a cancel while committing."""
        ...
