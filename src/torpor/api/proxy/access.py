"""Who may use a port. Public ports: anybody. Private ones: who shows, in this order of trial,

    the traffic token   e2b-traffic-access-token
    a key or login      X-API-Key, Authorization: Bearer, of the sandbox's team and with the scope SCOPE
    a signed address    ?torpor_signature=, made by the API; it begins a session of the same port and length in a cookie
    that session        torpor_port; only for requests that come from the port's own pages, or by following a link

None of it goes on into the sandbox. The API's own cookie opens nothing here: pages of sandboxes would use it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torpor.api.proxy.answers import denied, not_found, refusal
from torpor.api.proxy.headers import PORT_COOKIE, TRAFFIC_TOKEN, cookie
from torpor.api.reach import Target
from torpor.api.services import Services
from torpor.model.errors import Forbidden, TorporError, Unauthorized
from torpor.model.records import SYSTEM, Sandbox
from torpor.service.caller import Caller

SCOPE = "sandboxes:exec"
KEY_PREFIXES = ("trp_", "e2b_", "wrn_")
_SAFE = frozenset({"GET", "HEAD"})


@dataclass(frozen=True, slots=True)
class Shown:
    """What a request shows of itself. `origin`: its own, as its Host has it."""

    method: str
    headers: Sequence[tuple[bytes, bytes]]
    fields: Mapping[str, str]
    signature: str
    origin: str


@dataclass(frozen=True, slots=True)
class Admitted:
    """`own`: names of headers that carry credentials of ours. `session`: what the cookie is to hold from now on, '' to leave it."""

    caller: Caller
    own: frozenset[bytes]
    session: str = ""


async def admit(services: Services, sandbox: Sandbox, target: Target, shown: Shown) -> Admitted:
    """Raises Refused."""
    caller, own = await _credentials(services, sandbox, shown)
    here = Caller(sandbox.team_id, SYSTEM)
    if sandbox.exposure.public_ports:
        return Admitted(here, own)
    tokens = services.tokens
    token = shown.fields.get(TRAFFIC_TOKEN, "")
    if token and tokens.is_traffic(sandbox.id, token):
        return Admitted(here, own)
    if caller is not None:
        if caller.team_id != sandbox.team_id:
            raise not_found()
        try:
            caller.demand(SCOPE)
        except Forbidden as error:
            raise refusal(error) from error
        return Admitted(caller, own)
    if shown.signature:
        if not tokens.is_address(sandbox.id, target.port, shown.signature, time.time()):
            raise denied("The address's signature is wrong or no longer valid")
        return Admitted(here, own, shown.signature)
    if tokens.is_address(sandbox.id, target.port, cookie(shown.headers, PORT_COOKIE), time.time()):
        if not _is_own(shown):
            raise denied("The request comes from a page of another origin")
        return Admitted(here, own)
    raise denied("The traffic access token is wrong" if token else "The traffic access token is missing")


async def admit_inner(services: Services, sandbox: Sandbox, target: Target, shown: Shown) -> None:
    """To an inner data plane, which checks access itself where the sandbox is guarded. One that is neither guarded nor public lets in only who may use its
    ports, or shows its access token: no id alone may open a sandbox. Raises Refused."""
    exposure = sandbox.exposure
    if exposure.guarded or exposure.public_ports or services.tokens.is_access(sandbox.id, shown.fields.get("x-access-token", "")):
        return
    await admit(services, sandbox, target, shown)


async def _credentials(services: Services, sandbox: Sandbox, shown: Shown) -> tuple[Caller | None, frozenset[bytes]]:
    """Whose key or login the request carries, if one, and in which headers. On public ports one that is no good any more is no reason to refuse."""
    own = set()
    caller = None
    refused: TorporError | None = None
    key = shown.fields.get("x-api-key", "")
    scheme, _, bearer = shown.fields.get("authorization", "").partition(" ")
    for header, secret, in_key in ((b"x-api-key", key, True), (b"authorization", bearer.strip() if scheme.lower() == "bearer" else "", False)):
        if not secret:
            continue
        try:
            if secret.startswith(KEY_PREFIXES):
                own.add(header)
                found = await services.access.by_key(secret)
            elif in_key:  # no key of ours has another form: the sandbox's own affair
                continue
            else:
                found = (await services.access.by_session(secret)).caller
                own.add(header)
        except Unauthorized as error:
            refused = refused or (error if header in own else None)
        except TorporError as error:  # ours, of an account that is closed
            own.add(header)
            refused = refused or error
        else:
            caller = caller or found
    if services.tokens.is_access(sandbox.id, shown.fields.get("x-access-token", "")):
        own.add(b"x-access-token")
    if caller is None and refused is not None and not sandbox.exposure.public_ports and not shown.fields.get(TRAFFIC_TOKEN):
        raise denied(refused.message)  # and no 401: that would tell that the sandbox is there
    return caller, frozenset(own)


def _is_own(shown: Shown) -> bool:
    """Whether a request with the session's cookie is one that its own pages made, or a link that somebody followed: browsers send the cookie with requests of
    the neighbours' pages, too."""
    if origin := shown.fields.get("origin", ""):
        return origin == shown.origin
    site = shown.fields.get("sec-fetch-site", "")
    if site in ("", "same-origin", "none"):
        return "upgrade" not in shown.fields or not site  # a browser's WebSocket has an Origin
    return shown.method in _SAFE and shown.fields.get("sec-fetch-mode") == "navigate"
