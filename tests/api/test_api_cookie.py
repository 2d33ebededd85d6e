"""The cookie of a browser's login, over plain HTTP, over TLS and behind a proxy that ends TLS; and neighbours under one domain that set one of its name."""

from __future__ import annotations

from collections.abc import AsyncIterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import httpx
import pytest
from people_world import login
from plane_world import Plane, cheap, open_plane
from proxy_world import open_proxy

from torpor.api.auth import COOKIE, HOST_COOKIE
from torpor.apps.certs import ensure
from torpor.service.first import ADMIN_EMAIL

DOMAIN = "sbx.example.test"
BY_TLS = {"X-Forwarded-Proto": "https"}


async def begun(client: httpx.AsyncClient, first: Any, **headers: str) -> httpx.Response:
    answer = await client.post("/v1/auth/login", json={"email": ADMIN_EMAIL, "password": first.password, "cookie": True}, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer


def crumbs(answer: httpx.Response) -> tuple[str, str, dict[str, str]]:
    """Name, value and attributes of the cookie that an answer sets."""
    (header,) = answer.headers.get_list("set-cookie")
    (name, _, value), *rest = (part.strip().partition("=") for part in header.split(";"))
    return name, value, {key.lower(): text for key, _, text in rest}


@pytest.fixture
async def trusting(tmp_path: Path) -> AsyncIterator[Plane]:
    """Behind a proxy on this machine that is trusted to say what its clients use."""
    (tmp_path / "trusting").mkdir()
    async with open_plane(tmp_path / "trusting", cheap(proxies=(ip_network("127.0.0.0/8"),))) as plane:
        yield plane


async def status(client: httpx.AsyncClient, cookies: str, **headers: str) -> int:
    return (await client.get("/v1/me", headers={"Cookie": cookies} | headers)).status_code


async def test_over_tls_the_name_is_one_that_no_neighbour_can_set(tmp_path: Path) -> None:
    made = ensure(tmp_path / "certs", DOMAIN)
    (tmp_path / "world").mkdir()
    async with open_proxy(tmp_path / "world", domain=DOMAIN, certificate=(str(made.certificate), str(made.key))) as world:
        client = world.client(f"api.{DOMAIN}")
        answer = await begun(client, world.wired.first)
        name, secret, attributes = crumbs(answer)
        assert (name, attributes["path"], attributes["samesite"]) == (HOST_COOKIE, "/", "strict")
        assert {"secure", "httponly"} <= set(attributes) and "domain" not in attributes
        client.cookies.clear()
        assert await status(client, f"{HOST_COOKIE}={secret}") == 200
        assert await status(client, f"{COOKIE}={secret}") == 401
        assert await status(client, f"{COOKIE}=planted; {HOST_COOKIE}={secret}; {COOKIE}=again") == 200
        csrf = answer.json()["csrf_token"]
        left = await client.post("/v1/auth/logout", headers={"Cookie": f"{HOST_COOKIE}={secret}", "X-CSRF-Token": csrf})
        name, value, attributes = crumbs(left)
        assert (left.status_code, name, value.strip('"'), attributes["max-age"], "secure" in attributes) == (204, HOST_COOKIE, "", "0", True)
        assert await status(client, f"{HOST_COOKIE}={secret}") == 401


async def test_behind_a_trusted_proxy_that_ends_tls_too(trusting: Plane) -> None:
    await login(trusting)
    client = trusting.stack_client()
    client.headers.update(BY_TLS)
    name, secret, _ = crumbs(await begun(client, trusting.wired.first))
    client.cookies.clear()
    assert name == HOST_COOKIE
    assert await status(client, f"{HOST_COOKIE}={secret}") == 200
    assert await status(client, f"{COOKIE}={secret}") == 401
    del client.headers["X-Forwarded-Proto"]
    assert await status(client, f"{HOST_COOKIE}={secret}") == 401  # what comes in the clear has the clear name


async def test_over_plain_http_a_browser_keeps_it_by_its_plain_name(plane: Plane) -> None:
    client = plane.stack_client()
    client.headers.update(BY_TLS)  # nobody trusts what it says
    name, secret, attributes = crumbs(await begun(client, plane.wired.first))
    assert (name, "secure" in attributes) == (COOKIE, False)
    assert (await client.get("/v1/me")).status_code == 200
    client.cookies.clear()
    assert await status(client, f"{HOST_COOKIE}={secret}") == 401


async def test_a_cookie_that_is_there_twice_is_none(trusting: Plane) -> None:
    """A neighbour's, set for the whole domain, stands beside ours; which comes first is the neighbour's choice."""
    client = trusting.stack_client()
    for name, headers in ((COOKIE, {}), (HOST_COOKIE, BY_TLS)):
        _, secret, _ = crumbs(await begun(client, trusting.wired.first, **headers))
        client.cookies.clear()
        for cookies in (f"{name}={secret}; {name}=planted", f"{name}=planted; {name}={secret}", f"{name}={secret};{name}={secret}"):
            assert await status(client, cookies, **headers) == 401, cookies
        two = [("Cookie", f"{name}={secret}"), ("Cookie", f"{name}=planted"), *headers.items()]
        assert (await client.get("/v1/me", headers=two)).status_code == 401
        for odd in (f"{name}\xa0", name.upper(), f"x={name}", f"{name}x"):
            encoded = [(b"Cookie", f"{odd}={secret}".encode("latin-1")), *((k.encode(), v.encode()) for k, v in headers.items())]
            assert (await client.get("/v1/me", headers=encoded)).status_code in (400, 401), odd
        assert await status(client, f"a=b; {name}={secret} ; c", **headers) == 200
