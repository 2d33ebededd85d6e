"""Who gets to a port, what is told to those who do not, and what of their credentials the sandbox sees: nothing."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from proxy_world import DOMAIN, INNER_PORT, ProxyWorld, answering, bytes_server, open_proxy
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from torpor.model.records import SYSTEM, Exposure
from torpor.service.caller import Caller

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
NOBODY = "0123456789abcdefghij01234"
CHROME = {
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64) Chrome/156.0 Safari/537.36",
    "Accept": "text/html,application/xhtml+xml,*/*;q=0.8",
    "Sec-Fetch-Dest": "document",
    "Sec-Fetch-Mode": "navigate",
}


async def plane(scope: Scope, receive: Receive, send: Send) -> None:
    """An inner data plane."""
    await JSONResponse({"sandbox": scope["state"]["sandbox_id"], "path": scope["path"]})(scope, receive, send)


@pytest.fixture
async def proxy(tmp_path: Path) -> AsyncIterator[ProxyWorld]:
    async with open_proxy(tmp_path, domain=DOMAIN, inner={INNER_PORT: plane}) as world:
        yield world


def tokens_of(proxy: ProxyWorld) -> Any:
    return proxy.wired.services.tokens


async def test_public_ports_are_anybodys_and_no_credential_goes_in(proxy: ProxyWorld) -> None:
    sandbox, seen = await proxy.sandbox(), []
    tokens = tokens_of(proxy)
    async with bytes_server(answering(OK, seen)) as port:
        client = proxy.to(sandbox, port)
        assert (await client.get("/")).text == "ok"
        secrets = {
            "X-API-Key": proxy.other_key,
            "E2b-Traffic-Access-Token": tokens.traffic(sandbox),
            "X-Access-Token": tokens.access(sandbox),
            "Cookie": "torpor_session=aaa; torpor_port=bbb; __Host-torpor_session=ccc",
        }
        signature = tokens.address(sandbox, port, int(time.time()) + 60)
        query = f"?a=1&torpor_signature={signature}&torpor%5Fsignature=again&b=2"
        for headers in (secrets, {"Authorization": f"Bearer {proxy.key}"}, {"Authorization": "Bearer e2b_" + "0" * 40}):
            assert (await client.get("/p" + query, headers=headers)).text == "ok"
        await client.get("/", headers={"X-API-Key": "mine", "Authorization": "Bearer mine", "X-Access-Token": "mine", "Cookie": "torpor=1"})
    for head in seen[1:4]:
        assert head.startswith(b"GET /p?a=1&b=2 HTTP/1.1\r\n")
        names = {line.partition(b":")[0].lower() for line in head.split(b"\r\n")}
        assert not {b"x-api-key", b"authorization", b"cookie", b"x-access-token", b"e2b-traffic-access-token"} & names
        assert not re.search(rb"[0-9a-f]{40}", head)
    assert seen[4].count(b"mine") == 3 and b"torpor=1" in seen[4]


async def test_private_ports_want_something_shown(proxy: ProxyWorld) -> None:
    sandbox, seen = await proxy.sandbox(public=False), []
    tokens = tokens_of(proxy)
    narrow, good = await _keys(proxy)
    async with bytes_server(answering(OK, seen)) as port:
        for headers in (
            {"E2b-Traffic-Access-Token": tokens.traffic(sandbox)},
            {"X-API-Key": proxy.key},
            {"Authorization": f"Bearer {proxy.key}"},
            {"X-API-Key": good},
            {"Authorization": "Bearer the-app's-own", "E2b-Traffic-Access-Token": tokens.traffic(sandbox)},
        ):
            assert (await proxy.to(sandbox, port).get("/", headers=headers)).text == "ok"
        assert b"the-app's-own" in seen[-1]
        count = len(seen)
        refused: list[tuple[dict[str, str], int]] = [
            ({}, 403),
            ({"E2b-Traffic-Access-Token": "wrong"}, 403),
            ({"E2b-Traffic-Access-Token": tokens.access(sandbox)}, 403),
            ({"E2b-Traffic-Access-Token": tokens.traffic(NOBODY)}, 403),
            ({"X-API-Key": "trp_" + "0" * 40}, 403),
            ({"Authorization": "Bearer nothing"}, 403),
            ({"Cookie": "torpor_session=1"}, 403),
            ({"X-API-Key": narrow}, 403),
            ({"X-API-Key": proxy.other_key}, 502),
        ]
        for headers, status in refused:
            answer = await proxy.to(sandbox, port).get("/", headers=headers)
            assert (answer.status_code, answer.json()["code"], answer.json()["sandboxId"]) == (status, status, sandbox), headers
        assert "was not found" in answer.text
        assert len(seen) == count


async def _keys(proxy: ProxyWorld) -> tuple[str, str]:
    """One that may only read files, and one that may use sandboxes."""
    from torpor.model.records import ApiKey
    from torpor.service.access import digest_of
    from torpor.service.first import new_key

    context, made = proxy.wired.context, []
    for scope in ("files:read", "sandboxes:exec"):
        secret = new_key()
        async with context.store.write() as records:
            await records.keys.add(ApiKey(context.new_id(), proxy.team, "k", digest_of(secret), secret[:10], context.now(), scopes=(scope,)))
        made.append(secret)
    return made[0], made[1]


async def test_natively_unknown_private_and_others_are_the_same(proxy: ProxyWorld) -> None:
    """Nobody learns from an answer whether a sandbox is there."""
    sandbox = await proxy.sandbox(public=False)
    answers = []
    async with bytes_server(answering(OK)) as port:
        for shown in (f"cl-{sandbox}", f"cl-{NOBODY}"):
            for headers in ({}, {"X-API-Key": proxy.other_key}, {"X-API-Key": "trp_" + "0" * 40}, {"E2b-Traffic-Access-Token": "x"}):
                answer = await proxy.to(shown, port).get("/", headers=headers)
                error = answer.json()["error"]
                assert error["request_id"] == answer.headers["x-request-id"]
                answers.append((answer.status_code, error["code"], error["message"]))
        assert set(answers) == {answers[0]} and answers[0][:2] == (404, "not_found")
        assert (await proxy.to(f"cl-{sandbox}", port).get("/", headers={"X-API-Key": proxy.key})).text == "ok"


async def test_what_is_not_there(proxy: ProxyWorld) -> None:
    sandbox = await proxy.sandbox()
    for shown in (NOBODY, "iabcdefghij0123456789"):
        answer = await proxy.to(shown, 80).get("/")
        assert (answer.status_code, answer.json()) == (502, {"sandboxId": shown, "message": "The sandbox was not found", "code": 502})
    answer = await proxy.to(sandbox, 1).get("/")
    assert (answer.status_code, answer.json()) == (
        502,
        {"sandboxId": sandbox, "message": "The sandbox is running but port is not open", "port": 1, "code": 502},
    )
    native = await proxy.to(f"cl-{sandbox}", 1).get("/")
    assert (native.status_code, native.json()["error"]["code"]) == (502, "agent_error")
    for label in (f"0-{sandbox}", f"65536-{sandbox}", f"080-{sandbox}", "80-", "80-under_score", f"80-cl-{sandbox[:-1]}_"):
        answer = await proxy.client(f"{label}.{DOMAIN}").get("/")
        assert (answer.status_code, answer.json().get("code", 400)) == (400, 400), label
    for elsewhere in (f"api.{DOMAIN}", DOMAIN, f"{DOMAIN}:80", "127.0.0.1", f"80-{sandbox}.another.test", f"www.{DOMAIN}"):
        assert (await proxy.client(elsewhere).get("/health")).status_code == 200, elsewhere


async def test_browsers_get_a_page(proxy: ProxyWorld) -> None:
    sandbox = await proxy.sandbox()
    for shown, status in ((NOBODY, 502), (f"cl-{NOBODY}", 404)):
        answer = await proxy.to(shown, 80).get("/", headers=CHROME)
        assert (answer.status_code, answer.headers["content-type"]) == (status, "text/html; charset=utf-8")
    assert "port is not open" in (await proxy.to(sandbox, 1).get("/", headers=CHROME)).text
    for data in ({"Accept": "application/json"}, {"Sec-Fetch-Dest": "empty", "Sec-Fetch-Mode": "cors"}):
        answer = await proxy.to(NOBODY, 80).get("/", headers=CHROME | data)
        assert answer.headers["content-type"] == "application/json"


async def test_a_signed_address_opens_one_port_for_a_while(proxy: ProxyWorld) -> None:
    sandbox, seen = await proxy.sandbox(public=False), []
    api = proxy.client(f"api.{DOMAIN}:{proxy.port}", **{"X-API-Key": proxy.key})
    async with bytes_server(answering(OK, seen)) as port:
        made = await api.post(f"/v1/capsules/cl-{sandbox}/ports/{port}/url", json={"expires_in": 60})
        url = httpx.URL(made.json()["url"])
        assert url.host == f"{port}-cl-{sandbox}.{DOMAIN}" and url.port == proxy.port and made.headers["cache-control"] == "no-store"
        client = proxy.client(f"{url.host}:{url.port}")
        path = url.raw_path.decode()
        plain = await client.get(path)
        assert (plain.status_code, plain.text) == (200, "ok") and b"torpor_signature" not in seen[-1]
        first = await client.get(path.replace("/?", "/a%2Fb?x=1&"), headers=CHROME)
        assert (first.status_code, first.headers["location"]) == (302, f"http://{url.host}:{url.port}/a%2Fb?x=1")
        head = f"GET //evil.test{path} HTTP/1.1\r\nHost: {url.host}\r\n" + "".join(f"{name}: {value}\r\n" for name, value in CHROME.items())
        reader, writer = await proxy.raw(f"{head}\r\n".encode())
        assert f"location: http://{url.host}//evil.test/\r\n".encode() in await reader.readuntil(b"\r\n\r\n")
        writer.close()
        cookie = first.headers["set-cookie"]
        assert re.fullmatch(r"torpor_port=v1\.[0-9]+\.[0-9a-f]{64}; Path=/; Max-Age=(59|60); HttpOnly; SameSite=Lax", cookie)
        session = {"Cookie": cookie.partition(";")[0]}
        own = f"http://{url.host}:{url.port}"
        assert len(seen) == 1
        for good in ({}, {"Origin": own}, {"Sec-Fetch-Site": "same-origin"}, CHROME | {"Sec-Fetch-Site": "cross-site"}, CHROME | {"Sec-Fetch-Site": "none"}):
            assert (await client.get("/next", headers=session | good)).text == "ok"
        for bad in (
            {"Origin": "http://evil.test"},
            {"Origin": "null"},
            {"Sec-Fetch-Site": "same-site"},
            {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
        ):
            assert (await client.get("/next", headers=session | bad)).status_code == 404
        assert (await client.post("/next", headers=session | CHROME | {"Sec-Fetch-Site": "same-site"})).status_code == 404
        assert b"torpor_port" not in b"".join(seen)
        assert (await proxy.to(f"cl-{sandbox}", port + 1).get(path)).status_code == 404
        tokens = tokens_of(proxy)
        good_until = int(time.time()) + 60
        signature = tokens.address(sandbox, port, good_until)
        for forged in (
            tokens.address(sandbox, port, int(time.time()) - 1),
            tokens.address(NOBODY, port, good_until),
            signature.replace(str(good_until), str(good_until + 1)),
            signature[:-1],
            signature + "\n",
            "v1..",
            "é",
        ):
            assert (await client.get("/", params={"torpor_signature": forged})).status_code == 404
            assert (await proxy.to(sandbox, port).get("/", params={"torpor_signature": forged})).status_code == 403


async def test_where_a_signed_address_leads(proxy: ProxyWorld, tmp_path: Path) -> None:
    sandbox = await proxy.sandbox(public=False)
    path = f"/v1/capsules/{sandbox}/ports/80/url"
    api = proxy.client(f"api.{DOMAIN}", **{"X-API-Key": proxy.key})
    assert (await api.post(path, json={})).json()["url"].startswith(f"http://80-cl-{sandbox}.{DOMAIN}/?")
    for body in ({"expires_in": 0}, {"expires_in": 10**9}, {"expires_in": "60"}):
        assert (await api.post(path, json=body)).status_code == 400
    assert (await api.post(path.replace("/80/", "/65536/"), json={})).status_code == 400
    assert (await proxy.client(f"api.{DOMAIN}", **{"X-API-Key": proxy.other_key}).post(path, json={})).status_code == 404
    assert (await proxy.client(f"api.{DOMAIN}").post(path, json={})).status_code == 401
    await proxy.kill(sandbox)
    assert (await api.post(path, json={})).status_code == 409


async def test_an_inner_data_plane_answers_in_the_guests_place(proxy: ProxyWorld) -> None:
    sandbox = await proxy.sandbox()
    assert (await proxy.to(sandbox, INNER_PORT).get("/files")).json() == {"sandbox": sandbox, "path": "/files"}
    by_path = await proxy.client(own_port=True).get(f"/{sandbox}/{INNER_PORT}/files")
    assert by_path.json() == {"sandbox": sandbox, "path": "/files"}
    assert "was not found" in (await proxy.to(NOBODY, INNER_PORT).get("/health")).json()["message"]


async def test_no_id_alone_opens_an_inner_data_plane(proxy: ProxyWorld) -> None:
    """A private sandbox whose commands and files are not guarded: natively that is the rule, and the data plane asks for nothing then."""
    sandbox, guarded = await proxy.sandbox(public=False), await proxy.sandbox(exposure=Exposure(guarded=True))
    tokens = tokens_of(proxy)
    assert (await proxy.to(sandbox, INNER_PORT).get("/")).status_code == 403
    assert (await proxy.to(sandbox, INNER_PORT).get("/", headers={"X-Access-Token": tokens.access(guarded)})).status_code == 403
    for shown in ({"X-Access-Token": tokens.access(sandbox)}, {"X-API-Key": proxy.key}, {"E2b-Traffic-Access-Token": tokens.traffic(sandbox)}):
        assert (await proxy.to(sandbox, INNER_PORT).get("/", headers=shown)).status_code == 200
    assert (await proxy.to(guarded, INNER_PORT).get("/")).status_code == 200


async def test_too_many_connections_to_one_sandbox(proxy: ProxyWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    from torpor.api.proxy import app

    monkeypatch.setattr(app, "MOST_OPEN", 0)
    sandbox = await proxy.sandbox()
    answer = await proxy.to(sandbox, 80).get("/")
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")


async def test_nothing_is_woken_for_who_may_not(proxy: ProxyWorld) -> None:
    sandbox = await proxy.sandbox(public=False, auto_resume=True)
    await proxy.pause(sandbox)
    assert (await proxy.to(sandbox, 80).get("/")).status_code == 403
    found = await proxy.wired.services.sandboxes.get(Caller(proxy.team, SYSTEM), sandbox)
    assert found.state.value == "paused"
