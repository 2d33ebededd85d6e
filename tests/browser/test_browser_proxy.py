"""A real browser with a page that is served from inside a sandbox: it works, and it is nobody to the API.

Chromium resolves every name to loopback here, so that names under a domain need no DNS; the page tells what it saw by asking the sandbox's own server.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import websockets
from proxy_world import ProxyWorld, asgi, open_proxy
from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from patience import PATIENCE
from torpor.api import auth
from torpor.api.auth import session_of
from torpor.apps.certs import ensure
from torpor.service.first import ADMIN_EMAIL

DOMAIN = "sbx.torpor.test"
CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), "")

PAGE = """<!doctype html><title>in a sandbox</title><script type="module">
const api = "API", seen = {origin: location.origin, search: location.search, script: true};
const tell = async (name, work) => { try { seen[name] = await work() } catch (error) { seen[name] = "failed: " + error.name } };
document.cookie = "torpor_session=planted; path=/";
await tell("own", async () => (await fetch("/own")).text());
await tell("cookies", async () => document.cookie);
await tell("asset", () => new Promise((good, bad) => { const image = new Image(); image.onload = () => good("loaded"); image.onerror = () => bad(new Error());
  image.src = "/dot.svg" }));
await tell("read", async () => (await fetch(api + "/v1/me", {credentials: "include"})).text());
await tell("blind", async () => (await fetch(api + "/v1/capsules", {mode: "no-cors", credentials: "include", method: "POST",
  body: JSON.stringify({template: "base"})})).type);
await tell("framed", () => new Promise(good => { const frame = document.createElement("iframe"); frame.src = api + "/v1/me";
  frame.onload = () => { try { good("read: " + frame.contentDocument.body.innerText.slice(0, 40)) } catch (error) { good("failed: " + error.name) } };
  document.body.append(frame) }));
await tell("socket", () => new Promise(good => { const socket = new WebSocket("ws://" + location.host.replace(/^[0-9]+/, "SOCKET") + "/");
  socket.onmessage = event => good(event.data); socket.onclose = event => good("closed " + event.code) }));
await tell("worker", async () => (await navigator.serviceWorker.register("/worker.js", {scope: "/"})).scope);
await fetch("/report", {method: "POST", body: JSON.stringify(seen)});
</script>"""


class Site:
    """The server in the sandbox. `reports`: what pages told."""

    def __init__(self, api: str, socket: int) -> None:
        self.reports: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.cookies: list[str] = []
        self.page = PAGE.replace("API", api).replace("SOCKET", str(socket))
        self.app = Starlette(routes=[Route("/{rest:path}", self.answer, methods=["GET", "POST"])])

    async def answer(self, request: Request) -> Response:
        self.cookies.append(request.headers.get("cookie", ""))
        match request.url.path:
            case "/report":
                self.reports.put_nowait(json.loads(await request.body()))
                return PlainTextResponse("thanks")
            case "/own":
                return PlainTextResponse("mine", headers={"Set-Cookie": f"app=1; Domain={DOMAIN}; Path=/"})
            case "/dot.svg":
                return Response('<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>', media_type="image/svg+xml")
            case "/worker.js":
                return Response("self.addEventListener('fetch', () => {});", media_type="text/javascript")
        return HTMLResponse(self.page)


@pytest.fixture
async def proxy(tmp_path: Path) -> AsyncIterator[ProxyWorld]:
    (tmp_path / "world").mkdir()
    async with open_proxy(tmp_path / "world", domain=DOMAIN) as world:
        yield world


async def browse(folder: Path, url: str, site: Site) -> dict[str, Any]:
    """What the page told. The same profile for the same folder."""
    assert CHROMIUM, "chromium is missing: scripts/bootstrap.sh --tests"
    argv = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking"]
    argv += [f"--user-data-dir={folder / 'profile'}", "--host-resolver-rules=MAP * 127.0.0.1", "--no-proxy-server", "--remote-debugging-port=0"]
    argv += ["--ignore-certificate-errors"]
    # a name that is no secure context otherwise could have no service worker; torpor serves real ones over TLS
    argv += [f"--unsafely-treat-insecure-origin-as-secure={'/'.join(url.split('/')[:3])}", url]
    # the browser's own sockets lie there, whose addresses must be short
    with tempfile.TemporaryDirectory(prefix="torpor-browser-", ignore_cleanup_errors=True) as scratch, (folder / "chromium.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*argv, env=os.environ | {"TMPDIR": scratch}, stdout=log, stderr=subprocess.STDOUT)
        try:
            async with asyncio.timeout(PATIENCE):
                return await site.reports.get()
        except TimeoutError:
            raise AssertionError((folder / "chromium.log").read_text(errors="replace")[-3000:]) from None
        finally:
            process.kill()
            await process.wait()


async def test_a_page_from_a_sandbox_in_a_browser(proxy: ProxyWorld, tmp_path: Path) -> None:
    sandbox = await proxy.sandbox(public=False)
    public = await proxy.sandbox()
    api = f"http://api.{DOMAIN}:{proxy.port}"

    async def greet(socket: websockets.ServerConnection) -> None:
        await socket.send("hello")

    async with websockets.serve(greet, "127.0.0.1", 0) as server:
        at = next(iter(server.sockets)).getsockname()[1]
        site = Site(api, at)
        async with asgi(site.app) as port:
            host = f"{port}-cl-{sandbox}.{DOMAIN}:{proxy.port}"
            made = await proxy.client(f"api.{DOMAIN}:{proxy.port}", **{"X-API-Key": proxy.key}).post(f"/v1/capsules/{sandbox}/ports/{port}/url", json={})
            before = await _sandboxes(proxy)
            seen = await browse(tmp_path, made.json()["url"], site)
            assert seen["script"] and seen["origin"] == f"http://{host}" and seen["origin"] != api
            assert (seen["search"], seen["own"], seen["asset"]) == ("", "mine", "loaded"), "the session that the signed address began carries the page"
            assert "torpor_port" not in seen["cookies"], "the page cannot read the session"
            assert seen["read"].startswith("failed"), "no answer of the API is for the page"
            assert seen["blind"] in ("opaque", "failed: TypeError") and await _sandboxes(proxy) == before, "and no request of it does anything"
            assert seen["framed"].startswith("failed"), "nor is it shown in a frame that the page can look into"
            assert seen["socket"].startswith("closed"), "the session is of one port"
            assert seen["worker"] == f"http://{host}/"
            assert all("torpor_" not in cookies for cookies in site.cookies), "the sandbox sees none of our cookies"
            (tmp_path / "second").mkdir()
            seen = await browse(tmp_path / "second", f"http://{port}-{public}.{DOMAIN}:{proxy.port}/", site)
            assert (seen["own"], seen["socket"]) == ("mine", "hello")


PLANT = """<!doctype html><script type="module">
for (const name of ["torpor_session", "__Host-torpor_session"]) document.cookie = name + "=SECRET; domain=DOMAIN; path=/; secure";
await fetch("SERVER/v1/me", {mode: "no-cors", credentials: "include"}).catch(() => "the page may not see the answer");
await fetch("/report", {method: "POST", body: JSON.stringify({cookies: document.cookie})});
</script>""".replace("DOMAIN", DOMAIN)


async def test_a_sandboxs_page_cannot_put_a_login_of_its_own_into_the_browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over TLS: the attacker's login is a good one, and stands in the browser for the whole domain. To the API it is nobody's."""
    came: list[tuple[str, str]] = []

    def noted(connection: HTTPConnection) -> str:
        found = session_of(connection)
        came.append((connection.headers.get("cookie", ""), found))
        return found

    monkeypatch.setattr(auth, "session_of", noted)
    made = ensure(tmp_path / "certs", DOMAIN)
    (tmp_path / "world").mkdir()
    async with open_proxy(tmp_path / "world", domain=DOMAIN, certificate=(str(made.certificate), str(made.key))) as proxy:
        assert proxy.wired.first is not None
        api, wish = f"https://api.{DOMAIN}:{proxy.port}", {"email": ADMIN_EMAIL, "password": proxy.wired.first.password, "cookie": True}
        login = await proxy.client(f"api.{DOMAIN}").post("/v1/auth/login", json=wish)
        secret = login.headers["set-cookie"].partition("=")[2].partition(";")[0]
        site = Site(api, 1)
        site.page = PLANT.replace("SECRET", secret).replace("SERVER", api)
        async with asgi(site.app) as port:
            seen = await browse(tmp_path, f"https://{port}-{await proxy.sandbox()}.{DOMAIN}:{proxy.port}/", site)
        assert seen["cookies"] == f"torpor_session={secret}", "the plain name it can set, the other one the browser refuses"
        assert came == [(f"torpor_session={secret}", "")], "the plain one comes to the API, and does not count there"
        assert (await proxy.client(f"api.{DOMAIN}", Cookie=f"__Host-torpor_session={secret}").get("/v1/me")).status_code == 200


