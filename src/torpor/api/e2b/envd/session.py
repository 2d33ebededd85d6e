"""One request to a sandbox: which one, as whom, until when; and how its guest is reached."""

from __future__ import annotations

import asyncio
import base64
import binascii
import posixpath
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from starlette.requests import Request

from torpor.api.e2b.envd.faults import Fault, Gone
from torpor.api.services import Services
from torpor.lifecycle.sandbox import FINAL
from torpor.model.errors import Denied, GuestLost, NotFound
from torpor.model.records import Sandbox, SandboxState
from torpor.ports.guest import Guest
from torpor.service.caller import from_outside

_USERS = "/etc/passwd"
_MOST_USERS = 4 << 20
DIALECT = "e2b"


@dataclass(frozen=True, slots=True)
class Account:
    """A user of the guest. `given` is '' for the default one, as the guest's functions have it."""

    name: str
    home: str
    given: str

    def path(self, path: str) -> str:
        """Absolute and clean. '' is the default working directory, `~` and relative paths begin at home. Raises Fault."""
        if "\0" in path:
            raise Fault("invalid_argument", "a path cannot hold NUL")
        if path.startswith("~") and path[1:2] not in ("", "/"):
            raise Fault("invalid_argument", "only the user's own home can be written as ~")
        if path.startswith("~"):
            path = "." + path[1:]
        return "/" + posixpath.normpath(posixpath.join(self.home, path)).lstrip("/")


@dataclass(slots=True)
class Session:
    """`user`: the name that was asked for, or ''. `deadline`: in the loop's time; `timeout`: the same in seconds from the start. `keepalive`: seconds."""

    services: Services
    sandbox: Sandbox
    user: str = ""
    timeout: float | None = None
    deadline: float | None = None
    keepalive: float = 90.0
    request_id: str = ""

    def until(self, timeout: float) -> None:
        self.timeout = timeout
        self.deadline = asyncio.get_running_loop().time() + timeout

    @asynccontextmanager
    async def guest(self, what: str) -> AsyncIterator[Guest]:
        """The sandbox's guest, which counts as in use meanwhile. Raises Gone when it is not there, also when it ceases to be."""
        use = self.services.sandboxes.use(from_outside(self.request_id), self.sandbox.id, what)
        async with AsyncExitStack() as stack:
            try:
                guest = await stack.enter_async_context(use)
            except (NotFound, Denied, GuestLost) as error:
                raise Gone(self.sandbox.id) from error
            try:
                yield guest
            except GuestLost as error:
                raise Gone(self.sandbox.id) from error

    async def account(self, guest: Guest) -> Account:
        return await account_of(guest, self.user)

    def environment(self) -> dict[str, str]:
        """The variables of every command in this sandbox."""
        known = {"E2B_SANDBOX": "true", "E2B_SANDBOX_ID": self.sandbox.id, "E2B_TEMPLATE_ID": self.sandbox.template_id}
        return known | dict(self.sandbox.env)


async def account_of(guest: Guest, name: str) -> Account:
    """Raises Fault unauthenticated for a user that the guest does not have."""
    if not name or name == guest.default_user:
        return Account(guest.default_user, guest.default_home, "")
    text, size = [], 0
    async for piece in guest.read_file(_USERS, user="root"):
        text.append(piece)
        size += len(piece)
        if size > _MOST_USERS:
            break
    for line in b"".join(text).decode("utf-8", "surrogateescape").splitlines():
        row = line.split(":")
        if len(row) >= 7 and row[0] == name:
            return Account(name, row[5] or "/", name)
    raise Fault("unauthenticated", f"invalid username: '{name[:100]}'")


async def find_sandbox(services: Services, sandbox_id: str, request_id: str) -> Sandbox:
    """Raises Gone for one that is no more, or never was."""
    try:
        sandbox = await services.sandboxes.get(from_outside(request_id), sandbox_id)
    except NotFound as error:
        raise Gone(sandbox_id) from error
    return sandbox


def demand_reachable(sandbox: Sandbox) -> None:
    """Raises Gone. To be asked once the caller has shown that the sandbox is theirs."""
    if sandbox.state in FINAL or (sandbox.state is SandboxState.PAUSED and not sandbox.auto_resume):
        raise Gone(sandbox.id)


def demands_token(sandbox: Sandbox) -> bool:
    """Whether its files and commands are for those only who have its token. Of sandboxes made through other dialects they always are."""
    return sandbox.exposure.guarded or sandbox.dialect != DIALECT


def user_of(request: Request) -> str:
    """Who is named by Basic authentication, which proves nothing here: it says as which user to act. Raises Fault."""
    scheme, _, rest = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(rest.strip(), validate=True).decode().partition(":")[0]
    except (binascii.Error, UnicodeDecodeError):
        raise Fault("unauthenticated", "the Authorization header is no Basic authentication") from None
