"""Lists in pages. The dialect's lists are bare arrays, so the cursor of the next page travels in headers: `X-Next-Cursor`, and `Link: <...>; rel="next"`."""

from __future__ import annotations

import json
from base64 import b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, TypeVar
from urllib.parse import urlencode

from fastapi import Query
from starlette.requests import Request
from starlette.responses import JSONResponse

from torpor.model.errors import InvalidInput
from torpor.ports.records import Page

T = TypeVar("T")

LONGEST_CURSOR = 5000
"""Characters: an e-mail address of any 254 fits, written in JSON and that in base64."""
Cursor = Annotated[str, Query(max_length=LONGEST_CURSOR, description="The X-Next-Cursor of the page before.")]
Limit = Annotated[int, Query(ge=1, le=1000, description="The most items of one page.")]


def part(of: str, items: Iterable[T], key: Callable[[T], tuple[float, str]], cursor: str, limit: int, *, oldest_first: bool = False) -> Page[T]:
    """A page of a list that is bounded and at hand whole, in the order of `key`, a time and an id: newest first, or the other way round. Items that come and
    go skip and repeat nothing. Raises InvalidInput for a cursor of another list."""
    ordered = sorted(items, key=key, reverse=not oldest_first)
    if cursor:
        after = _after(of, cursor)
        ordered = [item for item in ordered if key(item) != after and (key(item) > after) is oldest_first]
    kept = ordered[:limit]
    return Page(kept, _cursor(of, key(kept[-1])) if len(ordered) > limit else "")


def _cursor(of: str, key: tuple[float, str]) -> str:
    return urlsafe_b64encode(json.dumps([of, *key]).encode()).decode()


def _after(of: str, cursor: str) -> tuple[float, str]:
    """Raises InvalidInput."""
    try:
        found = json.loads(b64decode(cursor, altchars=b"-_", validate=True))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list) or [type(value) for value in found] != [str, float, str] or found[0] != of:
        raise InvalidInput("The cursor is not one of this list.")
    return found[1], found[2]


def page(request: Request, items: Sequence[Any], cursor: str) -> JSONResponse:
    """A page as a bare array."""
    return JSONResponse(list(items), headers=headers(request, cursor))


def headers(request: Request, cursor: str) -> dict[str, str]:
    if not cursor:
        return {}
    query = [(name, value) for name, value in request.query_params.multi_items() if name != "cursor"]
    return {"X-Next-Cursor": cursor, "Link": f'<{request.scope["path"]}?{urlencode([*query, ("cursor", cursor)])}>; rel="next"'}
