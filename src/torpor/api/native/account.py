"""Sign-up, login, and a user's own account.

A login answers with a `token` to send as bearer; with `"cookie": true` it sets a cookie that no script can read and answers with the `csrf_token` that changing
requests of the page must show as X-CSRF-Token.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Path, Query
from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from torpor.api.auth import Needs, by_cookie, check_origin, client_of, forget_login, give_login
from torpor.api.native.common import Given, router
from torpor.api.native.ids import Prefix, inner, show, stamp
from torpor.api.native.models import Answer, Body, Text
from torpor.api.native.pages import Cursor, Limit, page, part
from torpor.api.native.wait import QUICK, bound
from torpor.model.records import Session
from torpor.service.caller import Caller
from torpor.service.sessions import Login

account = router("account")
Person = Annotated[Caller, Depends(Needs("account", user=True))]
Email = Annotated[Text, Field(min_length=3, max_length=254)]
Password = Annotated[Text, Field(min_length=8, max_length=1024)]
Secret = Annotated[Text, Field(max_length=1024)]
"""A password as somebody remembers it, or a token."""
PersonName = Annotated[Text, Field(min_length=1, max_length=100)]


class SignUp(Body):
    email: Email
    password: Password
    name: PersonName


class Activation(Body):
    token: Secret
    password: Annotated[Password | None, Field(description="Sets one; needed for an account that an administrator made.")] = None
    cookie: bool = False


class LogIn(Body):
    email: Email
    password: Secret
    cookie: bool = False


class SwitchTeam(Body):
    team_id: Annotated[Text, Field(max_length=64)]


class Rename(Body):
    name: PersonName


class Confirmation(Body):
    confirmation: Annotated[Text, Field(max_length=254, description="The account's e-mail address.")]


class NewPassword(Body):
    current_password: Secret
    new_password: Password


class Reset(Body):
    token: Secret
    new_password: Password


class SignedUp(Answer):
    """`activation_token` where nobody has to approve."""

    message: str
    activation_token: str | None = None


class LoggedIn(Answer):
    """`token` or `csrf_token`: see login."""

    user_id: str
    team_id: str
    email: str
    name: str
    expires_at: str | None = None
    token: str | None = None
    csrf_token: str | None = None


class Me(Answer):
    id: str
    name: str
    email: str
    has_password: bool
    providers: list[str]
    is_admin: bool
    team_id: str
    role: str
    created_at: str


class LoginRecord(Answer):
    """`current`: the one that asks. `kind` browser: a cookie, else token."""

    id: str
    kind: str
    team_id: str
    address: str
    agent: str
    created_at: str
    expires_at: str
    current: bool


class FoundUser(Answer):
    user_id: str
    email: str


def logged_in(request: Request, login: Login) -> Response:
    """The answer to whatever let somebody in."""
    fields: dict[str, Any] = {
        "user_id": show(Prefix.USER, login.user.id),
        "team_id": show(Prefix.TEAM, login.team_id),
        "email": login.user.email,
        "name": login.user.name,
        "expires_at": stamp(login.session.expires_at),
    }
    if login.token:
        return JSONResponse(fields | {"token": login.token})
    response = JSONResponse(fields | {"csrf_token": login.session.csrf})
    seconds = int(login.session.expires_at - login.session.created_at)
    give_login(request, response, login.cookie, seconds)
    return response


# Coming in


@account.post("/auth/signup", status_code=201, response_model=SignedUp)
async def sign_up(request: Request, body: SignUp, services: Given) -> Response:
    """Makes an inactive account, where the installation allows it. Whether somebody has to approve it, the installation says too."""
    token = await services.accounts.sign_up(client_of(request), body.email, body.password, body.name)
    if token:
        return JSONResponse({"message": "Activate the account with this token within half an hour.", "activation_token": token}, 201)
    return JSONResponse({"message": "An administrator will look at it."}, 201)


@account.post("/auth/activate", response_model=LoggedIn)
async def activate(request: Request, body: Activation, services: Given) -> Response:
    """Makes an account active, once, and logs in."""
    if body.cookie:
        check_origin(request)
    return logged_in(request, await services.accounts.activate(client_of(request, wants_cookie=body.cookie), body.token, body.password or ""))


@account.post("/auth/login", response_model=LoggedIn)
async def log_in(request: Request, body: LogIn, services: Given) -> Response:
    """Into the user's default team."""
    if body.cookie:
        check_origin(request)
    return logged_in(request, await services.accounts.log_in(client_of(request, wants_cookie=body.cookie), body.email, body.password))


@account.post("/auth/switch-team", response_model=LoggedIn)
async def switch_team(request: Request, body: SwitchTeam, caller: Person, services: Given) -> Response:
    """A login for another of the user's teams."""
    client = client_of(request, wants_cookie=by_cookie(request))
    return logged_in(request, await services.accounts.switch_team(caller, client, inner(Prefix.TEAM, body.team_id)))


