"""What of a message's head passes between a client and a server in a sandbox, and what does not (RFC 9110 section 7.6, RFC 9112).

In     without hop-by-hop headers, our credentials, and what only a proxy may say; with X-Forwarded-*. The framing is said anew, by what the server's own strict
       parser made of the client's, so that nobody further on can read a message's end elsewhere.
Out    without hop-by-hop headers and what would reach beyond the sandbox's own origin; places it names are made to lead through the proxy.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import unquote_plus, urlsplit

Headers = list[tuple[bytes, bytes]]

SESSIONS = ("torpor_session", "__Host-torpor_session")
PORT_COOKIE = "torpor_port"
"""The session that a signed address begins."""
SIGNATURE = "torpor_signature"
TRAFFIC_TOKEN = "e2b-traffic-access-token"  # noqa: S105 (a header's name)

_HOP = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer", b"transfer-encoding", b"upgrade"}
)
_FORWARDED = frozenset({b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-forwarded-port", b"x-forwarded-prefix", b"x-real-ip"})
_ROUTING = frozenset({b"e2b-sandbox-id", b"e2b-sandbox-port", TRAFFIC_TOKEN.encode(), b"host", b"content-length", b"expect", b"http2-settings"})
_BEYOND = frozenset({b"service-worker-allowed", b"alt-svc", b"date"})
"""Of an answer: what would make a page's server speak for more than the page; and the date, which our own server sets."""
_WHOLE_ORIGIN = frozenset({b"clear-site-data", b"strict-transport-security", b"nel", b"report-to", b"reporting-endpoints", b"origin-agent-cluster"})
"""The same, where the origin is one for many sandboxes."""
_OUR_COOKIES = frozenset({*SESSIONS, PORT_COOKIE})


class Smuggling(Exception):
    """A request whose head two readers could understand differently."""


