"""Chats: Slack, Discord, Teams, Google Chat, Telegram, Matrix. What each of them wants to be told, apprise knows; how it gets there is notify.calls' part.

A tenant's address is taken apart here and only the parts that name the destination are handed on: in apprise's own addresses a query can switch things on
that are not for tenants (templates read from files, certificates unchecked).
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from torpor.log import Log
from torpor.model.errors import InvalidInput, Undelivered
from torpor.notify.calls import Call, GuardedRequests, current
from torpor.notify.client import Client
from torpor.notify.guard import Place, server_of
from torpor.ports.notify import Message

log = Log()

SECONDS = 20.0
THREADS = 32
_PLAIN = str.maketrans({"@": "＠", "<": "‹", ">": "›", "&": "＆", "*": "∗", "_": "＿", "`": "'", "[": "(", "]": ")", "~": "∼"})
"""Names that people chose stand in the text: none of them mentions everybody, links or formats."""
_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Chat:
    """`plugin`: apprise's module and class. `query`: what of a webhook's query names the destination; `taken`: what of apprise's reading of it does."""

    plugin: tuple[str, str]
    query: tuple[str, ...] = ()
    taken: tuple[str, ...] = ()
    fixed: Mapping[str, Any] | None = None


WEBHOOKS: Mapping[str, Chat] = {
    "slack": Chat(("slack", "NotifySlack"), (), ("token_a", "token_b", "token_c", "workflow_path", "mode"), {"include_image": False, "include_footer": False}),
    "discord": Chat(("discord", "NotifyDiscord"), (), ("webhook_id", "webhook_token"), {"avatar": False, "footer": False, "footer_logo": False}),
    "teams": Chat(
        ("workflows", "NotifyWorkflows"),
        ("api-version", "sp", "sv", "sig"),
        ("host", "port", "workflow", "signature", "version", "power_automate", "routing_id"),
        {"include_image": False, "secure": True},
    ),
    "googlechat": Chat(("google_chat", "NotifyGoogleChat"), ("key", "token", "threadKey"), ("workspace", "webhook_key", "webhook_token", "thread_key")),
}
"""Those that are one address, `webhook_url`."""
_TELEGRAM = ("telegram", "NotifyTelegram")
_MATRIX = ("matrix.base", "NotifyMatrix")


def load(module: str, name: str) -> Any:
    """A plugin of apprise that reaches the network through us alone. Raises AttributeError when a later apprise does it otherwise. Takes a second the first
    time, and is for a thread."""
    with _lock:
        plugin = import_module(f"apprise.plugins.{module}")
        if not isinstance(plugin.requests, GuardedRequests):
            vars(plugin)["requests"] = GuardedRequests()
            logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)  # what it says of a failure, Call knows better
        return getattr(plugin, name)


def _asset() -> Any:
    from apprise import AppriseAsset  # noqa: PLC0415 - takes half a second; most servers send nothing

    return AppriseAsset(
        app_id="torpor", app_desc="torpor", app_url="", image_url_mask="", image_url_logo="", async_mode=False, http_redirects=False, allow_templates=False
    )


def _from_webhook(chat: Chat, url: str) -> Any:
    """Raises InvalidInput."""
    server_of(url, ("https",))
    parts = urlsplit(url)
    query = [(name, value) for name, value in parse_qsl(parts.query) if name in chat.query]
    plugin = load(*chat.plugin)
    found = plugin.parse_native_url(urlunsplit((parts.scheme, parts.netloc, parts.path, urlencode(query), "")))
    if not found:
        raise InvalidInput("webhook_url is not an address that this service gives out.")
    return plugin(**{name: found[name] for name in chat.taken if found.get(name) is not None}, **(chat.fixed or {}), asset=_asset())


def _telegram(config: Mapping[str, str]) -> Any:
    return load(*_TELEGRAM)(bot_token=config["bot_token"], targets=[config["chat_id"]], detect_owner=False, asset=_asset())


def _matrix(config: Mapping[str, str]) -> Any:
    host, port = server_of(config["homeserver_url"])
    secure = config["homeserver_url"].startswith("https:")
    return load(*_MATRIX)(
        host=f"[{host}]" if ":" in host else host,
        port=port,
        secure=secure,
        password=config["access_token"],
        targets=[config["room_id"]],
        mode="off",
        discovery=False,
        e2ee=False,
        asset=_asset(),
    )


def make(provider: str, config: Mapping[str, str]) -> Any:
    """The plugin for this destination; for a thread. Raises InvalidInput for one that cannot be."""
    try:
        if provider == "telegram":
            plugin = _telegram(config)
        elif provider == "matrix":
            plugin = _matrix(config)
        else:
            plugin = _from_webhook(WEBHOOKS[provider], config["webhook_url"])
    except TypeError:  # what apprise raises for a value it does not take; its words repeat the value
        raise InvalidInput(f"The config is not one that {provider} takes.") from None
    plugin.throttle = _at_once
    return plugin


def _at_once(*_: object, **__: object) -> None:
    """Our outbox spaces messages out; a server's word does not let a thread sleep."""


def server(provider: str, config: Mapping[str, str]) -> Place:
    """Where the first request will go. Raises InvalidInput."""
    if provider == "telegram":
        return "api.telegram.org", 443
    return server_of(config["homeserver_url"]) if provider == "matrix" else server_of(config["webhook_url"], ("https",))


class Chats:
    def __init__(self, client: Client) -> None:
        self._client = client
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="torpor-chat")

    def close(self) -> None:
        """What is still under way ends by itself within seconds."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def check(self, provider: str, config: Mapping[str, str]) -> None:
        """Raises InvalidInput for a destination that cannot be."""
        await asyncio.get_running_loop().run_in_executor(self._threads, make, provider, config)

    async def send(self, provider: str, config: Mapping[str, str], message: Message) -> None:
        """Raises Undelivered."""
        call = Call(self._client)
        context = copy_context()
        context.run(current.set, call)
        try:
            async with asyncio.timeout(SECONDS):
                told = await asyncio.get_running_loop().run_in_executor(self._threads, partial(context.run, _tell, provider, config, message))
        except TimeoutError:
            raise Undelivered(f"{provider} did not answer within {SECONDS:.0f} s.") from None
        except InvalidInput as error:
            raise Undelivered(error.message, mend=error.mend) from None
        finally:
            call.end()
        if not told:
            raise call.error or Undelivered(f"{provider} did not take the message.")


def _tell(provider: str, config: Mapping[str, str], message: Message) -> bool:
    plugin = make(provider, config)
    notify: Callable[..., bool] = plugin.notify
    return notify(body=message.text.translate(_PLAIN), title=message.title.translate(_PLAIN), body_format="text")
