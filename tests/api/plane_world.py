"""The application on the real use cases: SQLite in a file, the bus of one process, a fake host whose guests are the real agent."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
from api_world import AgentSession, app_on, client_of, running_agent, served

from torpor.apps.control import People, Wired, control_plane
from torpor.hostlink.local import LocalHosts
from torpor.model.records import ApiKey, Team
from torpor.ports.hosts import Capacity, HostTemplate, Machine, Order
from torpor.service.access import digest_of
from torpor.service.accounts import SignUp
from torpor.service.first import new_key
from torpor.service.passwords import Passwords
from torpor.testing.fake_hosts import FakeHost


class AgentHost(FakeHost):
    """A fake host with templates `base` and `minimal`; its running sandboxes share one real agent."""

    def __init__(self, agent: Path, home: Path) -> None:
        super().__init__(capacity=Capacity(1 << 20, 1 << 30, 1 << 50, 1 << 30, 1 << 49))
        self._home = home
        self._session = AgentSession(agent)

    async def templates(self) -> Sequence[HostTemplate]:
        return [HostTemplate(name, "root", str(self._home), 1 << 20) for name in ("base", "minimal")]

    async def create(self, order: Order) -> Machine:
        return await super().create(replace(order, source="tiny") if order.source in ("base", "minimal") else order)

    async def guest(self, sandbox_id: str) -> Any:
        await super().guest(sandbox_id)  # raises unless it runs
        return await self._session.guest()

    async def close(self) -> None:
        await self._session.close()


@dataclass
class Plane:
    """`client` has the first team's key, `other` another team's, `anyone` none."""

    url: str
    key: str
    client: httpx.AsyncClient
    other: httpx.AsyncClient
    anyone: httpx.AsyncClient
    host: AgentHost
    wired: Wired
    app: Any
    home: Path
    clients: AsyncExitStack

    def stack_client(self) -> httpx.AsyncClient:
        """One more without a credential, closed with the rest."""
        client = httpx.AsyncClient(base_url=self.url)
        self.clients.push_async_callback(client.aclose)
        return client

    async def capsule(self, **fields: Any) -> str:
        answer = await self.client.post("/v1/capsules", json={"template": "base"} | fields, headers={"Prefer": "wait=100"})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    async def add_key(self, team_id: str = "", **fields: Any) -> str:
        """A key of the first team, unless another is named; its secret."""
        secret, context = new_key(), self.wired.context
        assert self.wired.first is not None
        key = ApiKey(context.new_id(), team_id or self.wired.first.team_id, "k", digest_of(secret), secret[:10], context.now(), **fields)
        async with context.store.write() as records:
            await records.keys.add(key)
        return secret

    async def add_team(self) -> str:
        context = self.wired.context
        team = Team(context.new_id(), "Others", context.new_id()[:12], context.now())
        async with context.store.write() as records:
            await records.teams.add(team)
        return team.id


def cheap(**more: Any) -> People:
    """Passwords that cost little, and whoever asks may sign up."""
    return People(**({"sign_up": SignUp.OPEN, "passwords": Passwords(time_cost=1, memory_kib=64)} | more))


@asynccontextmanager
async def open_plane(folder: Path, people: People | None = None, **how: Any) -> AsyncIterator[Plane]:
    """`how`: see apps.control.control_plane."""
    with running_agent(folder) as agent:
        host = AgentHost(agent, folder / "home")
        async with control_plane(LocalHosts(host), folder / "records.db", people=people or cheap(), **how) as wired:
            assert wired.first is not None
            app = app_on(wired.services)
            key = wired.first.key
            async with served(app) as url, AsyncExitStack() as clients, client_of(url) as anyone:
                async with client_of(url, key) as client, client_of(url) as other:
                    plane = Plane(url, key, client, other, anyone, host, wired, app, folder / "home", clients)
                    other.headers["X-API-Key"] = await plane.add_key(await plane.add_team())
                    yield plane
        await host.close()
