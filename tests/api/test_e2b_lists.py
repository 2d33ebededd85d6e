"""E2B's lists, figures, logs, snapshots, templates, tags, keys and teams."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import quote, quote_plus
from uuid import UUID

import pytest
from plane_world import Plane
from test_e2b_sandboxes import LISTED, create, status

from torpor.model.records import MetricPoint, Tier


async def listed(plane: Plane, **query: Any) -> list[str]:
    answer = await plane.client.get("/v2/sandboxes", params=query)
    assert answer.status_code == 200, answer.text
    return [one["sandboxID"] for one in answer.json()]


def metadata(**pairs: str) -> str:
    """As the SDK writes it, but for the last encoding, which is the HTTP client's."""
    return quote("&".join(f"{quote(name)}={quote(value)}" for name, value in pairs.items()))


async def test_pages_in_both_orders(plane: Plane) -> None:
    made = [(await create(plane))["sandboxID"] for _ in range(5)]
    for order, expected in (("desc", made[::-1]), ("asc", made)):
        found: list[str] = []
        token = ""
        while True:
            answer = await plane.client.get("/v2/sandboxes", params={"limit": 2, "order": order, "nextToken": token})
            assert answer.headers["x-total-running"] == "5"
            found += [one["sandboxID"] for one in answer.json()]
            token = answer.headers.get("x-next-token", "")
            if not token:
                break
        assert found == expected
    token = (await plane.client.get("/v2/sandboxes", params={"limit": 2})).headers["x-next-token"]
    assert await status(plane, "GET", "/v2/sandboxes", params={"nextToken": token, "order": "asc"}) == 400
    one = (await plane.client.get("/v2/sandboxes", params={"limit": 1})).json()[0]
    assert one.keys() == LISTED
    for limit in (0, 101, "x"):
        assert await status(plane, "GET", "/v2/sandboxes", params={"limit": limit}) == 400


async def test_filters(plane: Plane) -> None:
    odd = (await create(plane, metadata={"k&": "v =1", "x": "é%"}))["sandboxID"]
    plain = await create(plane, templateID="minimal", metadata={"x": "é%"})
    paused = (await create(plane, metadata={"x": "y"}))["sandboxID"]
    assert await status(plane, "POST", f"/sandboxes/{paused}/pause") == 204
    assert await listed(plane) == [paused, plain["sandboxID"], odd]
    assert await listed(plane, metadata=metadata(**{"k&": "v =1"})) == [odd]
    assert await listed(plane, metadata=quote_plus("x=" + quote_plus("é%"))) == [plain["sandboxID"], odd]
    assert await listed(plane, metadata=metadata(x="é%", **{"k&": "v =1"})) == [odd]
    assert await listed(plane, metadata=metadata(x="z")) == []
    wire = await plane.client.get("/v2/sandboxes?metadata=k%252526%3Dv%252520%25253D1")
    assert [one["sandboxID"] for one in wire.json()] == [odd]
    assert await listed(plane, state="paused") == [paused]
    assert await listed(plane, state="running") == [plain["sandboxID"], odd]
    assert await listed(plane, state="running,paused") == [paused, plain["sandboxID"], odd]
    assert await listed(plane, state=["running", "paused"]) == [paused, plain["sandboxID"], odd]
    for name in ("minimal", plain["templateID"]):
        assert await listed(plane, template=name) == [plain["sandboxID"]]
    assert await listed(plane, template="unknown") == []
    began = {one["sandboxID"]: one["startedAt"] for one in (await plane.client.get("/v2/sandboxes")).json()}
    assert await listed(plane, startedAfter=began[plain["sandboxID"]]) == [paused, plain["sandboxID"]]
    assert await listed(plane, startedAfter="2999-01-01T00:00:00Z") == []
    for query in (
        {"state": "dead"},
        {"template": "minimal:default"},
        {"startedAfter": "yesterday"},
        {"order": "up"},
        {"metadata": "novalue"},
        {"nextToken": "x"},
    ):
        assert await status(plane, "GET", "/v2/sandboxes", params=query) == 400, query
    first = (await plane.client.get("/sandboxes", params={"metadata": metadata(x="é%")})).json()
    assert [one["sandboxID"] for one in first] == [plain["sandboxID"], odd]


async def test_others_are_not_listed(plane: Plane) -> None:
    await create(plane)
    assert (await plane.other.get("/v2/sandboxes")).json() == []
    assert (await plane.other.get("/v2/sandboxes")).headers["x-total-running"] == "0"


