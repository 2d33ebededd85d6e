"""What administrators of the installation do: users, teams, templates, the platform's audit log. The platform's sandboxes are in admin_capsules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Depends, Path, Query
from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from torpor.api.auth import Needs
from torpor.api.native import keys, snapshots
from torpor.api.native.account import Email, PersonName
from torpor.api.native.common import Given, router
from torpor.api.native.idempotency import key_and_digest
from torpor.api.native.ids import Prefix, inner, show, stamp
from torpor.api.native.models import Answer, Body
from torpor.api.native.pages import Cursor, headers, page
from torpor.api.native.teams import TeamId, UserId, cleared
from torpor.api.native.wait import QUICK, bound
from torpor.model.records import Limits, TeamSummary, User, UserSummary
from torpor.service.admin import INVITATION_SECONDS, RESET_SECONDS, page_of, pages_of
from torpor.service.caller import Caller

admin = router("admin", "/v1/admin")
Administrator = Annotated[Caller, Depends(Needs("admin", admin=True))]
PER_PAGE = 100
Number = Annotated[int, Query(ge=1, le=1_000_000, description="Counts from 1.")]
_MOST = (1 << 53) - 1


class NewUser(Body):
    email: Email
    name: PersonName


class Active(Body):
    active: bool


class IsAdmin(Body):
    admin: bool


class TeamLimits(Body):
    """What is left out holds as for every team."""

    sandboxes: Annotated[int | None, Field(ge=0, le=_MOST)] = None
    vcpus: Annotated[int | None, Field(ge=0, le=_MOST)] = None
    memory_mb: Annotated[int | None, Field(ge=0, le=_MOST)] = None
    storage_bytes: Annotated[int | None, Field(ge=0, le=_MOST)] = None


class Numbered(Answer):
    """`next_cursor` leads to the next page as well, whatever comes or goes."""

    total: int
    page: int
    per_page: int
    total_pages: int
    next_cursor: str | None = None


class Teams(Numbered):
    teams: list[dict[str, Any]]


class Users(Numbered):
    users: list[dict[str, Any]]


class UserToken(Answer):
    """`token`: for the administrator to hand over; shown this once."""

    user: dict[str, Any]
    token: str | None = None
    expires_in: int | None = None


def user_tree(user: User) -> dict[str, Any]:
    return {
        "id": show(Prefix.USER, user.id),
        "email": user.email,
        "name": user.name,
        "is_admin": user.is_admin,
        "status": user.status.value,
        "created_at": stamp(user.created_at),
    }


def _user(found: UserSummary) -> dict[str, Any]:
    return user_tree(found.user) | {"teams_joined": found.teams_joined, "teams_owned": found.teams_owned}


def _team(found: TeamSummary) -> dict[str, Any]:
    team = found.team
    return {
        "id": show(Prefix.TEAM, team.id),
        "name": team.name,
        "slug": team.slug,
        "is_byoc": False,
        "created_at": stamp(team.created_at),
        "deleted_at": stamp(team.deleted_at) if team.deleted_at is not None else None,
        "member_count": found.members,
        "owner_name": found.owner.name if found.owner else "",
        "owner_email": found.owner.email if found.owner else "",
        "active_sandbox_count": found.sandboxes,
        "channel_count": found.channels,
        "limits": _limits(team.limits),
    }


def _limits(limits: Limits) -> dict[str, int]:
    fields = {"sandboxes": limits.sandboxes, "vcpus": limits.vcpus, "memory_mb": limits.memory_mib, "storage_bytes": limits.storage_bytes}
    return {name: value for name, value in fields.items() if value is not None}


def _numbered(request: Request, items: Mapping[str, list[dict[str, Any]]], number: int, total: int, following: str) -> Response:
    fields: dict[str, Any] = {**items, "total": total, "page": number, "per_page": PER_PAGE, "total_pages": pages_of(total, PER_PAGE)}
    return JSONResponse(fields | ({"next_cursor": following} if following else {}), headers=headers(request, following))


# Users


@admin.get("/users", response_model=Users)
async def users(request: Request, caller: Administrator, services: Given, number: Annotated[Number, Query(alias="page")] = 1, cursor: Cursor = "") -> Response:
    """Newest first, by page or by cursor."""
    found, total = await services.admin.users(cursor=cursor, offset=0 if cursor else page_of(number, PER_PAGE), limit=PER_PAGE)
    return _numbered(request, {"users": [_user(one) for one in found.items]}, number, total, found.next)


@admin.post("/users", status_code=201, response_model=UserToken)
async def create_user(request: Request, body: NewUser, caller: Administrator, services: Given) -> Response:
    """An account without a password. Whoever has the token activates it and sets one."""
    key, digest = await key_and_digest(request)
    user, token = await services.admin.create_user(caller, body.email, body.name, idempotency_key=key, request_digest=digest)
    fields: dict[str, Any] = {"user": user_tree(user)}
    return JSONResponse(fields | ({"token": token, "expires_in": int(INVITATION_SECONDS)} if token else {}), 201)


@admin.post("/users/{user_id}/invitation", status_code=201, response_model=UserToken)
async def invite(user_id: UserId, caller: Administrator, services: Given) -> Response:
    """Another activation token, in the place of the one before."""
    which = inner(Prefix.USER, user_id)
    token = await services.admin.invitation(caller, which)
    return JSONResponse({"user": {"id": show(Prefix.USER, which)}, "token": token, "expires_in": int(INVITATION_SECONDS)}, 201)


@admin.post("/users/{user_id}/password-reset", status_code=201, response_model=UserToken)
async def reset(user_id: UserId, caller: Administrator, services: Given) -> Response:
    """A token with which the user sets another password, at /v1/me/password/reset/confirm."""
    which = inner(Prefix.USER, user_id)
    token = await services.admin.reset(caller, which)
    return JSONResponse({"user": {"id": show(Prefix.USER, which)}, "token": token, "expires_in": int(RESET_SECONDS)}, 201)


@admin.put("/users/{user_id}/active", status_code=204, response_class=Response)
async def set_active(user_id: UserId, body: Active, caller: Administrator, services: Given) -> Response:
    """Deactivation ends logins and keys at once; what runs in teams that nobody else owns is paused."""
    await services.admin.set_active(caller, inner(Prefix.USER, user_id), active=body.active)
    return Response(status_code=204)


@admin.put("/users/{user_id}/admin", status_code=204, response_class=Response)
async def set_admin(user_id: UserId, body: IsAdmin, caller: Administrator, services: Given) -> Response:
    """The last administrator stays one."""
    await services.admin.set_admin(caller, inner(Prefix.USER, user_id), admin=body.admin)
    return Response(status_code=204)


@admin.delete("/users/{user_id}", status_code=204, response_class=Response)
async def refuse(user_id: UserId, caller: Administrator, services: Given) -> Response:
    """Removes an account that was never active."""
    await services.admin.refuse(caller, inner(Prefix.USER, user_id))
    return Response(status_code=204)


# Teams


@admin.get("/teams", response_model=Teams)
async def teams(request: Request, caller: Administrator, services: Given, number: Annotated[Number, Query(alias="page")] = 1, cursor: Cursor = "") -> Response:
    """Newest first, deleted ones too, by page or by cursor."""
    found, total = await services.admin.teams(cursor=cursor, offset=0 if cursor else page_of(number, PER_PAGE), limit=PER_PAGE)
    return _numbered(request, {"teams": [_team(one) for one in found.items]}, number, total, found.next)


@admin.delete("/teams/{team_id}", status_code=204, response_class=Response, responses={202: {"description": "Gone; what it had is being removed."}})
async def delete_team(request: Request, team_id: TeamId, caller: Administrator, services: Given) -> Response:
    """Its keys and logins end at once; what it had is removed."""
    seconds = bound(request, QUICK)
    chore = await services.admin.delete_team(caller, inner(Prefix.TEAM, team_id))
    return cleared(await services.chores.done([chore], seconds), team_id)


@admin.put("/teams/{team_id}/limits", status_code=204, response_class=Response)
async def set_limits(team_id: TeamId, body: TeamLimits, caller: Administrator, services: Given) -> Response:
    """The team's own limits."""
    limits = Limits(body.sandboxes, body.vcpus, body.memory_mb, body.storage_bytes)
    await services.admin.set_limits(caller, inner(Prefix.TEAM, team_id), limits)
    return Response(status_code=204)


# Templates, audit


@admin.get("/templates", response_model=list[dict[str, Any]])
async def templates(
    request: Request, caller: Administrator, services: Given, cursor: Cursor = "", limit: Annotated[int, Query(ge=1, le=1000)] = 1000
) -> Response:
    """Every team's, newest first."""
    found = await services.admin.templates(cursor=cursor, limit=limit)
    return page(request, [snapshots.tree(one) | {"team_id": show(Prefix.TEAM, one.team_id)} for one in found.items], found.next)


@admin.delete("/templates/{name}", status_code=204, response_class=Response)
async def delete_template(name: Annotated[str, Path(max_length=64, description="A name, or an id.")], caller: Administrator, services: Given) -> Response:
    """A snapshot of the platform's. Base templates are removed where they are built."""
    await services.admin.delete_template(caller, snapshots.key_of(name))
    return Response(status_code=204)


admin.add_api_route("/audit-logs", keys.audit, response_model=keys.AuditLog)
