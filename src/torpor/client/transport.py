"""HTTP as the rest of this package uses it: where the server is and who asks, errors as the typed tree, and requests that are repeated only where that is safe.

A request is sent again when

    no connection came about                      always: nothing was asked
    the server said 429 or 503 with Retry-After   always: it says that it did nothing
    the connection broke, or a proxy's 502-504    only what may be done twice with the same effect (`repeatable`): reads, deletes, what carries an
                                                  Idempotency-Key
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import os
import random
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import httpx

from torpor.client.errors import ApiError, BadAnswer, ConfigurationError, ConnectionLost, Unreachable, refusal

DEFAULT_URL = "http://127.0.0.1:8080"
CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 60.0
"""How long a request waits for an answer beyond what it asked the server to wait."""
LONGEST_PAUSE = 60.0
"""A Retry-After beyond this many seconds is the caller's to wait for."""
QUIET_SECONDS = 120.0
"""How long a stream that is under way may say nothing."""
MOST_ANSWER = 64 << 20
"""Bytes of a JSON answer."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Where:
    """A server and the key to it. `ca_file`: PEM file of authorities that the server's certificate may come from, beside the system's."""

    url: str
    key: str = field(repr=False)
    ca_file: str = ""

    @property
    def loopback(self) -> bool:
        host = urlsplit(self.url).hostname or ""
        try:
            return ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    @property
    def tls(self) -> ssl.SSLContext | None:
        """None for plain HTTP: reading certificates takes longer than most requests."""
        if not self.url.startswith("https:"):
            return None
        context = ssl.create_default_context()
        if self.ca_file:
            context.load_verify_locations(self.ca_file)
        return context

    def websocket(self, path: str) -> str:
        return "ws" + self.url.removeprefix("http") + path


def where(url: str | None, key: str | None, ca_file: str | None) -> Where:
    """What was given, else TORPOR_URL, TORPOR_API_KEY and TORPOR_CA_FILE, else the server of this machine. Raises ConfigurationError."""
    found = (url or os.environ.get("TORPOR_URL") or DEFAULT_URL).strip().rstrip("/")
    secret = (key or os.environ.get("TORPOR_API_KEY") or "").strip()
    parts = urlsplit(found)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or parts.username:
        raise ConfigurationError(f"{found[:80]!r} is no address of a server.", mend="As in: http://127.0.0.1:8080")
    if not secret:
        raise ConfigurationError("There is no API key.", mend="Give one, or set TORPOR_API_KEY.")
    if not secret.isascii() or not secret.isprintable():
        raise ConfigurationError("The API key holds characters that no key has.")
    return Where(found, secret, ca_file or os.environ.get("TORPOR_CA_FILE") or "")


def segment(text: str) -> str:
    """Text as one part of a path."""
    return quote(text, safe="")


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer with a status below 300."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def tree(self) -> Any:
        """Its JSON. Raises BadAnswer."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            kind = self.headers.get("content-type", "nothing")[:60]
            raise BadAnswer(f"What answers at this address is no torpor server: it sent {kind} instead of JSON.") from None