def single(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """One value of each name. Raises Smuggling where there is more than one of those that say whom a request is for, or where it ends."""
    found: dict[str, str] = {}
    for name, value in headers:
        text = name.decode("latin-1")
        if text in found and name in (b"host", b"content-length", b"transfer-encoding", b"e2b-sandbox-id", b"e2b-sandbox-port"):
            raise Smuggling(f"There is more than one {text}.")
        found[text] = value.decode("latin-1").strip()
    if "content-length" in found and "transfer-encoding" in found:
        raise Smuggling("Both Content-Length and Transfer-Encoding say where the body ends.")
    return found


@dataclass(frozen=True, slots=True)
class Way:
    """How a request came, and what the server in the sandbox is told. `authority`: the client's Host; `host`: what is sent on as such. `client` may be a chain
    of addresses. `own`: names of headers that carry credentials of ours, beside those that always do."""

    scheme: str
    authority: str
    host: str
    client: str
    prefix: str = ""
    port: int = 0
    own: frozenset[bytes] = frozenset()


def inward(headers: Sequence[tuple[bytes, bytes]], way: Way, *, switch: bytes = b"", expects: bool = False) -> Headers:
    """The head for the server in the sandbox. `switch`: the protocol that the client asks to switch to. `expects`: the client sends its body only once it is
    told to go on. One exchange a connection: it ends with the answer."""
    named = _named_by_connection(headers)
    drop = _HOP | _FORWARDED | _ROUTING | way.own | named
    sent: Headers = [(b"host", way.host.encode("latin-1"))]
    for name, value in headers:
        if name == b"cookie":
            if kept := _without_ours(value):
                sent.append((name, kept))
        elif name == b"transfer-encoding":
            sent.append((name, b"chunked"))
        elif name == b"content-length" or name not in drop:
            sent.append((name, value))
    if expects:
        sent.append((b"expect", b"100-continue"))
    sent.append((b"x-forwarded-for", way.client.encode("latin-1")))
    sent.append((b"x-forwarded-host", way.authority.encode("latin-1")))
    sent.append((b"x-forwarded-proto", way.scheme.encode()))
    if way.prefix:
        sent.append((b"x-forwarded-prefix", way.prefix.encode()))
    sent += [(b"connection", b"Upgrade"), (b"upgrade", switch)] if switch else [(b"connection", b"close")]
    return sent


def _named_by_connection(headers: Iterable[tuple[bytes, bytes]]) -> frozenset[bytes]:
    """What the sender's Connection header makes hop-by-hop; names that say where a message ends cannot be made so."""
    named = {token.strip().lower() for name, value in headers if name == b"connection" for token in value.split(b",")}
    return frozenset(named - {b"", b"host", b"content-length", b"transfer-encoding", b"cookie"})


def _without_ours(cookies: bytes) -> bytes:
    kept = [pair for pair in cookies.split(b";") if pair.partition(b"=")[0].strip().decode("latin-1") not in _OUR_COOKIES]
    return b";".join(kept).strip()


def cookie(headers: Iterable[tuple[bytes, bytes]], name: str) -> str:
    """The first of that name; ''."""
    for field, value in headers:
        if field == b"cookie":
            for pair in value.split(b";"):
                key, _, text = pair.partition(b"=")
                if key.strip().decode("latin-1") == name:
                    return text.strip().decode("latin-1")
    return ""


def split_query(query: bytes) -> tuple[bytes, str]:
    """The query as the sandbox may see it, byte for byte, and our signature in it ('')."""
    kept, signature = [], ""
    for pair in query.split(b"&"):
        name, _, value = pair.partition(b"=")
        if unquote_plus(name.decode("latin-1")) == SIGNATURE:
            signature = signature or unquote_plus(value.decode("latin-1"))
        else:
            kept.append(pair)
    return b"&".join(kept), signature


def outward(headers: Iterable[tuple[bytes, bytes]], way: Way, status: int) -> Headers:
    """The head for the client."""
    headers = list(headers)
    drop = _HOP | _BEYOND | _named_by_connection(headers) | (_WHOLE_ORIGIN if way.prefix else frozenset())
    if status in (204, 304):
        drop |= {b"content-length"}  # there is no body, and the server would miss it
    sent: Headers = []
    for name, value in headers:
        if name in drop:
            continue
        if name in (b"location", b"content-location"):
            sent.append((name, _through(value, way)))
        elif name == b"refresh":
            sent.append((name, re.sub(rb"(?i)(;\s*url\s*=\s*[\"']?)([^\"']*)", lambda shape: shape[1] + _through(shape[2], way), value)))
        elif name == b"set-cookie":
            if (made := _cookie_outward(value, way)) is not None:
                sent.append((name, made))
        else:
            sent.append((name, value))
    return sent


def _through(place: bytes, way: Way) -> bytes:
    """A place that the server named by the address it knows of itself, as the client reaches it."""
    try:
        parts = urlsplit(place.decode("latin-1"))
    except ValueError:
        return place
    if parts.scheme not in ("", "http", "https", "ws", "wss"):
        return place
    if parts.netloc:
        if parts.netloc.lower() not in _itself(way) or (not way.prefix and way.host == way.authority):
            return place
        scheme = f"{way.scheme}:" if parts.scheme else ""
        path = parts.path if parts.path.startswith("/") else f"/{parts.path}"
        tail = place.decode("latin-1").partition(parts.netloc)[2][len(parts.path) :]
        return f"{scheme}//{way.authority}{way.prefix}{path}{tail}".encode("latin-1")
    if way.prefix and place.startswith(b"/"):
        return way.prefix.encode() + place
    return place


def _itself(way: Way) -> set[str]:
    return {way.host.lower(), way.authority.lower(), *(f"{name}:{way.port}" for name in ("localhost", "127.0.0.1", "0.0.0.0", "[::1]"))}


def _cookie_outward(value: bytes, way: Way) -> bytes | None:
    """Without Domain, so that it stays with the sandbox's own name, and, where many share a name, below the sandbox's own path."""
    first, *attributes = value.split(b";")
    if first.partition(b"=")[0].strip().decode("latin-1") in _OUR_COOKIES:
        return None
    kept, path = [first], b""
    for attribute in attributes:
        name, _, text = attribute.partition(b"=")
        match name.strip().lower():
            case b"domain":
                continue
            case b"path" if way.prefix:
                path = text.strip()
            case _:
                kept.append(attribute)
    if way.prefix:
        own = way.prefix.encode()
        inside = path if path == own or path.startswith(own + b"/") else own + (path if path.startswith(b"/") else b"/")
        kept.append(b" Path=" + inside)
    return b";".join(kept)
