"""People who sign up, log in and act over HTTP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import httpx
from plane_world import Plane

from torpor.service.first import ADMIN_EMAIL

PASSWORD = "correct horse battery"


@dataclass
class Person:
    """Somebody logged in; `client` sends the token."""

    plane: Plane
    email: str
    user_id: str
    team_id: str
    token: str
    client: httpx.AsyncClient

    async def invite(self, other: Person, role: str = "member") -> None:
        """Into this one's team; the other one acts for it from now on."""
        members = f"/v1/teams/{self.team_id}/members"
        assert (await self.client.post(members, json={"email": other.email})).status_code == 201
        if role != "member":
            assert (await self.client.patch(f"{members}/{other.user_id}", json={"role": role})).status_code == 204
        await other.switch(self.team_id)

    async def switch(self, team_id: str) -> None:
        self.become((await self.client.post("/v1/auth/switch-team", json={"team_id": team_id})).json())

    def become(self, answer: dict[str, Any]) -> None:
        self.user_id, self.team_id, self.token = answer["user_id"], answer["team_id"], answer["token"]
        self.client.headers["Authorization"] = f"Bearer {self.token}"

    async def capsule(self) -> str:
        answer = await self.client.post("/v1/capsules", json={"template": "base"})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])


async def login(plane: Plane, email: str = ADMIN_EMAIL, password: str = "") -> Person:
    """The administrator of the first start, unless somebody else is named."""
    assert plane.wired.first is not None
    answer = await plane.anyone.post("/v1/auth/login", json={"email": email, "password": password or plane.wired.first.password})
    assert answer.status_code == 200, answer.text
    return _person(plane, email, answer.json())


async def person(plane: Plane, name: str, email: str = "") -> Person:
    """Somebody new, with a team of their own."""
    email = email or f"{name}@example.org"
    signed_up = await plane.anyone.post("/v1/auth/signup", json={"email": email, "password": PASSWORD, "name": name})
    assert signed_up.status_code == 201, signed_up.text
    answer = await plane.anyone.post("/v1/auth/activate", json={"token": signed_up.json()["activation_token"]})
    assert answer.status_code == 200, answer.text
    return _person(plane, email, answer.json())


def _person(plane: Plane, email: str, answer: dict[str, Any]) -> Person:
    client = plane.stack_client()
    made = Person(plane, email, "", "", "", client)
    made.become(answer)
    return made
