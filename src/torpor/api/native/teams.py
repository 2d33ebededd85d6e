"""Teams and their members, for people. A path's team must be the one that the login acts for; POST /v1/auth/switch-team changes that."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Depends, Path
from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from torpor.api.auth import Needs
from torpor.api.native.account import Email
from torpor.api.native.common import Given, router
from torpor.api.native.idempotency import key_and_digest
from torpor.api.native.ids import Prefix, inner, show, stamp
from torpor.api.native.models import Answer, Body, Text
from torpor.api.native.pages import Cursor, Limit, page, part
from torpor.api.native.wait import QUICK, bound
from torpor.model.records import Member, Role, Team, User
from torpor.service.caller import Caller

teams = router("teams")
Person = Annotated[Caller, Depends(Needs("team", user=True))]
TeamId = Annotated[str, Path(description="A team's id.")]
UserId = Annotated[str, Path(description="A user's id.")]


class Named(Body):
    name: Annotated[Text, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9 _\-@']{1,128}$")]


class NewMember(Body):
    email: Email


class NewRole(Body):
    role: Literal["owner", "admin", "member"]


class TeamAnswer(Answer):
    id: str
    name: str
    slug: str
    is_byoc: bool
    created_at: str
    role: str | None = None


class MemberAnswer(Answer):
    user_id: str
    name: str
    email: str
    role: str
    joined_at: str


class WithMembers(Answer):
    team: TeamAnswer
    members: list[MemberAnswer]


def tree(team: Team, role: Role | None = None) -> dict[str, Any]:
    """The JSON of a team. Hosts of a team's own do not exist (`is_byoc`)."""
    fields: dict[str, Any] = {
        "id": show(Prefix.TEAM, team.id),
        "name": team.name,
        "slug": team.slug,
        "is_byoc": False,
        "created_at": stamp(team.created_at),
    }
    return fields | ({"role": role.value} if role else {})


def member_tree(member: Member, user: User) -> dict[str, Any]:
    return {
        "user_id": show(Prefix.USER, user.id),
        "name": user.name,
        "email": user.email,
        "role": member.role.value,
        "joined_at": stamp(member.joined_at),
    }


@teams.get("/teams", response_model=list[TeamAnswer])
async def list_(request: Request, caller: Person, services: Given, cursor: Cursor = "", limit: Limit = 1000) -> Response:
    """The user's teams, the default one first, then by the time of joining."""
    found = part("teams", await services.teams.list(caller), _place, cursor, limit, oldest_first=True)
    return page(request, [tree(team, member.role) for team, member in found.items], found.next)


def _place(one: tuple[Team, Member]) -> tuple[float, str]:
    team, member = one
    return (0.0 if member.is_default else member.joined_at), team.id


@teams.post("/teams", status_code=201, response_model=TeamAnswer)
async def create(request: Request, body: Named, caller: Person, services: Given) -> Response:
    """A team that the user owns."""
    key, digest = await key_and_digest(request)
    team, member = await services.teams.create(caller, body.name, idempotency_key=key, request_digest=digest)
    return JSONResponse(tree(team, member.role), 201)


@teams.get("/teams/{team_id}", response_model=WithMembers)
async def get(team_id: TeamId, caller: Person, services: Given) -> Response:
    """A team and its members."""
    team, members = await services.teams.get(caller, inner(Prefix.TEAM, team_id))
    return JSONResponse({"team": tree(team, caller.role), "members": [member_tree(*one) for one in members]})


@teams.patch("/teams/{team_id}", status_code=204, response_class=Response)
async def rename(team_id: TeamId, body: Named, caller: Person, services: Given) -> Response:
    """For owners and admins."""
    await services.teams.rename(caller, inner(Prefix.TEAM, team_id), body.name)
    return Response(status_code=204)


@teams.delete("/teams/{team_id}", status_code=204, response_class=Response, responses={202: {"description": "Gone; what it had is being removed."}})
async def delete(request: Request, team_id: TeamId, caller: Person, services: Given) -> Response:
    """For owners. Its keys and logins end at once; its sandboxes, snapshots, keys, channels and members are removed."""
    seconds = bound(request, QUICK)
    chore = await services.teams.delete(caller, inner(Prefix.TEAM, team_id))
    return cleared(await services.chores.done([chore], seconds), team_id)


def cleared(done: bool, team_id: str) -> Response:
    return Response(status_code=204) if done else JSONResponse({"id": team_id, "state": "clearing"}, 202)


@teams.get("/teams/{team_id}/members", response_model=list[MemberAnswer])
async def members(request: Request, team_id: TeamId, caller: Person, services: Given, cursor: Cursor = "", limit: Limit = 1000) -> Response:
    """By the time they joined."""
    _, everybody = await services.teams.get(caller, inner(Prefix.TEAM, team_id))
    found = part("members", everybody, lambda one: (one[0].joined_at, one[1].id), cursor, limit, oldest_first=True)
    return page(request, [member_tree(*one) for one in found.items], found.next)


@teams.post("/teams/{team_id}/members", status_code=201, response_model=MemberAnswer)
async def add(team_id: TeamId, body: NewMember, caller: Person, services: Given) -> Response:
    """For owners and admins: a user who has an account, as a plain member."""
    return JSONResponse(member_tree(*await services.teams.add(caller, inner(Prefix.TEAM, team_id), body.email)), 201)


@teams.patch("/teams/{team_id}/members/{user_id}", status_code=204, response_class=Response)
async def set_role(team_id: TeamId, user_id: UserId, body: NewRole, caller: Person, services: Given) -> Response:
    """For owners and admins; an owner is made and unmade by owners only."""
    await services.teams.set_role(caller, inner(Prefix.TEAM, team_id), inner(Prefix.USER, user_id), Role(body.role))
    return Response(status_code=204)


@teams.delete("/teams/{team_id}/members/{user_id}", status_code=204, response_class=Response)
async def remove(team_id: TeamId, user_id: UserId, caller: Person, services: Given) -> Response:
    """For owners and admins. The keys that the user made in this team are revoked."""
    await services.teams.remove(caller, inner(Prefix.TEAM, team_id), inner(Prefix.USER, user_id))
    return Response(status_code=204)


@teams.post("/teams/{team_id}/leave", status_code=204, response_class=Response)
async def leave(team_id: TeamId, caller: Person, services: Given) -> Response:
    """The last owner stays."""
    await services.teams.leave(caller, inner(Prefix.TEAM, team_id))
    return Response(status_code=204)
