"""Lists of sandboxes: v2 page by page, v1 all that run.

A metadata filter comes encoded three times: each piece by itself, the whole, and then as any query value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated
from urllib.parse import unquote_plus

from fastapi import Query
from starlette.responses import JSONResponse, Response

from torpor.api.e2b.common import Given, Reader, limit_of, router
from torpor.api.e2b.references import parse
from torpor.api.e2b.state import BY_NAME, RUNNING, listed
from torpor.api.services import Services
from torpor.api.times import moment
from torpor.model.errors import InvalidInput, NotFound
from torpor.model.records import Sandbox, SandboxState
from torpor.ports.records import SandboxFilter
from torpor.service.caller import Caller

listing = router()
_PAGE = 500


@listing.get("/v2/sandboxes")
async def list_v2(
    caller: Reader,
    services: Given,
    metadata: str | None = None,
    state: Annotated[list[str] | None, Query()] = None,
    order: str = "desc",
    startedAfter: str | None = None,
    template: str | None = None,
    nextToken: str = "",
    limit: int | None = None,
) -> Response:
    if order not in ("asc", "desc"):
        raise InvalidInput("order: asc or desc.")
    length = limit_of(limit)
    headers = {"X-Total-Running": str((await services.sandboxes.held(caller)).sandboxes)}
    template_id = await _template(services, caller, template)
    if template and not template_id:
        return JSONResponse([], headers=headers)
    wanted = SandboxFilter(
        states=_states(state or []),
        template=template_id,
        labels=pairs(metadata or ""),
        since=moment("startedAfter", startedAfter) if startedAfter is not None else None,
        oldest_first=order == "asc",
    )
    page = await services.sandboxes.list(caller, wanted, cursor=nextToken, limit=length)
    if page.next:
        headers["X-Next-Token"] = page.next
    return JSONResponse([listed(sandbox) for sandbox in page.items], headers=headers)


@listing.get("/sandboxes")
async def list_v1(caller: Reader, services: Given, metadata: str | None = None) -> Response:
    wanted = SandboxFilter(states=RUNNING, labels=pairs(metadata or ""))
    found: list[Sandbox] = []
    cursor, more = "", True
    while more:
        page = await services.sandboxes.list(caller, wanted, cursor=cursor, limit=_PAGE)
        found += page.items
        cursor, more = page.next, bool(page.next)
    return JSONResponse([listed(sandbox) for sandbox in found])


def _states(given: Sequence[str]) -> frozenset[SandboxState]:
    names = [name for each in given for name in each.split(",") if name]
    if unknown := set(names) - set(BY_NAME):
        raise InvalidInput(f"state: {min(unknown)[:40]!r} is neither running nor paused.")
    return frozenset[SandboxState]().union(*(BY_NAME[name] for name in names or BY_NAME))


def pairs(text: str) -> dict[str, str] | None:
    """The metadata that must match. Raises InvalidInput."""
    found = {}
    for pair in unquote_plus(text).split("&"):
        if not pair:
            continue
        name, equals, value = pair.partition("=")
        if not equals:
            raise InvalidInput(f"metadata: {pair[:80]!r} is not key=value.")
        found[unquote_plus(name)] = unquote_plus(value)
    return found or None


async def _template(services: Services, caller: Caller, given: str | None) -> str:
    """Its id; '' for one that is unknown, or when none is given."""
    if not given:
        return ""
    wanted = parse(given)
    if wanted.tag:
        raise InvalidInput("template: a name or an id, without a tag.")
    try:
        return (await services.tags.find(caller, wanted)).id
    except NotFound:
        return ""
