"""Users, teams and administrators on a control plane whose clock is moved."""

from __future__ import annotations

from dataclasses import dataclass

from service_world import World

from torpor.model.records import Actor, ActorKind, Role
from torpor.service.access import Access
from torpor.service.accounts import Accounts, SignUp
from torpor.service.admin import Admin
from torpor.service.audit import Audit
from torpor.service.caller import Caller
from torpor.service.control import ControlPlane
from torpor.service.first import FirstStart, first_start
from torpor.service.leaving import Leaving
from torpor.service.passwords import Passwords
from torpor.service.sessions import Client, Login, Sessions
from torpor.service.teams import Teams
from torpor.service.tries import Guard

PASSWORD = "correct horse battery"
HERE = Client("192.0.2.1", "test")


@dataclass
class People:
    world: World
    plane: ControlPlane
    first: FirstStart | None
    access: Access
    sessions: Sessions
    accounts: Accounts
    teams: Teams
    leaving: Leaving
    admin: Admin
    guard: Guard

    async def person(self, name: str) -> Login:
        """Somebody new who is logged in, with a team of their own. Each comes from elsewhere."""
        client = Client(f"198.51.100.{len(name)}", "test")
        token = await self.accounts.sign_up(client, f"{name}@example.org", PASSWORD, name)
        return await self.accounts.activate(client, token)

    async def caller(self, login: Login) -> Caller:
        return (await self.access.by_session(login.token or login.cookie)).caller

    async def root(self) -> Caller:
        """The administrator of the first start, acting for the platform."""
        async with self.world.store.look() as records:
            user = await records.users.by_email("admin@localhost")
        assert user is not None
        return Caller("0" * 25, Actor(ActorKind.USER, user.id, user.name), user_id=user.id, role=Role.OWNER, is_admin=True)


async def people_on(world: World, plane: ControlPlane, sign_up: SignUp = SignUp.OPEN) -> People:
    context = plane.context
    passwords = Passwords(time_cost=1, memory_kib=64)
    first = await first_start(context, passwords)
    access, guard = Access(context), Guard(context)
    await access.open()
    await access.close()  # what listens is not of use here, and the clock stands still
    sessions = Sessions(context, access)
    return People(
        world,
        plane,
        first,
        access,
        sessions,
        Accounts(context, sessions, passwords, guard, Audit(context), sign_up),
        Teams(context, guard),
        Leaving(context),
        Admin(context, plane.sandboxes, plane.templates, plane.chores),
        guard,
    )
