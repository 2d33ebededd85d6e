"""Pages of other origins: what E2B's package in a browser needs, and that a login of the native API is nothing to them."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute
from people_world import login
from plane_world import Plane
from test_e2b_hostile import ROUTES, address, ask
from test_e2b_sandboxes import create

from torpor.service.first import ADMIN_EMAIL

PAGE = {"Origin": "https://app.example.org"}
OF_THE_SDK = "x-api-key,content-type,lang,lang_version,package_version,publisher,sdk_runtime,system,browser,engine,x-team-id,idempotency-key"


def preflight(client: httpx.AsyncClient, path: str, method: str, headers: str = OF_THE_SDK) -> Any:
    asked = {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": headers}
    return client.options(path, headers=PAGE | asked)


def access(answer: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name.startswith("access-control-")}


async def test_a_page_of_any_origin_may_ask_everything_of_e2b(plane: Plane) -> None:
    for method, route in ROUTES:
        answer = await preflight(plane.anyone, address(route, "0" * 25), method)
        assert answer.status_code == 200, (method, route.path)
        allowed = access(answer)
        assert (allowed["access-control-allow-origin"], allowed["access-control-max-age"]) == ("*", "7200")
        assert method in allowed["access-control-allow-methods"]
        assert set(OF_THE_SDK.split(",")) <= set(allowed["access-control-allow-headers"].split(","))


async def test_a_page_reads_answers_and_refusals(plane: Plane) -> None:
    made = await create(plane)
    readable = {"access-control-allow-origin": "*", "access-control-expose-headers": "*"}
    for client, how, status in (
        (plane.client, {"url": f"/sandboxes/{made['sandboxID']}"}, 200),
        (plane.client, {"url": "/v2/sandboxes"}, 200),
        (plane.other, {"url": f"/sandboxes/{made['sandboxID']}"}, 404),
        (plane.anyone, {"url": "/sandboxes"}, 401),
        (plane.client, {"url": "/sandboxes/nothing/at/all"}, 404),
        (plane.client, {"url": "/sandboxes", "method": "PUT"}, 405),
        (plane.client, {"url": "/sandboxes", "method": "POST", "content": b"{"}, 400),
        (plane.client, {"url": "/sandboxes", "method": "POST", "content": b"x" * 5_000_000}, 413),
    ):
        answer = await client.request(**{"method": "GET", "headers": PAGE} | how)  # type: ignore[arg-type]
        assert (answer.status_code, access(answer)) == (status, readable), how
    assert access(await plane.client.get("/v2/sandboxes")) == {}  # no page asks


async def test_no_page_of_elsewhere_reads_the_native_api(plane: Plane) -> None:
    routes = [route for route in plane.app.routes if isinstance(route, APIRoute) and route not in [each for _, each in ROUTES]]
    assert len(routes) > 60
    for route in routes:
        path = route.path.replace("{", "").replace("}", "")
        for method in sorted(route.methods or ()):
            assert access(await preflight(plane.anyone, path, method)) == {}, path
        if "GET" in (route.methods or ()) and not path.endswith("/stream"):
            for headers in (PAGE, PAGE | {"X-API-Key": "e2b_" + "0" * 40}, PAGE | {"Host": "api.example.org"}):
                assert access(await plane.anyone.get(path, headers=headers)) == {}, path
    for spelling in ("/api/v1/me", "/%76%31/me", "/v1/../sandboxes/../v1/me", "/v1/capsules", "/metrics", "/docs", "/health", "/openapi.json"):
        assert access(await plane.client.get(spelling, headers=PAGE)) == {}, spelling


async def test_a_login_in_a_cookie_is_nobody_in_e2bs_dialect(plane: Plane) -> None:
    """Neither to a page of elsewhere nor to one of ours, with or without its CSRF token."""
    await login(plane)
    assert plane.wired.first is not None
    client = plane.stack_client()
    begun = await client.post("/v1/auth/login", json={"email": ADMIN_EMAIL, "password": plane.wired.first.password, "cookie": True})
    assert (await client.get("/v1/me")).status_code == 200
    made = await create(plane)
    for method, route in ROUTES:
        for headers in ({}, {"Origin": plane.url, "X-CSRF-Token": begun.json()["csrf_token"]}, PAGE | {"X-CSRF-Token": begun.json()["csrf_token"]}):
            answer = await ask(client, method, route, made["sandboxID"], headers=headers)
            assert answer.status_code == 401 and "set-cookie" not in answer.headers, (method, route.path)
            assert "access-control-allow-credentials" not in answer.headers
    assert (await plane.client.get(f"/sandboxes/{made['sandboxID']}")).status_code == 200


@pytest.mark.parametrize("path", ["/execute", "/process.Process/Start", "/v1/me"])
async def test_a_preflight_for_a_sandbox_that_headers_will_name(plane: Plane, path: str) -> None:
    answer = await preflight(plane.anyone, path, "POST", "content-type, E2b-Sandbox-Id, E2b-Sandbox-Port")
    assert (answer.status_code, access(answer)["access-control-allow-origin"]) == (200, "*")
    assert "access-control-allow-credentials" not in answer.headers
    assert access(await preflight(plane.anyone, path, "POST", "content-type, e2b-sandbox-id-not")) == {}


async def test_a_page_of_the_internet_gets_no_way_into_a_private_network(plane: Plane) -> None:
    asked = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Private-Network": "true"}
    answer = await plane.anyone.options("/sandboxes", headers=PAGE | asked)
    assert (answer.status_code, "access-control-allow-private-network" in answer.headers) == (400, False)
