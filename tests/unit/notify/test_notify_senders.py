"""Every provider, delivered to a server on loopback that takes their names."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from notify_world import LOOPBACK, MESSAGE, Behaviour, Seen, Web, answer_ok, answering, certificate, client_of, web

from torpor.model.errors import InvalidInput, Undelivered
from torpor.notify import calls, chats, webhook
from torpor.notify.calls import MOST_REQUESTS, GuardedRequests
from torpor.notify.client import Client
from torpor.notify.guard import Guard
from torpor.notify.senders import PROVIDERS, Senders
from torpor.ports.notify import Message

SIGNED = "api-version=2016-06-01&sp=%2Ftriggers%2Fmanual%2Frun&sv=1.0&sig=KODuebWbDGYFr0z0eu"
CONFIGS = {
    "webhook": {"url": "https://hooks.example/x?y=z", "secret": "s3cret"},
    "slack": {"webhook_url": "https://hooks.slack.com/services/T00000000/B00000000/XXXXXXXXXXXXXXXXXXXXXXXX"},
    "discord": {"webhook_url": "https://discord.com/api/webhooks/123456/abc-DEF_1"},
    "teams": {"webhook_url": f"https://prod-1.westeurope.logic.azure.com:443/workflows/643e69f83c8944438d68119179a10a64/triggers/manual/paths/invoke?{SIGNED}"},
    "googlechat": {"webhook_url": "https://chat.googleapis.com/v1/spaces/AAAAk6lGXyM/messages?key=k1&token=t%3D"},
    "telegram": {"bot_token": "123456789:abcdefghijklmnopqrstuvwxyz-_ABCDEF", "chat_id": "-100123"},
    "matrix": {"homeserver_url": "https://matrix.example", "access_token": "syt_token", "room_id": "!room:matrix.example"},
}
HOSTS = {
    "webhook": "hooks.example",
    "slack": "hooks.slack.com",
    "discord": "discord.com",
    "teams": "prod-1.westeurope.logic.azure.com",
    "googlechat": "chat.googleapis.com",
    "telegram": "api.telegram.org",
    "matrix": "matrix.example",
}
JSON_OK = json.dumps({"ok": True, "user_id": "@bot:matrix.example", "room_id": "!room:matrix.example", "event_id": "$1"}).encode()


async def as_the_services_do(seen: Seen, writer: asyncio.StreamWriter) -> None:
    body = b"ok" if seen.headers["host"] == "hooks.slack.com" else JSON_OK
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))


@asynccontextmanager
async def the_world(folder: Path, behaviour: Behaviour = as_the_services_do) -> AsyncIterator[tuple[Web, Senders]]:
    """Every name leads to one server, which has a certificate for all of them."""
    tls, trusted = certificate(folder, *HOSTS.values())
    async with web(behaviour, tls) as server:
        senders = Senders(client_of(server, trusted))
        try:
            yield server, senders
        finally:
            senders.close()


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_a_message_arrives_in_the_services_own_way(tmp_path: Path, provider: str) -> None:
    async with the_world(tmp_path) as (server, senders):
        config = await senders.prepare(provider, CONFIGS[provider])
        assert config == CONFIGS[provider]
        assert server.seen == []
        await senders.send(provider, config, MESSAGE)
    assert {urlsplit(f"//{seen.headers['host']}").hostname for seen in server.seen} == {HOSTS[provider]}
    last = server.seen[-1]
    told = last.body.decode()
    if provider == "webhook":
        assert last.body == MESSAGE.payload
    else:
        shown = json.dumps(json.loads(told), ensure_ascii=False)
        assert MESSAGE.title in shown
        assert "capsule" in shown
        assert "@everyone" not in shown  # nobody's name calls a whole room
        assert "<" not in shown.replace("<b>", "").replace("</b>", "")
    expected = {
        "webhook": ("POST", "/x?y=z"),
        "slack": ("POST", "/services/T00000000/B00000000/XXXXXXXXXXXXXXXXXXXXXXXX"),
        "discord": ("POST", "/api/webhooks/123456/abc-DEF_1"),
        "telegram": ("POST", f"/bot{CONFIGS['telegram']['bot_token']}/sendMessage"),
    }
    if provider in expected:
        assert (last.method, last.target) == expected[provider]
    elif provider == "teams":
        assert parse_qs(urlsplit(last.target).query)["sig"] == ["KODuebWbDGYFr0z0eu"]
    elif provider == "googlechat":
        assert parse_qs(urlsplit(last.target).query) == {"key": ["k1"], "token": ["t="]}
    else:
        assert (last.method, last.headers["authorization"]) == ("PUT", "Bearer syt_token")
        assert last.target.startswith("/_matrix/client/v3/rooms/%21room%3Amatrix.example/send/m.room.message/")


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("status", [302, 400, 404, 500, 503])
async def test_a_refusal_says_which_server_answered_what(tmp_path: Path, provider: str, status: int) -> None:
    inside = b"HTTP/1.1 %d Oops\r\nLocation: http://169.254.169.254/\r\nContent-Length: 2\r\n\r\n{}" % status
    async with the_world(tmp_path, answering(inside)) as (server, senders):
        with pytest.raises(Undelivered) as refused:
            await senders.send(provider, CONFIGS[provider], MESSAGE)
    assert refused.value.message == f"{HOSTS[provider]} answered {status}."
    assert 1 <= len(server.seen) <= MOST_REQUESTS


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_every_provider_is_kept_from_private_addresses(tmp_path: Path, provider: str) -> None:
    tls, trusted = certificate(tmp_path, HOSTS[provider])
    async with web(answer_ok, tls) as server:
        senders = Senders(Client(Guard((), client_of(server).guard.resolve), trusted))
        with pytest.raises(InvalidInput, match="not on the public internet"):
            await senders.prepare(provider, CONFIGS[provider])
        with pytest.raises(Undelivered, match="not on the public internet"):
            await senders.send(provider, CONFIGS[provider], MESSAGE)
        senders.close()
    assert server.connections == 0


async def test_a_chat_that_hangs_is_given_up_and_its_thread_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    over = asyncio.Event()

    async def hang(seen: Seen, writer: asyncio.StreamWriter) -> None:
        await over.wait()

    monkeypatch.setattr(calls, "REQUEST_SECONDS", 30.0)
    async with the_world(tmp_path, hang) as (_, senders):
        await senders.prepare("slack", CONFIGS["slack"])  # apprise is loaded
        monkeypatch.setattr(chats, "SECONDS", 0.5)
        with pytest.raises(Undelivered, match="slack did not answer within"):
            await senders.send("slack", CONFIGS["slack"], MESSAGE)
        over.set()
    for thread in threading.enumerate():
        if thread.name.startswith("torpor-chat"):
            await asyncio.to_thread(thread.join, 60)
            assert not thread.is_alive()


async def test_a_homeserver_that_asks_for_a_long_wait_does_not_hold_a_thread(tmp_path: Path) -> None:
    body = json.dumps({"errcode": "M_LIMIT_EXCEEDED", "retry_after_ms": 10**9}).encode()
    async with the_world(tmp_path, answering(b"HTTP/1.1 429 Slow\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))) as (server, senders):
        with pytest.raises(Undelivered):
            await senders.send("matrix", CONFIGS["matrix"], MESSAGE)
    assert 1 <= len(server.seen) <= MOST_REQUESTS


@pytest.mark.parametrize("body", [b"", b"nonsense", b"{" * 50_000, b"\xff\xfe"])
async def test_a_homeserver_that_talks_nonsense_is_an_error(tmp_path: Path, body: bytes) -> None:
    async with the_world(tmp_path, answering(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))) as (_, senders):
        with pytest.raises(Undelivered):
            await senders.send("matrix", CONFIGS["matrix"], MESSAGE)


async def test_the_query_of_an_address_switches_nothing_on(tmp_path: Path) -> None:
    """In apprise's own addresses `verify=no` leaves certificates unchecked and `template=` reads a file."""
    tls, _ = certificate(tmp_path, "hooks.slack.com")
    config = {"webhook_url": CONFIGS["slack"]["webhook_url"] + "?verify=no&redirect=yes&template=/etc/passwd&mode=bot"}
    async with web(as_the_services_do, tls) as server:
        senders = Senders(client_of(server))  # which does not trust that certificate
        with pytest.raises(Undelivered, match="no certificate"):
            await senders.send("slack", config, MESSAGE)
        senders.close()
    assert server.seen == []


