"""Who is calling. Three kinds of credential, in this order; the first that is present decides:

    X-API-Key: trp_...                       a team's key
    Authorization: Bearer <token>            a login's token (a key is taken here too)
    Cookie: torpor_session=<token>           the same token in a browser: a request that changes something also needs the X-CSRF-Token that the login gave,
                                             and an Origin that is ours. Over TLS the name begins with __Host-, see session_of

Everything under /v1/admin is for administrators, and acts for the platform's team there. That a person is one is read from the records each time.

A WebSocket or an event stream, where browsers cannot set headers, takes `?ticket=` (single use, 30 s) as well, and a WebSocket a first frame
{"type": "auth", "token": ...} with a token or a key within AUTH_SECONDS. A cookie counts on a WebSocket only with an Origin that is ours.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_address
from typing import Any, cast
from urllib.parse import urlsplit

from fastapi import Request, WebSocket
from starlette.requests import HTTPConnection
from starlette.responses import Response

from torpor.api.middleware import request_id_of
from torpor.api.services import Services
from torpor.log import Log
from torpor.model.errors import Forbidden, InvalidInput, Unauthorized
from torpor.model.records import PLATFORM_TEAM
from torpor.service.access import LoggedIn
from torpor.service.caller import Caller
from torpor.service.sessions import Client

log = Log()

COOKIE = "torpor_session"
HOST_COOKIE = f"__Host-{COOKIE}"
"""Browsers take this name only from the very host it goes back to, over TLS, for the whole host (RFC 6265bis, section 4.1.3.2)."""
ADMIN = "/v1/admin/"
AUTH_SECONDS = 5.0
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


def services_of(connection: HTTPConnection) -> Services:
    found: Services = connection.app.state.services
    return found


class Needs:
    """A FastAPI dependency: the caller of a request, who has this scope. `user`: a person who logged in, not a key. `admin`: a person who runs the
    installation. `ticket`: `?ticket=` is taken too."""

    def __init__(self, scope: str, *, user: bool = False, admin: bool = False, ticket: bool = False) -> None:
        self.scope = scope
        self.user = user or admin
        self.admin = admin
        self.ticket = ticket

    def at(self, path: str) -> Needs:
        """What it needs at this path: the same, or below /v1/admin an administrator."""
        return Needs(self.scope, admin=True, ticket=self.ticket) if path.startswith(ADMIN) and not self.admin else self

    async def __call__(self, request: Request) -> Caller:
        """Asked again for the same request it says the same: a ticket is good for once."""
        state = request.scope["state"]
        known, caller = state.get("admitted", (None, None))
        if known is not self:
            caller = await self.admit(request, await authenticate(request, ticket=self.ticket))
            state["admitted"] = (self, caller)
        return cast("Caller", caller)

    async def admit(self, connection: HTTPConnection, caller: Caller) -> Caller:
        """The caller, named for the log and bound to this request. Raises Forbidden, which the audit log then has."""
        path = connection.scope["route"].path
        caller = replace(caller, request_id=request_id_of(connection.scope))
        connection.scope["state"]["caller"] = caller
        try:
            self.at(path).check(caller)
        except Forbidden as error:
            await note_refusal(connection, error)
            raise
        return replace(caller, team_id=PLATFORM_TEAM) if path.startswith(ADMIN) else caller

    def check(self, caller: Caller) -> None:
        """Raises Forbidden."""
        if self.user and not caller.user_id:
            raise Forbidden("This needs a person who logged in; an API key is not enough.")
        if self.admin and not caller.is_admin:
            raise Forbidden("This is for administrators of the installation.")
        caller.demand(self.scope)


async def note_refusal(connection: HTTPConnection, error: Exception) -> None:
    """Into the audit log, once a request, when it is known who was refused."""
    state = connection.scope["state"]
    caller: Caller | None = state.get("caller")
    if caller is not None and not state.get("refusal_noted"):
        state["refusal_noted"] = True
        route = connection.scope.get("route")
        what = f"{connection.scope.get('method', 'WEBSOCKET')} {getattr(route, 'path', '')}"
        await services_of(connection).audit.refused(caller, what, getattr(error, "message", str(error)))


async def authenticate(connection: HTTPConnection, *, ticket: bool = False) -> Caller:
    """Raises Unauthorized without a valid credential, Forbidden for a browser's request that lacks its CSRF token or comes from elsewhere."""
    headers, access = connection.headers, services_of(connection).access
    if key := headers.get("x-api-key"):
        return await access.by_key(key)
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token:
        return await _by_token(connection, token.strip())
    if ticket and (given := connection.query_params.get("ticket")):
        return await access.by_ticket(given)
    if cookie := session_of(connection):
        logged_in = await access.by_session(cookie)
        connection.scope["state"] |= {"caller": logged_in.caller, "by_cookie": True}
        _check_browser(connection, logged_in)
        return logged_in.caller
    raise Unauthorized("No key and no login was given.", mend="Send X-API-Key, or Authorization: Bearer.")


async def _by_token(connection: HTTPConnection, token: str) -> Caller:
    access = services_of(connection).access
    if token.startswith(("trp_", "e2b_", "wrn_")):
        return await access.by_key(token)
    return (await access.by_session(token)).caller