class Http:
    """One pool of connections. `retries`: how often a request is sent again."""

    def __init__(self, target: Where, *, retries: int) -> None:
        self.where = target
        self._retries = retries
        self._client = httpx.AsyncClient(
            base_url=target.url,
            headers={"X-API-Key": target.key, "User-Agent": "torpor-client"},
            verify=target.tls or False,
            trust_env=not target.loopback,  # a proxy of the environment does not reach this machine's own server
            timeout=httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS, pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=16),
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def ask(
        self,
        method: str,
        path: str,
        *,
        json: object = None,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        wait: float = 0.0,
        repeatable: bool | None = None,
    ) -> Answer:
        """The whole answer. `wait`: seconds that the server was asked to take. `repeatable`: see above; GET and DELETE unless told. Raises ApiError and the
        rest of the tree."""
        again = method in ("GET", "DELETE") if repeatable is None else repeatable
        asked = {name: value for name, value in (params or {}).items() if value is not None}

        async def once() -> Answer:
            return await self._exchange(self._client.build_request(method, path, json=json, params=asked, headers=headers, timeout=_patience(wait)))

        return await self._repeated(once, again)

    async def pages(self, path: str, params: Mapping[str, Any]) -> AsyncIterator[Any]:
        """The JSON of a list's pages, each asked for when the one before was taken. Raises as `ask`."""
        cursor: str | None = None
        while cursor != "":
            answer = await self.ask("GET", path, params={**params, "cursor": cursor})
            yield answer.tree()
            cursor = answer.headers.get("x-next-cursor", "")

    async def upload(self, path: str, content: AsyncIterator[bytes], *, params: Mapping[str, Any], headers: Mapping[str, str]) -> None:
        """Sends a body as it comes, once: what was read of it is gone."""
        with translated():
            await self._exchange(self._client.build_request("POST", path, content=content, params=params, headers=headers, timeout=_patience(QUIET_SECONDS)))

    async def _exchange(self, request: httpx.Request) -> Answer:
        response = await self._client.send(request, stream=True)
        try:
            body = await _bounded(response)
        finally:
            await response.aclose()
        _check(response, body)
        return Answer(response.status_code, response.headers, body)

    @asynccontextmanager
    async def streamed(
        self, method: str, path: str, *, json: object = None, params: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None, quiet: float
    ) -> AsyncIterator[httpx.Response]:
        """An answer whose body the caller reads, inside `translated()`. `quiet`: the most seconds between two pieces. Begun again as `ask` is."""
        asked = {name: value for name, value in (params or {}).items() if value is not None}

        async def once() -> httpx.Response:
            timeout = httpx.Timeout(quiet, connect=CONNECT_SECONDS, pool=None)
            request = self._client.build_request(method, path, json=json, params=asked, headers=headers, timeout=timeout)
            response = await self._client.send(request, stream=True)
            try:
                if response.status_code >= 300:
                    _check(response, await _bounded(response))
            except BaseException:
                await response.aclose()
                raise
            return response

        response = await self._repeated(once, True)
        try:
            yield response
        finally:
            await response.aclose()

    async def _repeated(self, once: Callable[[], Awaitable[T]], again: bool) -> T:
        attempt = 0
        while True:
            try:
                with translated():
                    return await once()
            except (ApiError, Unreachable, ConnectionLost) as error:
                pause = _pause(error, attempt, again)
                if pause is None or attempt >= self._retries:
                    raise
            attempt += 1
            await asyncio.sleep(pause)


def _patience(wait: float) -> httpx.Timeout:
    return httpx.Timeout(wait + ANSWER_SECONDS, connect=CONNECT_SECONDS, pool=None)


class translated:  # noqa: N801 - reads as a function at its uses
    """Inside, httpx's errors become this package's."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError, httpx.UnsupportedProtocol)):
            raise Unreachable(f"No connection to the server: {error or 'it does not answer'}.", mend="Is it running, and is this its address?") from error
        if isinstance(error, httpx.TimeoutException):
            raise ConnectionLost("The server went silent.") from error
        if isinstance(error, httpx.TransportError):
            raise ConnectionLost(f"The connection to the server broke: {error or type(error).__name__}.") from error
        if isinstance(error, (httpx.DecodingError, httpx.StreamError)):
            raise BadAnswer(f"What the server sent cannot be read: {error}.") from error


async def _bounded(response: httpx.Response) -> bytes:
    body = bytearray()
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > MOST_ANSWER:
            raise BadAnswer(f"The answer is larger than {MOST_ANSWER >> 20} MiB.")
    return bytes(body)


def _check(response: httpx.Response, body: bytes) -> None:
    """Raises ApiError for a refusal, BadAnswer for a redirection: this API has none."""
    status = response.status_code
    if status < 300:
        return
    if status < 400:
        raise BadAnswer(f"The server answered with status {status}: what answers at this address is no torpor server.")
    detail: dict[str, Any] = {}
    try:
        tree = json.loads(body)
        if isinstance(tree, dict) and isinstance(tree.get("error"), dict):
            detail = tree["error"]
    except (ValueError, RecursionError):
        pass
    code, reason, message = (str(detail.get(name) or "")[:4000] for name in ("code", "reason", "message"))
    request_id = str(detail.get("request_id") or response.headers.get("x-request-id", ""))[:64]
    raise refusal(status, code, message, reason, request_id, retry_after(response.headers.get("retry-after")))


def retry_after(header: str | None) -> float | None:
    """Seconds, from either form of Retry-After (RFC 9110, 10.2.3); None when there is none that can be read."""
    if header is None:
        return None
    text = header.strip()
    if text.isascii() and text.isdigit() and len(text) < 10:
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def _pause(error: Exception, attempt: int, again: bool) -> float | None:
    """Seconds until the next try, None for none."""
    backoff: float = min(5.0, 0.1 * 2**attempt) * random.uniform(1.0, 1.5)
    if isinstance(error, Unreachable):
        return backoff
    if isinstance(error, ConnectionLost):
        return backoff if again else None
    if isinstance(error, ApiError) and error.status in (429, 503) and error.retry_after is not None:
        return max(backoff, error.retry_after) if error.retry_after <= LONGEST_PAUSE else None
    if isinstance(error, ApiError) and error.status in (502, 503, 504) and not error.reason:  # not our server's own word: something in between
        return backoff if again else None
    return None