async def test_figures(plane: Plane) -> None:
    made = (await create(plane))["sandboxID"]
    now = time.time()
    points = [MetricPoint(now - 100 + number, 50.0, 100 << 20, 7 << 20) for number in range(0, 100, 5)]
    async with plane.wired.context.store.write() as records:
        await records.figures.add_points(made, Tier.TEN_MINUTES, points)
    path = f"/sandboxes/{made}/metrics"
    some = (await plane.client.get(path, params={"start": int(now - 60), "end": int(now - 30)})).json()
    assert 5 <= len(some) <= 8
    assert some[0] | {"timestamp": 0, "timestampUnix": 0} == {
        "timestamp": 0, "timestampUnix": 0, "cpuCount": 1, "cpuUsedPct": 50.0, "memUsed": 100 << 20, "memTotal": 512 << 20, "memCache": 0,
        "diskUsed": 7 << 20, "diskTotal": 4096 << 20,
    }  # fmt: skip
    assert (await plane.client.get(path, params={"end": int(now - 1000)})).json() == []
    assert (await plane.client.get(path, params={"start": int(now + 1000)})).json() == []
    for query in ({"start": "x"}, {"start": -1}, {"start": int(now), "end": int(now - 5)}):
        assert await status(plane, "GET", path, params=query) == 400, query
    both = (await plane.client.get("/sandboxes/metrics", params={"sandbox_ids": f"{made},nonexisting"})).json()
    assert set(both["sandboxes"]) <= {made}
    assert await status(plane, "GET", "/sandboxes/metrics") == 400
    assert await status(plane, "GET", "/sandboxes/metrics", params={"sandbox_ids": ",".join(["x"] * 101)}) == 400
    assert await status(plane, "GET", "/sandboxes/nonexisting/metrics") == 404


async def test_a_log_tells_a_sandboxs_life(plane: Plane) -> None:
    made = (await create(plane))["sandboxID"]
    assert await status(plane, "POST", f"/sandboxes/{made}/pause") == 204
    first = (await plane.client.get(f"/sandboxes/{made}/logs")).json()
    assert [one["line"] for one in first["logs"]] == ["sandbox starting", "sandbox created", "sandbox pausing", "sandbox paused"]
    assert [one["message"] for one in first["logEntries"]] == [one["line"] for one in first["logs"]]
    path = f"/v2/sandboxes/{made}/logs"
    back = (await plane.client.get(path, params={"direction": "backward", "limit": 1})).json()["logs"]
    assert [one["message"] for one in back] == ["sandbox paused"]
    assert [one["message"] for one in (await plane.client.get(path, params={"search": "paus"})).json()["logs"]] == ["sandbox pausing", "sandbox paused"]
    assert (await plane.client.get(path, params={"level": "error"})).json()["logs"] == []
    assert (await plane.client.get(path, params={"cursor": int(time.time() * 1000) + 60_000})).json()["logs"] == []
    assert await status(plane, "GET", path, params={"level": "loud"}) == 400


# Snapshots, templates, tags


async def snapshot(plane: Plane, sandbox_id: str, **fields: Any) -> dict[str, Any]:
    answer = await plane.client.post(f"/sandboxes/{sandbox_id}/snapshots", json=fields)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def test_snapshots(plane: Plane) -> None:
    made = (await create(plane))["sandboxID"]
    plain, named = await snapshot(plane, made), await snapshot(plane, made, name="Mine")
    space = named["snapshotID"].split("/")[0]
    assert named == {"snapshotID": f"{space}/mine:default", "names": [f"{space}/mine:default"]}
    assert (plain["names"], plain["snapshotID"].endswith(":default")) == ([], True)
    assert (await plane.client.get(f"/sandboxes/{made}")).json()["state"] == "running"
    assert (await plane.client.get("/snapshots")).json() == [named, plain]
    page = await plane.client.get("/snapshots", params={"limit": 1, "sandboxID": made})
    assert (page.json(), "x-next-token" in page.headers) == ([named], True)
    rest = await plane.client.get("/snapshots", params={"limit": 1, "sandboxID": made, "nextToken": page.headers["x-next-token"]})
    assert (rest.json(), "x-next-token" in rest.headers) == ([plain], False)
    for query, expected in (({"name": "mine"}, [named]), ({"name": named["snapshotID"]}, [named]), ({"name": "other"}, []), ({"sandboxID": "nonexisting"}, [])):
        assert (await plane.client.get("/snapshots", params=query)).json() == expected, query
    assert (await plane.other.get("/snapshots")).json() == []
    again = await snapshot(plane, made, name="mine")
    assert again == named
    assert len((await plane.client.get("/snapshots")).json()) == 2
    started = await create(plane, templateID=named["snapshotID"])
    place = f"/templates/{quote(named['snapshotID'], safe='')}"
    assert await status(plane, "DELETE", place) == 400
    assert await status(plane, "DELETE", f"/sandboxes/{started['sandboxID']}") == 204
    assert (await plane.other.delete(place)).status_code == 404
    assert await status(plane, "DELETE", place) == 204
    assert await status(plane, "DELETE", place) == 404
    for body in ({"name": "a b"}, {"name": ":x"}, {"name": "others/x"}, {"name": 1}, {"memory": False}):
        assert await status(plane, "POST", f"/sandboxes/{made}/snapshots", json=body) == 400, body
    assert await status(plane, "POST", f"/sandboxes/{made}/snapshots", json={"name": "base"}) == 409
    again = [await plane.client.post(f"/sandboxes/{made}/snapshots", json={}, headers={"Idempotency-Key": "k"}) for _ in range(2)]
    assert again[0].json() == again[1].json()