@pytest.mark.parametrize(
    ("provider", "config", "complaint"),
    [
        ("pager", {}, "no provider"),
        ("webhook", {}, "lacks url"),
        ("webhook", {"url": "  "}, "lacks url"),
        ("webhook", {"url": "https://127.0.0.1/ä"}, "visible ASCII"),
        ("webhook", {"url": "ftp://127.0.0.1/"}, "not an address"),
        ("webhook", {"url": "http://127.0.0.1/", "secret": "a b"}, "visible ASCII"),
        ("slack", {"webhook_url": "https://127.0.0.1/services/T00000000/B00000000/XXXXXXXXXXXXXXXXXXXXXXXX"}, "not an address that this service gives out"),
        ("slack", {"webhook_url": "http://hooks.slack.com/services/T00000000/B00000000/XXXXXXXXXXXXXXXXXXXXXXXX"}, "not an address"),
        ("slack", {"webhook_url": "https://hooks.slack.com.evil.example/services/T00000000/B00000000/XXXXXXXXXXXXXXXXXXXXXXXX"}, "gives out"),
        ("discord", {"webhook_url": "https://discord.com/"}, "gives out"),
        ("teams", {"webhook_url": "https://127.0.0.1/workflows/x"}, "gives out"),
        ("googlechat", {"webhook_url": "https://chat.googleapis.com/"}, "gives out"),
        ("telegram", {"bot_token": "x", "chat_id": "1"}, "not one that telegram takes"),
        ("telegram", {"bot_token": "1"}, "lacks chat_id"),
        ("matrix", {"homeserver_url": "matrix.example", "access_token": "a", "room_id": "!r:x"}, "not an address"),
        ("matrix", {"homeserver_url": "https://matrix.example", "access_token": "a"}, "lacks room_id"),
    ],
)
async def test_a_config_that_cannot_be_is_refused(provider: str, config: dict[str, str], complaint: str) -> None:
    senders = Senders(Client(LOOPBACK))
    with pytest.raises(InvalidInput, match=complaint):
        await senders.prepare(provider, config)
    senders.close()


