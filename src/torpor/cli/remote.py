"""What the commands that talk to a server share: which server and key, sandboxes by id or name, errors of the client as this command's own."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
import json
import os
import re
import stat
import sys
from argparse import Namespace
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torpor.cli.show import FAILED, Screen
from torpor.client.asynchronous import AsyncClient
from torpor.client.errors import ClientError, InvalidState, Unauthorized, Unreachable
from torpor.client.sandboxes import AsyncSandbox
from torpor.model.errors import InvalidInput, NotFound, TorporError

CREDENTIAL = "client.json"
"""In a home: address and key that its server keeps for its own user (apps.credential writes it)."""
SLOW_SECONDS = 1.0
"""What takes longer says what it waits for."""
_ID = re.compile(r"(cl-)?[0-9a-z]{25}\Z")


class Refused(TorporError):
    """What the client or the server says, with its code."""

    def __init__(self, error: ClientError) -> None:
        super().__init__(error.message.rstrip(".") + "." + _request(error), mend=error.mend or _mend(error))
        self.code = error.code


def _request(error: ClientError) -> str:
    """Where only the server's log says more."""
    request_id = getattr(error, "request_id", "")
    return f" Request {request_id}." if request_id and getattr(error, "status", 0) >= 500 else ""


def _mend(error: ClientError) -> str:
    if isinstance(error, Unauthorized):
        return "Give a key that is valid with --key or TORPOR_API_KEY."
    if isinstance(error, InvalidState) and "paused" in error.message:
        return "See: torpor resume --help"
    return ""


def home_of(words: Namespace) -> Path:
    """The data directory. Raises InvalidInput as apps.settings does."""
    home: Path = importlib.import_module("torpor.apps.settings").resolve({"home": words.data}).home
    return home


def credential(home: Path) -> Mapping[str, str]:
    """Address and key that the home's server left for its own user, or nothing. Another user's file, or one that others can read, is not believed."""
    try:
        with (home / CREDENTIAL).open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_uid not in (os.geteuid(), 0) or stat.S_IMODE(status.st_mode) & 0o077:
                raise InvalidInput(f"{home / CREDENTIAL} can be read by others, or is another user's.", mend=f"chmod 600 {home / CREDENTIAL}")
            tree = json.load(file)
    except (FileNotFoundError, NotADirectoryError, PermissionError, ValueError):
        return {}
    return {name: str(tree[name]) for name in ("url", "key") if isinstance(tree, dict) and isinstance(tree.get(name), str)}


def target(words: Namespace) -> tuple[str, str]:
    """Address and key ('' for none known): flags, then variables, then the home's own. The home's key goes to the home's server only."""
    url, key = words.url or os.environ.get("TORPOR_URL", ""), words.key or os.environ.get("TORPOR_API_KEY", "")
    if url and key:
        return url, key
    own = credential(home_of(words))
    if not url:
        return own.get("url", ""), key or own.get("key", "")
    return url, own.get("key", "") if url.rstrip("/") == own.get("url") else ""


def connect(words: Namespace) -> AsyncClient:
    """Raises InvalidInput when there is no key."""
    url, key = target(words)
    if not key:
        raise InvalidInput(
            "There is no server of this home, nor a key to another one.", mend="Start it with: torpor serve. Or set TORPOR_URL and TORPOR_API_KEY."
        )
    return AsyncClient(url or None, key)


def run(words: Namespace, screen: Screen, work: Callable[[AsyncClient], Awaitable[int]]) -> int:
    """Does `work` with a client. Raises Refused for what the client raises."""

    async def whole() -> int:
        async with connect(words) as client:
            return await work(client)

    try:
        return asyncio.run(whole())
    except Unreachable as error:
        raise Refused(Unreachable(error.message, mend="Start it with: torpor serve. Or see --url and TORPOR_URL.")) from None
    except ClientError as error:
        raise Refused(error) from None
    except (ValueError, OverflowError) as error:
        raise InvalidInput(f"{error}.") from None


async def find(client: AsyncClient, text: str) -> AsyncSandbox:
    """By id, by name, or by the beginning of an id. Raises NotFound, InvalidInput when several fit."""
    if _ID.match(text):
        return await client.sandboxes.get(text)
    found = [each async for each in client.sandboxes.list(labels={"name": text})] if len(text) <= 64 else []
    if not found and re.match(r"(cl-)?[0-9a-z]{3,}\Z", text):
        beginning = "cl-" + text.removeprefix("cl-")
        found = [each async for each in client.sandboxes.list() if each.id.startswith(beginning)]
    if len(found) > 1:
        raise InvalidInput(f"{len(found)} sandboxes go by {text!r}.", mend="Say more of the id: " + ", ".join(each.id for each in found[:5]))
    if not found:
        raise NotFound(f"There is no sandbox {text!r}.", mend="See: torpor list")
    return found[0]


@asynccontextmanager
async def slowly(screen: Screen, what: str) -> AsyncIterator[None]:
    """Says what is waited for when it takes long."""

    async def say() -> None:
        await asyncio.sleep(SLOW_SECONDS)
        screen.waiting(what)

    saying = asyncio.create_task(say())
    try:
        yield
    finally:
        saying.cancel()
        await asyncio.gather(saying, return_exceptions=True)
        screen.done()


async def each(client: AsyncClient, screen: Screen, names: Sequence[str], work: Callable[[AsyncSandbox], Awaitable[Any]]) -> tuple[list[Any], int]:
    """`work` on several sandboxes at once. What came of those that worked, in order; each of the others has its error told, and the exit code is that of a
    failure."""

    async def one(name: str) -> Any:
        return await work(await find(client, name))

    done = await asyncio.gather(*(one(name) for name in dict.fromkeys(names)), return_exceptions=True)
    code, results = 0, []
    for outcome in done:
        if isinstance(outcome, (ClientError, TorporError)):
            screen.error(Refused(outcome) if isinstance(outcome, ClientError) else outcome)
            code = FAILED
        elif isinstance(outcome, BaseException):
            raise outcome
        else:
            results.append(outcome)
    return results, code


def plain(value: Any) -> Any:
    """A value of the client as JSON has it; what is None is left out."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        pairs = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
        return {name: plain(item) for name, item in pairs if item is not None}
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def ago(moment: datetime | None) -> str:
    """How long ago, in the largest unit that says enough."""
    if moment is None:
        return ""
    seconds = max(0, int((datetime.now(UTC) - moment).total_seconds()))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"


def lines(items: Sequence[str]) -> None:
    """For scripts: one a line."""
    sys.stdout.write("".join(f"{item}\n" for item in items))
