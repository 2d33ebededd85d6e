"""Which dialect a request is in, so that what no route answers (404, 405, a body that is no JSON, a crash of ours) is said in its words too.

The native dialect has everything that no other claims. A dialect that wants its ids percent-encoded in the path gets each segment decoded and encoded anew:
`%2F` then is no separator, and its handlers decode what they take out of the path.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote, unquote_to_bytes

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from torpor.api import errors
from torpor.model.errors import TorporError

_KEY = "dialect"


@dataclass(frozen=True, slots=True)
class Dialect:
    """`claims`: whether a request is in it. `respond`: an error of the tree, with the request's id. `plain`: an error of HTTP's own: status, code, words,
    request id, headers."""

    claims: Callable[[Scope], bool]
    respond: Callable[[TorporError, str], JSONResponse]
    plain: Callable[[int, str, str, str, Mapping[str, str] | None], JSONResponse]
    encoded_path: bool = False


NATIVE = Dialect(lambda scope: True, errors.respond, errors.plain)


def dialect_of(scope: Scope) -> Dialect:
    found: Dialect = scope.get("state", {}).get(_KEY, NATIVE)
    return found


class Dialects:
    """Names the dialect of each request; the first that claims it has it."""

    def __init__(self, app: ASGIApp, dialects: Sequence[Dialect]) -> None:
        self._app = app
        self._dialects = dialects

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            dialect = next((each for each in self._dialects if each.claims(scope)), NATIVE)
            scope.setdefault("state", {})[_KEY] = dialect
            if dialect.encoded_path:
                scope = {**scope, "path": _encoded(scope)}
        await self._app(scope, receive, send)


def _encoded(scope: Scope) -> str:
    raw = scope.get("raw_path") or quote(scope["path"]).encode()
    return "/".join(quote(unquote_to_bytes(segment), safe="") for segment in raw.split(b"?")[0].split(b"/"))
