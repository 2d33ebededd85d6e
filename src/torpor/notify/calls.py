"""What apprise's plugins find under the name `requests`: the same calls, made by the guarded client.

    event loop                              a thread of ours
    Chats.send ----------------------------> plugin.notify() -> requests.post(...)
    Client.request <------------------------ GuardedRequests.request, which waits
                   ----- Answer ----------->

apprise knows what Slack, Discord and the others want to be told, and tells it through `requests`, which would follow redirects, resolve names by itself,
read answers of any length and wait for as long as bytes drip in. So its plugins get this in its place (see `chats.load`). What a plugin may use of the real
module is listed; anything else fails at once.
"""

from __future__ import annotations

import asyncio
import io
from concurrent.futures import CancelledError, Future
from contextvars import ContextVar
from typing import Any
from urllib.parse import urlsplit

import requests

from torpor.model.errors import Undelivered
from torpor.notify.client import Answer, Client

MOST_REQUESTS = 10
"""Of one message: joining a room, sending, a repetition or two."""
REQUEST_SECONDS = 10.0
_PASSED_ON = frozenset({"codes", "exceptions", "RequestException", "ConnectionError", "Timeout", "TooManyRedirects", "HTTPError"})
_IGNORED = frozenset({"verify", "timeout", "allow_redirects", "stream"})
"""What plugins say of the connection: the client decides."""


class Call:
    """One message on its way through a plugin. Made in the event loop; `request` is for the plugin's thread."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._loop = asyncio.get_running_loop()
        self._left = MOST_REQUESTS
        self._over = False
        self._asked: Future[Answer] | None = None
        self.error: Undelivered | None = None
        """What went wrong last."""

    def end(self) -> None:
        """No more requests; one under way is broken off. The thread then ends by itself."""
        self._over = True
        if self._asked is not None:
            self._asked.cancel()

    def request(self, prepared: requests.PreparedRequest) -> Answer:
        """Raises Undelivered."""
        self._left -= 1
        if self._over or self._left < 0:
            raise Undelivered("The server wanted too many requests for one message.")
        body = prepared.body or b""
        sent = self._client.request(
            str(prepared.method), str(prepared.url), dict(prepared.headers), body.encode() if isinstance(body, str) else body, timeout=REQUEST_SECONDS
        )
        self._asked = asyncio.run_coroutine_threadsafe(sent, self._loop)
        if self._over:
            self._asked.cancel()
        try:
            answer = self._asked.result()
        except CancelledError:
            raise Undelivered("The server took too long.") from None
        except Undelivered as error:
            self.error = error
            raise
        self.error = answer.refusal(urlsplit(str(prepared.url)).hostname or "The server")
        return answer


current: ContextVar[Call] = ContextVar("current")


class GuardedRequests:
    """In the place of the module."""

    def __getattr__(self, name: str) -> Any:
        if name in _PASSED_ON:
            return getattr(requests, name)
        raise AttributeError(f"A plugin wants requests.{name}, which is not guarded.")

    def get(self, url: str, params: Any = None, **how: Any) -> requests.Response:
        return self.request("GET", url, params=params, **how)

    def post(self, url: str, data: Any = None, **how: Any) -> requests.Response:
        return self.request("POST", url, data=data, **how)

    def put(self, url: str, data: Any = None, **how: Any) -> requests.Response:
        return self.request("PUT", url, data=data, **how)

    def request(self, method: str, url: str, *, params: Any = None, data: Any = None, json: Any = None, headers: Any = None, **how: Any) -> requests.Response:
        """Raises requests.ConnectionError, which every plugin expects."""
        if unknown := {name for name, value in how.items() if value is not None} - _IGNORED:
            raise TypeError(f"A plugin asks for {min(unknown)}, which is not guarded.")
        prepared = requests.Request(method, url, params=params, data=data, json=json, headers=headers).prepare()
        try:
            answer = current.get().request(prepared)
        except Undelivered as error:
            raise requests.ConnectionError(error.message) from None
        response = requests.Response()
        response.status_code = answer.status
        response.url = str(prepared.url)
        response.headers.update(answer.headers)
        response.encoding = requests.utils.get_encoding_from_headers(response.headers)
        response.raw = io.BytesIO(answer.body)
        return response
