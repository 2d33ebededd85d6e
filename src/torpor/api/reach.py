"""Where ports of sandboxes are found from outside, and who a request is for.

    Host: {port}-{id}.{domain}                       any further `-fields` of the label are ignored; any domain where none is set
    E2b-Sandbox-Id and E2b-Sandbox-Port              where Host is localhost, an IP address or sandbox.<something>, and on the proxy's own port
    /{id}/{port}/...                                 on the proxy's own port

`id` is 25 base-36 digits, as E2B's SDK has it, or `cl-` and those, as the native one has: the errors are that dialect's. Everything else is the API's, except
on the proxy's own port, where there is none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address

from torpor.model.errors import Conflict

NATIVE = "cl-"
_ID = re.compile(r"(cl-)?([a-z0-9]{25})\Z")
_PORT = re.compile(r"[1-9][0-9]{0,4}\Z")
_LABEL = re.compile(r"([0-9]{1,10})-(.*)\Z")
_OURS = re.compile(r"[0-9]{1,10}-(cl-)?[a-z0-9]{25}(-|\Z)")
_PATH = re.compile(rb"/([^/?]*)/([^/?]*)(/.*|)\Z", re.DOTALL)
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]]*)(?::([0-9]{1,5}))?\Z")


class Misaddressed(Exception):
    """A request that is for some sandbox, but does not say properly for which. `port` is 0 where that is what is wrong, `shown` the id as far as it was one."""

    def __init__(self, message: str, shown: str = "", port: int = 0) -> None:
        super().__init__(message)
        self.message = message
        self.shown = shown
        self.port = port


@dataclass(frozen=True, slots=True)
class Target:
    """A port of a sandbox. `sandbox_id` '' for an id that cannot be ours; `shown`: as the request had it. `prefix`: of the path, '' unless it was the path that
    said so; then `rest` is what follows it, and is the path for the sandbox."""

    sandbox_id: str
    port: int
    shown: str
    prefix: str = ""
    rest: bytes = b""

    @property
    def native(self) -> bool:
        return self.shown.startswith(NATIVE)


@dataclass(frozen=True, slots=True)
class Public:
    """How the API was reached by a request that wants to know where a port is: the way to the port is the same."""

    scheme: str
    host: str


@dataclass(frozen=True, slots=True)
class Reach:
    """`domain`: under which sandboxes have their names, '' for any; it may have a port, which is for addresses only. `proxy_port`: where paths name sandboxes,
    0 for nowhere."""

    domain: str = ""
    proxy_port: int = 0

    @property
    def name(self) -> str:
        return split(self.domain)[0]

    def on_own_port(self, server: tuple[str, int | None] | None) -> bool:
        return bool(self.proxy_port) and server is not None and server[1] == self.proxy_port

    def target(self, headers: Mapping[str, str], server: tuple[str, int | None] | None, raw_path: bytes) -> Target | None:
        """Whom a request is for; None for the API. `headers` in lower case, one value each. Raises Misaddressed."""
        own_port = self.on_own_port(server)
        host = split(headers.get("host", "").lower())[0]
        if (label := self._label(host)) is not None:
            return _of_label(label)
        if (own_port or _takes_headers(host)) and (named := _of_headers(headers)) is not None:
            return named
        return _of_path(raw_path) if own_port else None

    def claims(self, headers: Mapping[str, str], server: tuple[str, int | None] | None) -> bool:
        """Whether a request is for a sandbox, or for none, but certainly not for the API; so much is known before its path is."""
        try:
            return self.on_own_port(server) or self.target(headers, server, b"") is not None
        except Misaddressed:
            return True

    def _label(self, host: str) -> str | None:
        """The host's first label, if it names a sandbox, or can name nothing else."""
        label, _, rest = host.partition(".")
        if not rest or not _LABEL.match(label) or _is_address(host):
            return None
        if self.name:
            return label if rest == self.name else None
        return label if _OURS.match(label) else None

    def url(self, public: Public, shown: str, port: int) -> str:
        """The address of a port, with a path of '/' at its end. Raises Conflict where no name and no port of the proxy's own lead to it."""
        name, number = split(public.host.lower())
        given = f":{number}" if number else ""
        if self.domain:
            return f"{public.scheme}://{port}-{shown}.{self.domain}{'' if ':' in self.domain else given}/"
        if self.proxy_port:
            return f"{public.scheme}://{name}:{self.proxy_port}/{shown}/{port}/"
        if _is_address(name) or name == "localhost":
            if name != "localhost" and not ip_address(name.strip("[]")).is_loopback:
                raise Conflict("The server has no domain for the ports of sandboxes.", mend="Start torpor serve with --domain or --proxy-port.")
            name = "localhost"
        return f"{public.scheme}://{port}-{shown}.{name}{given}/"


def split(host: str) -> tuple[str, str]:
    """Name and port of an authority; ('', '') for what is none."""
    shape = _HOST.match(host)
    return (shape[1].rstrip("."), shape[2] or "") if shape else ("", "")


def _of_label(label: str) -> Target:
    port, _, rest = label.partition("-")
    native = NATIVE if rest.startswith(NATIVE) else ""
    return _target(native + rest.removeprefix(native).split("-", 1)[0], port)


def _of_headers(headers: Mapping[str, str]) -> Target | None:
    sandbox_id, port = headers.get("e2b-sandbox-id"), headers.get("e2b-sandbox-port")
    if sandbox_id is None and port is None:
        return None
    if sandbox_id is None or port is None:
        raise Misaddressed("E2b-Sandbox-Id and E2b-Sandbox-Port are needed both.", sandbox_id or "")
    native = NATIVE if sandbox_id.startswith(NATIVE) else ""
    return _target(native + sandbox_id.removeprefix(native).split("-", 1)[0], port)


def _of_path(raw_path: bytes) -> Target:
    shape = _PATH.match(raw_path)
    if shape is None:
        raise Misaddressed("Here a path begins with a sandbox's id and a port: /{id}/{port}/...")
    found = _target(shape[1].decode("latin-1"), shape[2].decode("latin-1"))
    return Target(found.sandbox_id, found.port, found.shown, f"/{found.shown}/{found.port}", shape[3])


def _target(shown: str, port: str) -> Target:
    number = int(port) if _PORT.match(port) else 0
    if not 0 < number < 65536:
        raise Misaddressed(f"{port[:20]!r} is no port: 1 to 65535.", shown[:60])
    shape = _ID.match(shown)
    if shape is None:
        if re.fullmatch(r"[a-z0-9]+", shown):  # some server's, not ours: unknown
            return Target("", number, shown[:60])
        raise Misaddressed(f"{shown[:60]!r} is no sandbox's id.", shown[:60], number)
    return Target(shape[2], number, shown)


def _takes_headers(host: str) -> bool:
    return host == "localhost" or host.startswith("sandbox.") or _is_address(host)


def _is_address(host: str) -> bool:
    try:
        ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True
