"""What the application is given: the use cases, and what it must know of the installation."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network

from torpor.model.records import SandboxState
from torpor.service.access import Access
from torpor.service.accounts import Accounts
from torpor.service.admin import Admin
from torpor.service.audit import Audit
from torpor.service.channels import Channels
from torpor.service.chores import Chores
from torpor.service.events import Events
from torpor.service.figures import Figures
from torpor.service.keys import Keys
from torpor.service.leaving import Leaving
from torpor.service.lives import Lives
from torpor.service.sandboxes import Sandboxes
from torpor.service.sessions import Sessions
from torpor.service.tags import Tags
from torpor.service.teams import Teams
from torpor.service.templates import Templates
from torpor.service.tokens import SandboxTokens


@dataclass(frozen=True, slots=True)
class Services:
    """`counts`: how many sandboxes of the installation are in each state. `origins`: of pages, beside the one the API is served from, that may use its
    cookies. `proxies`: whose word about a client's address is taken."""

    access: Access
    sandboxes: Sandboxes
    templates: Templates
    figures: Figures
    events: Events
    keys: Keys
    audit: Audit
    sessions: Sessions
    accounts: Accounts
    leaving: Leaving
    teams: Teams
    chores: Chores
    admin: Admin
    channels: Channels
    tokens: SandboxTokens
    tags: Tags
    lives: Lives
    counts: Callable[[], Awaitable[Mapping[SandboxState, int]]]
    origins: Collection[str] = field(default=())
    proxies: Collection[IPv4Network | IPv6Network] = field(default=())