def _check_browser(connection: HTTPConnection, logged_in: LoggedIn) -> None:
    origin = connection.headers.get("origin", "")
    is_socket = connection.scope["type"] == "websocket"
    if (origin or is_socket) and not _ours(connection, origin):
        raise Forbidden("The request comes from a page of another origin.")
    if is_socket or connection.scope["method"] in _SAFE:
        return
    if not hmac.compare_digest(connection.headers.get("x-csrf-token", "").encode(), logged_in.csrf.encode()):
        raise Forbidden("The X-CSRF-Token is missing or wrong.")


def cookie_name(connection: HTTPConnection) -> str:
    """By which name a browser keeps its login with us. Over TLS one that no neighbour under the same domain can set; over plain HTTP browsers refuse that."""
    return HOST_COOKIE if is_secure(connection) else COOKIE


def session_of(connection: HTTPConnection) -> str:
    """The login in the cookie; '' for none. Over TLS the plain name counts for nothing. One that is there twice is none: a page of a neighbour, such as a
    sandbox's, may have set one of the same name for the whole domain, and nobody can tell which is whose."""
    wanted = cookie_name(connection)
    pairs = [pair.strip(" \t").partition("=") for header in connection.headers.getlist("cookie") for pair in header.split(";")]
    found = [value for name, _, value in pairs if name == wanted]
    return found[0] if len(found) == 1 else ""


def give_login(connection: HTTPConnection, response: Response, secret: str, seconds: int) -> None:
    """In the browser, out of the reach of scripts and of other hosts."""
    response.set_cookie(cookie_name(connection), secret, max_age=seconds, path="/", secure=is_secure(connection), httponly=True, samesite="strict")


def forget_login(connection: HTTPConnection, response: Response) -> None:
    """In the browser: it forgets the cookie."""
    response.delete_cookie(cookie_name(connection), path="/", secure=is_secure(connection), httponly=True, samesite="strict")


def check_origin(connection: HTTPConnection) -> None:
    """Before a cookie is given: a page of elsewhere gets none. Raises Forbidden."""
    if (origin := connection.headers.get("origin", "")) and not _ours(connection, origin):
        raise Forbidden("The request comes from a page of another origin.")


def client_of(connection: HTTPConnection, *, wants_cookie: bool = False) -> Client:
    """Where a request comes from. Behind a proxy that is trusted the address is the last one it vouches for."""
    return Client(address_of(connection), connection.headers.get("user-agent", ""), wants_cookie, request_id_of(connection.scope))


def by_cookie(connection: HTTPConnection) -> bool:
    """Whether the caller's login is a browser's."""
    return bool(connection.scope["state"].get("by_cookie"))


def address_of(connection: HTTPConnection) -> str:
    address = connection.client.host if connection.client is not None else ""
    for hop in reversed(",".join(connection.headers.getlist("x-forwarded-for")).split(",")):
        if not _is_proxy(connection, address) or not _is_address(hop.strip()):
            break
        address = hop.strip()
    return address


def is_secure(connection: HTTPConnection) -> bool:
    """Whether the client's end is encrypted: here, or at a proxy that is trusted and says so."""
    peer = connection.client.host if connection.client is not None else ""
    said = connection.headers.get("x-forwarded-proto", "").strip().lower() == "https"
    return connection.url.scheme in ("https", "wss") or (said and _is_proxy(connection, peer))


def _is_proxy(connection: HTTPConnection, address: str) -> bool:
    return _is_address(address) and any(ip_address(address) in network for network in services_of(connection).proxies)


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _ours(connection: HTTPConnection, origin: str) -> bool:
    """Whether a page of this origin may use our cookies: the host it was served from is the one it calls, or it is named in the settings."""
    parts = urlsplit(origin)
    return (parts.scheme in ("http", "https") and parts.netloc == connection.headers.get("host", "")) or origin in services_of(connection).origins


async def of_socket(socket: WebSocket, needs: Needs) -> Caller:
    """The caller of an accepted WebSocket: from the upgrade's headers, cookie or ticket, else from its first frame. Raises Unauthorized, Forbidden,
    InvalidInput (the first frame is something else)."""
    try:
        caller = await authenticate(socket, ticket=True)
    except Unauthorized:
        caller = await _from_first_frame(socket)
    return await needs.admit(socket, caller)


async def _from_first_frame(socket: WebSocket) -> Caller:
    failed = Unauthorized("authentication failed")
    try:
        async with asyncio.timeout(AUTH_SECONDS):
            frame = frame_of(await socket.receive())
    except (TimeoutError, InvalidInput):
        raise failed from None
    token = frame.get("token")
    if frame.get("type") != "auth" or not isinstance(token, str):
        raise failed
    try:
        return await _by_token(socket, token)
    except Unauthorized:
        raise failed from None


def frame_of(message: Mapping[str, Any]) -> dict[str, Any]:
    """A client's text frame as a JSON object. Raises InvalidInput for anything else, Disconnected when the client is gone."""
    if message["type"] == "websocket.disconnect":
        raise Disconnected
    text = message.get("text")
    try:
        value = json.loads(text if text is not None else "")
    except (ValueError, RecursionError):
        raise InvalidInput("A frame must be a JSON object in text.") from None
    if not isinstance(value, dict):
        raise InvalidInput("A frame must be a JSON object in text.")
    return value


class Disconnected(Exception):
    """The other end of a WebSocket went away."""