async def test_tags_are_names_within_names(plane: Plane) -> None:
    made = (await create(plane))["sandboxID"]
    one, two = await snapshot(plane, made, name="app"), await snapshot(plane, made, name="app:v2")
    assert two["snapshotID"].endswith("/app:v2")
    assigned = await plane.client.post("/templates/tags", json={"target": "app", "tags": ["v1", "stable"]})
    assert (assigned.status_code, assigned.json()["tags"]) == (201, ["v1", "stable"])
    build = assigned.json()["buildID"]
    assert str(UUID(build)) == build
    tags = {tag["tag"]: tag["buildID"] for tag in (await plane.client.get("/templates/app/tags")).json()}
    assert tags.keys() == {"default", "v1", "stable", "v2"}
    assert tags["default"] == tags["v1"] == tags["stable"] == build != tags["v2"]
    assert (await plane.client.get("/templates/app/tags/count")).json() == {"count": 4}
    assert (await plane.client.get("/templates/app/tags/exists", params={"tag": "v1"})).json() == {"exists": True}
    groups = (await plane.client.get("/templates/app/tags/groups")).json()
    assert {group["tag"] for group in groups["tags"]} == tags.keys()
    assert (await plane.client.get("/templates/app/tags/v2/assignments")).json()["data"][0]["buildId"] == tags["v2"]
    await plane.client.post("/templates/tags", json={"target": "app:v2", "tags": ["stable"]})
    tags = {tag["tag"]: tag["buildID"] for tag in (await plane.client.get("/templates/app/tags")).json()}
    assert tags["stable"] == tags["v2"]
    assert (await create(plane, templateID="app:v2"))["templateID"] != (await create(plane, templateID="app"))["templateID"]
    for body, expected in (({"name": "app", "tags": ["default"]}, 400), ({"name": "app", "tags": ["none"]}, 404), ({"name": "app", "tags": []}, 400)):
        assert await status(plane, "DELETE", "/templates/tags", json=body) == expected, body
    assert await status(plane, "DELETE", "/templates/tags", json={"name": "app", "tags": ["v1"]}) == 204
    assert await status(plane, "GET", "/templates/aliases/app%3Av1") == 404
    assert await status(plane, "GET", "/templates/aliases/app%3Av2") == 200
    assert (await plane.other.get("/templates/app/tags")).status_code == 404
    assert await status(plane, "POST", "/templates/tags", json={"target": "base", "tags": ["x"]}) == 403
    assert await status(plane, "POST", "/templates/tags", json={"target": "app", "tags": ["a b"]}) == 400
    assert one["snapshotID"].endswith("/app:default")


async def test_an_overwritten_snapshot_stays_where_a_tag_points_to_it(plane: Plane) -> None:
    made = (await create(plane))["sandboxID"]
    await snapshot(plane, made, name="app")
    await plane.client.post("/templates/tags", json={"target": "app", "tags": ["v1"]})
    await snapshot(plane, made, name="app")
    tags = {tag["tag"]: tag["buildID"] for tag in (await plane.client.get("/templates/app/tags")).json()}
    assert tags.keys() == {"default", "v1"}
    assert tags["default"] != tags["v1"]
    assert (await create(plane, templateID="app:v1"))["sandboxID"]