async def test_a_page_of_elsewhere_calls_e2bs_api_with_its_key(proxy: ProxyWorld, tmp_path: Path) -> None:
    """As E2B's package does in a browser, from an origin that the server knows nothing of."""
    site = Site(f"http://127.0.0.1:{proxy.port}", 1)
    site.page = FOREIGN.replace("SERVER", f"http://127.0.0.1:{proxy.port}").replace("KEY", proxy.key)
    async with asgi(site.app) as port:
        seen = await browse(tmp_path, f"http://127.0.0.1:{port}/", site)
    assert seen["made"] == 201 and seen["listed"] == [seen["id"]] and seen["total"] == "1"
    assert seen["refused"] == 401, "refusals are readable, too"
    assert seen["native"] == seen["cookies"] == "failed: TypeError", "but nothing of the native API, and nothing that was asked with cookies"


FOREIGN = """<!doctype html><script type="module">
const api = "SERVER", seen = {}, headers = {"X-API-Key": "KEY", "Content-Type": "application/json", "lang": "js"};
const tell = async (name, work) => { try { seen[name] = await work() } catch (error) { seen[name] = "failed: " + error.name } };
await tell("made", async () => { const made = await fetch(api + "/v2/sandboxes", {method: "POST", headers, body: JSON.stringify({templateID: "base"})});
  seen.id = (await made.json()).sandboxID; return made.status });
await tell("listed", async () => { const listed = await fetch(api + "/v2/sandboxes", {headers});
  seen.total = listed.headers.get("X-Total-Running"); return (await listed.json()).map(each => each.sandboxID) });
await tell("refused", async () => (await fetch(api + "/sandboxes", {headers: {"X-API-Key": "e2b_" + "0".repeat(40)}})).status);
await tell("native", async () => (await fetch(api + "/v1/capsules", {headers})).status);
await tell("cookies", async () => (await fetch(api + "/v2/sandboxes", {headers, credentials: "include"})).status);
await fetch("/report", {method: "POST", body: JSON.stringify(seen)});
</script>"""


async def _sandboxes(proxy: ProxyWorld) -> int:
    answer = await proxy.client(f"api.{DOMAIN}", **{"X-API-Key": proxy.key}).get("/v1/capsules")
    return len(answer.json())