async def test_a_webhook_gets_a_secret_keeps_the_present_one_and_drops_what_it_does_not_know() -> None:
    senders = Senders(Client(LOOPBACK))
    made = await senders.prepare("webhook", {"url": " http://127.0.0.1/x ", "other": "y"})
    assert sorted(made) == ["secret", "url"]
    assert made["url"] == "http://127.0.0.1/x"
    assert len(bytes.fromhex(made["secret"])) == 32
    assert (await senders.prepare("webhook", {"url": "http://127.0.0.1/y"}, made)) == {"url": "http://127.0.0.1/y", "secret": made["secret"]}
    assert (await senders.prepare("webhook", {"url": "http://127.0.0.1/y", "secret": "new"}, made))["secret"] == "new"
    senders.close()


async def test_a_webhook_is_signed_over_its_time_and_body() -> None:
    async with web() as server:
        for _ in range(2):
            await webhook.send(Client(LOOPBACK), {"url": f"{server.url}/hook", "secret": "s3cret"}, Message("dlv-7", b'{"a":1}', "", ""))
    first, second = (seen.headers for seen in server.seen)
    expected = hmac.new(b"s3cret", first["x-wrenn-timestamp"].encode() + b'.{"a":1}', hashlib.sha256).hexdigest()
    assert first["x-wrenn-signature"] == f"sha256={expected}"
    assert first["x-wrenn-delivery"] != second["x-wrenn-delivery"]
    assert first["x-torpor-delivery"] == second["x-torpor-delivery"] == "dlv-7"
    assert (first["content-type"], server.seen[0].body) == ("application/json", b'{"a":1}')


def test_a_plugin_gets_nothing_of_requests_but_what_is_listed() -> None:
    guarded = GuardedRequests()
    assert guarded.codes.ok == 200
    for name in ("Session", "session", "adapters", "api", "head", "delete"):
        with pytest.raises(AttributeError, match="not guarded"):
            getattr(guarded, name)
    with pytest.raises(TypeError, match="not guarded"):
        guarded.post("https://x.example", files={"a": b"b"})


@pytest.mark.parametrize("where", [*(chat.plugin for chat in chats.WEBHOOKS.values()), chats._TELEGRAM, chats._MATRIX])
def test_every_plugin_in_use_is_guarded(where: tuple[str, str]) -> None:
    """And reaches the network in no other way that its module names."""
    plugin = chats.load(*where)
    names = vars(__import__(plugin.__module__, fromlist=["x"]))
    assert isinstance(names["requests"], GuardedRequests)
    assert not {"socket", "urllib3", "httpx", "aiohttp", "http", "smtplib", "subprocess"} & set(names)