async def test_templates(plane: Plane) -> None:
    made = (await create(plane))["sandboxID"]
    await snapshot(plane, made, name="app")
    found = {one["names"][0]: one for one in (await plane.client.get("/templates")).json()}
    assert len(found) == 3
    base = found["base"]
    assert (base["aliases"], base["public"], base["buildStatus"], base["envdVersion"]) == (["base"], True, "ready", "0.6.13")
    page = await plane.client.get("/v2/templates", params={"limit": 2})
    assert (len(page.json()), "x-next-token" in page.headers) == (2, True)
    assert {one["aliases"][0] for one in (await plane.client.get("/default-templates")).json()} == {"base", "minimal"}
    one = (await plane.client.get("/templates/app")).json()
    assert (one["spawnCount"], len(one["builds"]), one["builds"][0]["buildID"]) == (0, 1, one["buildID"])
    assert (await plane.client.get("/templates/aliases/base")).json() == {"templateID": base["templateID"], "public": True}
    assert await status(plane, "GET", "/templates/aliases/nothing") == 404
    assert await status(plane, "DELETE", "/templates/base") == 403
    assert await status(plane, "PATCH", "/templates/base", json={"public": False}) == 403
    assert (await plane.client.patch("/templates/app", json={"public": False})).json() == {}
    assert (await plane.client.patch("/v2/templates/app", json={"public": False})).json()["names"] == [f"{one['names'][0]}:default"]
    assert await status(plane, "PATCH", "/templates/app", json={"public": True}) == 400


# Keys and teams


async def test_keys(plane: Plane) -> None:
    made = (await plane.client.post("/api-keys", json={"name": "ci"})).json()
    assert made["key"].startswith("e2b_")
    assert len(made["key"]) == 44
    assert made["mask"] == {"prefix": "e2b_", "valueLength": 40, "maskedValuePrefix": made["key"][4:10], "maskedValueSuffix": ""}
    opened = {"X-API-Key": made["key"]}
    assert (await plane.anyone.get("/v2/sandboxes", headers=opened)).status_code == 200
    assert (await plane.anyone.get("/v1/sandboxes", headers=opened)).status_code == 200
    assert await status(plane, "PATCH", f"/api-keys/{made['id']}", json={"name": "renamed"}) == 204
    (found,) = [one for one in (await plane.client.get("/api-keys")).json() if one["id"] == made["id"]]
    assert (found["name"], "key" in found) == ("renamed", False)
    assert (await plane.other.patch(f"/api-keys/{made['id']}", json={"name": "x"})).status_code == 404
    assert (await plane.other.delete(f"/api-keys/{made['id']}")).status_code == 404
    assert await status(plane, "DELETE", f"/api-keys/{made['id']}") == 204
    assert (await plane.anyone.get("/v2/sandboxes", headers=opened)).status_code == 401
    for gone in (made["id"], "nonsense"):
        assert await status(plane, "DELETE", f"/api-keys/{gone}") == 404
    native = (await plane.client.post("/v1/api-keys", json={"name": "n", "kind": "e2b"})).json()["key"]
    assert native.startswith("e2b_")
    narrow = await plane.add_key(scopes=("team:write", "sandboxes:read"))
    limited = (await plane.anyone.post("/api-keys", json={"name": "x"}, headers={"X-API-Key": narrow})).json()["key"]
    assert (await plane.anyone.post("/v2/sandboxes", json={"templateID": "base"}, headers={"X-API-Key": limited})).status_code == 403


async def test_teams(plane: Plane) -> None:
    await create(plane)
    (team,) = (await plane.client.get("/teams")).json()
    assert team["isDefault"] is True
    assert await status(plane, "GET", f"/teams/{team['teamID']}/metrics") == 200
    most = await plane.client.get(f"/teams/{team['teamID']}/metrics/max", params={"metric": "concurrent_sandboxes"})
    assert most.json().keys() == {"timestamp", "timestampUnix", "value"}
    assert await status(plane, "GET", f"/teams/{team['teamID']}/metrics/max", params={"metric": "x"}) == 400
    assert (await plane.other.get(f"/teams/{team['teamID']}/metrics")).status_code == 404
    assert await status(plane, "GET", "/v2/sandboxes", headers={"X-Team-ID": team["teamID"]}) == 200
    assert (await plane.other.get("/v2/sandboxes", headers={"X-Team-ID": team["teamID"]})).status_code == 403


@pytest.mark.parametrize("headers", [{"Host": "api.example.org"}, {"X-API-Key": "e2b_" + "0" * 40}])
async def test_health_in_e2bs_words(plane: Plane, headers: dict[str, str]) -> None:
    answer = await plane.anyone.get("/health", headers=headers)
    assert (answer.status_code, answer.text) == (200, "Health check successful")
    assert (await plane.anyone.get("/health")).json()["status"] == "ok"
