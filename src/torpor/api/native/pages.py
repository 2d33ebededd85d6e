"""Lists in pages. The dialect's lists are bare arrays, so the cursor of the next page travels in headers: `X-Next-Cursor`, and `Link: <...>; rel="next"`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import Query
from starlette.requests import Request
from starlette.responses import JSONResponse

Cursor = Annotated[str, Query(max_length=512, description="The X-Next-Cursor of the page before.")]
Limit = Annotated[int, Query(ge=1, le=1000, description="The most items of one page.")]


def page(request: Request, items: Sequence[Any], cursor: str) -> JSONResponse:
    """A page as a bare array."""
    return JSONResponse(list(items), headers=headers(request, cursor))


def headers(request: Request, cursor: str) -> dict[str, str]:
    if not cursor:
        return {}
    query = [(name, value) for name, value in request.query_params.multi_items() if name != "cursor"]
    return {"X-Next-Cursor": cursor, "Link": f'<{request.scope["path"]}?{urlencode([*query, ("cursor", cursor)])}>; rel="next"'}