@account.get("/auth/session", response_model=LoggedIn)
async def session(caller: Person, services: Given) -> Response:
    """Who is logged in, and for a browser's page that was loaded anew its CSRF token."""
    user, present = await services.accounts.me(caller), await services.sessions.own(caller)
    fields = {"user_id": show(Prefix.USER, user.id), "team_id": show(Prefix.TEAM, caller.team_id), "email": user.email, "name": user.name}
    if present.csrf:
        fields["csrf_token"] = present.csrf
    return JSONResponse(fields | {"expires_at": stamp(present.expires_at)})


@account.post("/auth/logout", status_code=204, response_class=Response)
async def log_out(request: Request, caller: Person, services: Given) -> Response:
    """Ends this login."""
    await services.sessions.end(caller, caller.session_id)
    response = Response(status_code=204)
    forget_login(request, response)
    return response


@account.post("/me/password/reset/confirm", status_code=204, response_class=Response)
async def reset(request: Request, body: Reset, services: Given) -> Response:
    """Sets another password with a token that an administrator made, and ends every login."""
    await services.accounts.reset_password(client_of(request), body.token, body.new_password)
    return Response(status_code=204)


# One's own account


@account.get("/me", response_model=Me)
async def me(caller: Person, services: Given) -> Response:
    """The user's own account."""
    user = await services.accounts.me(caller)
    return JSONResponse(
        {
            "id": show(Prefix.USER, user.id),
            "name": user.name,
            "email": user.email,
            "has_password": bool(user.password),
            "providers": [],
            "is_admin": user.is_admin,
            "team_id": show(Prefix.TEAM, caller.team_id),
            "role": caller.role.value if caller.role else "",
            "created_at": stamp(user.created_at),
        }
    )


@account.patch("/me", response_model=LoggedIn)
async def rename(request: Request, body: Rename, caller: Person, services: Given) -> Response:
    """Another name. The answer to a bearer has a token that says it."""
    user = await services.accounts.rename(caller, body.name)
    if by_cookie(request):
        fields = {"user_id": show(Prefix.USER, user.id), "team_id": show(Prefix.TEAM, caller.team_id), "email": user.email, "name": user.name}
        return JSONResponse(fields)
    return logged_in(request, await services.accounts.again(caller, client_of(request)))


@account.delete("/me", status_code=204, response_class=Response, responses={202: {"description": "Gone; its teams are being cleared."}})
async def delete(request: Request, body: Confirmation, caller: Person, services: Given) -> Response:
    """Deletes the account, and the teams it owns alone."""
    seconds = bound(request, QUICK)
    chores = await services.leaving.delete(caller, body.confirmation)
    done = await services.chores.done(chores, seconds)
    response = Response(status_code=204) if done else JSONResponse({"state": "clearing"}, 202)
    forget_login(request, response)
    return response


@account.post("/me/password", status_code=204, response_class=Response)
async def change_password(body: NewPassword, caller: Person, services: Given) -> Response:
    """Ends every other login of the user."""
    await services.accounts.change_password(caller, body.current_password, body.new_password)
    return Response(status_code=204)


@account.get("/me/sessions", response_model=list[LoginRecord])
async def sessions(request: Request, caller: Person, services: Given, cursor: Cursor = "", limit: Limit = 1000) -> Response:
    """The user's logins, newest first."""
    found = part("logins", await services.sessions.list(caller), lambda one: (one.created_at, one.id), cursor, limit)
    return page(request, [_session(one, caller) for one in found.items], found.next)


def _session(one: Session, caller: Caller) -> dict[str, Any]:
    return {
        "id": show(Prefix.SESSION, one.id),
        "kind": "browser" if one.csrf else "token",
        "team_id": show(Prefix.TEAM, one.team_id),
        "address": one.address,
        "agent": one.agent,
        "created_at": stamp(one.created_at),
        "expires_at": stamp(one.expires_at),
        "current": one.id == caller.session_id,
    }


@account.delete("/me/sessions/{session_id}", status_code=204, response_class=Response)
async def end_session(session_id: Annotated[str, Path(description="A login's id.")], caller: Person, services: Given) -> Response:
    """Ends a login at once."""
    await services.sessions.end(caller, inner(Prefix.SESSION, session_id))
    return Response(status_code=204)


@account.get("/users/search", response_model=list[FoundUser])
async def search(
    request: Request,
    caller: Person,
    services: Given,
    email: Annotated[str, Query(max_length=254, description="The beginning of it, with the @.")],
    cursor: Cursor = "",
    limit: Limit = 10,
) -> Response:
    """Users by e-mail address, in the order of the addresses: those who share a team with the caller, and whoever is named in full."""
    found = await services.teams.search(caller, email, cursor=cursor, limit=limit)
    return page(request, [{"user_id": show(Prefix.USER, one.id), "email": one.email} for one in found.items], found.next)
