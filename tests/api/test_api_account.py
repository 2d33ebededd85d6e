"""Sign-up, login, cookies, one's own account, over HTTP."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from people_world import PASSWORD, Person, login, person
from plane_world import Plane, cheap, open_plane

from torpor.apps.control import People
from torpor.model.records import UserStatus
from torpor.service.accounts import SignUp
from torpor.service.first import ADMIN_EMAIL, first_start


@pytest.fixture
async def ann(plane: Plane) -> Person:
    return await person(plane, "ann")


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


async def log_in(plane: Plane, email: str = "ann@example.org", password: str = PASSWORD, **more: Any) -> httpx.Response:
    return await plane.anyone.post("/v1/auth/login", json={"email": email, "password": password} | more)


# Coming in


async def test_who_signs_up_activates_and_has_a_team(plane: Plane) -> None:
    wish = {"email": "Ann@Example.org", "password": PASSWORD, "name": "Ann"}
    signed_up = await plane.anyone.post("/v1/auth/signup", json=wish)
    assert signed_up.status_code == 201
    assert code(await log_in(plane)) == (403, "account_not_activated")
    assert code(await plane.anyone.post("/v1/auth/signup", json=wish)) == (409, "signup_cooldown")
    token = signed_up.json()["activation_token"]
    assert code(await plane.anyone.post("/v1/auth/activate", json={"token": "0" * 32})) == (400, "invalid_token")
    answer = (await plane.anyone.post("/v1/auth/activate", json={"token": token})).json()
    assert answer["email"] == "Ann@Example.org" and answer["name"] == "Ann"
    assert code(await plane.anyone.post("/v1/auth/activate", json={"token": token})) == (400, "invalid_token")
    assert code(await plane.anyone.post("/v1/auth/signup", json=wish)) == (409, "email_taken")
    claims = jwt.decode(answer["token"], options={"verify_signature": False})
    assert (claims["sub"], claims["team_id"], claims["role"], claims["is_admin"]) == (answer["user_id"], answer["team_id"], "owner", False)
    assert claims["exp"] - claims["iat"] == 6 * 3600
    teams = (await plane.anyone.get("/v1/teams", headers={"Authorization": f"Bearer {answer['token']}"})).json()
    assert [(team["name"], team["role"]) for team in teams] == [("Ann's Team", "owner")]
    again = (await log_in(plane, "ANN@example.ORG")).json()
    assert (again["user_id"], again["team_id"]) == (answer["user_id"], answer["team_id"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"email": "nobody"},
        {"email": "a b@c"},
        {"email": "a@b@c"},
        {"email": "a@" + "b" * 260},
        {"email": "a\x00@b.c"},
        {"email": "a@b\u202e.c"},
        {"password": "short"},
        {"password": "x" * 1025},
        {"password": 12345678},
        {"name": ""},
        {"name": " "},
        {"name": "x" * 101},
        {"name": "a\nb"},
    ],
)
async def test_what_is_no_account(plane: Plane, wrong: dict[str, Any]) -> None:
    answer = await plane.anyone.post("/v1/auth/signup", json={"email": "a@b.example", "password": PASSWORD, "name": "A"} | wrong)
    assert code(answer) == (400, "invalid_request")


@pytest.fixture
async def careful(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Plane]:
    people: People = cheap(sign_up=request.param)
    async with open_plane(tmp_path, people) as opened:
        yield opened


@pytest.mark.parametrize("careful", [SignUp.CLOSED], indirect=True)
async def test_a_closed_installation_makes_accounts_by_invitation_only(careful: Plane) -> None:
    wish = {"email": "ann@example.org", "password": PASSWORD, "name": "Ann"}
    assert code(await careful.anyone.post("/v1/auth/signup", json=wish)) == (403, "signup_closed")
    admin = await login(careful)
    how: dict[str, Any] = {"json": {"email": "ann@example.org", "name": "Ann"}, "headers": {"Idempotency-Key": "ann"}}
    made = await admin.client.post("/v1/admin/users", **how)
    assert (made.status_code, made.json()["user"]["status"]) == (201, "inactive")
    again = await admin.client.post("/v1/admin/users", **how)
    assert again.json()["user"] == made.json()["user"]
    assert code(await admin.client.post("/v1/admin/users", json=how["json"])) == (409, "email_taken")
    user = made.json()["user"]["id"]
    assert code(await admin.client.put(f"/v1/admin/users/{user}/active", json={"active": True})) == (400, "invalid_request")
    token = (await admin.client.post(f"/v1/admin/users/{user}/invitation")).json()["token"]
    for old in (made.json()["token"], again.json()["token"]):
        assert code(await careful.anyone.post("/v1/auth/activate", json={"token": old, "password": PASSWORD})) == (400, "invalid_token")
    assert code(await careful.anyone.post("/v1/auth/activate", json={"token": token})) == (400, "invalid_request")
    assert (await careful.anyone.post("/v1/auth/activate", json={"token": token, "password": PASSWORD})).status_code == 200
    assert (await log_in(careful)).status_code == 200
    assert code(await admin.client.post(f"/v1/admin/users/{user}/invitation")) == (400, "already_activated")
    assert code(await admin.client.delete(f"/v1/admin/users/{user}")) == (400, "already_activated")
    other = (await admin.client.post("/v1/admin/users", json={"email": "bob@example.org", "name": "Bob"})).json()
    assert (await admin.client.delete(f"/v1/admin/users/{other['user']['id']}")).status_code == 204
    assert code(await careful.anyone.post("/v1/auth/activate", json={"token": other["token"], "password": PASSWORD})) == (400, "invalid_token")


@pytest.mark.parametrize("careful", [SignUp.APPROVAL], indirect=True)
async def test_where_somebody_approves_nobody_learns_who_has_an_account(careful: Plane) -> None:
    wish = {"email": "ann@example.org", "password": PASSWORD, "name": "Ann"}
    answers = [await careful.anyone.post("/v1/auth/signup", json=wish | more) for more in ({}, {"password": "another one"}, {"email": ADMIN_EMAIL})]
    assert {(answer.status_code, answer.text) for answer in answers} == {(201, answers[0].text)}
    assert "activation_token" not in answers[0].json()
    admin = await login(careful)
    (waiting,) = [one for one in (await admin.client.get("/v1/admin/users")).json()["users"] if one["status"] == "inactive"]
    assert (await admin.client.put(f"/v1/admin/users/{waiting['id']}/active", json={"active": True})).status_code == 204
    assert code(await log_in(careful, password="another one")) == (401, "unauthorized")
    assert (await log_in(careful)).status_code == 200


async def test_a_wrong_password_and_an_unknown_account_are_the_same_and_wait_the_same(plane: Plane, ann: Person) -> None:
    shapes = []
    for email in ("ann@example.org", "nobody@example.org"):
        tries = [await log_in(plane, email, "wrong password") for _ in range(7)]
        body = tries[0].json()["error"]
        shapes.append(([each.status_code for each in tries], body["code"], body["message"]))
        assert 1 <= int(tries[-1].headers["retry-after"]) <= 2
    assert shapes[0] == shapes[1]
    assert shapes[0][0] == [401] * 5 + [429] * 2
    assert (await log_in(plane)).status_code == 429  # nor with the right one, until the pause is over
    assert (await ann.client.get("/v1/me")).status_code == 200


async def test_refused_logins_stand_in_the_platforms_log(plane: Plane, ann: Person) -> None:
    await log_in(plane, password="wrong password")
    await log_in(plane, "nobody@example.org", "wrong password")
    admin = await login(plane)
    items = (await admin.client.get("/v1/admin/audit-logs")).json()["items"]
    denied = [(each["resource_type"], each["resource_id"], each["action"]) for each in items if each["status"] == "denied"]
    assert denied == [("user", "", "login"), ("user", ann.user_id, "login")]
    actions = [(each["action"], each["actor_type"]) for each in reversed(items)]
    assert actions[:5] == [("create", "system"), ("sign_up", "user"), ("activate", "user"), ("create", "user"), ("login", "system")]
    assert PASSWORD not in json.dumps(items)


# Tokens


async def test_tokens_that_were_tampered_with(plane: Plane, ann: Person) -> None:
    head, body, signature = ann.token.split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))

    def part(tree: Any) -> str:
        return base64.urlsafe_b64encode(json.dumps(tree).encode()).rstrip(b"=").decode()

    signing = plane.wired.services.access._signing
    bad = [
        f"{head}.{part(claims | {'is_admin': True})}.{signature}",
        f"{part({'alg': 'none', 'typ': 'JWT'})}.{body}.",
        jwt.encode(claims, "x" * 64, algorithm="HS256"),
        jwt.encode(claims | {"jti": "0" * 64}, signing, algorithm="HS256"),
        jwt.encode(claims | {"typ": "host"}, signing, algorithm="HS256"),
        jwt.encode({name: value for name, value in claims.items() if name != "jti"}, signing, algorithm="HS256"),
        jwt.encode(claims | {"jti": 7}, signing, algorithm="HS256"),
        "..",
        "a.b.c",
    ]
    for token in bad:
        assert code(await plane.anyone.get("/v1/me", headers={"Authorization": f"Bearer {token}"})) == (401, "unauthorized"), token
    lying = jwt.encode(claims | {"is_admin": True, "role": "owner", "team_id": "team-" + "0" * 25}, signing, algorithm="HS256")
    headers = {"Authorization": f"Bearer {lying}"}
    assert (await plane.anyone.get("/v1/me", headers=headers)).json()["team_id"] == ann.team_id  # what is said is not relied on
    assert (await plane.anyone.get("/v1/admin/users", headers=headers)).status_code == 403


# Browsers


async def browser(plane: Plane, **more: Any) -> tuple[httpx.AsyncClient, str]:
    client = plane.stack_client()
    answer = await client.post("/v1/auth/login", json={"email": "ann@example.org", "password": PASSWORD, "cookie": True}, headers={"Origin": plane.url}, **more)
    assert answer.status_code == 200, answer.text
    assert "token" not in answer.json()
    return client, answer.json()["csrf_token"]


async def test_a_browsers_login_is_a_cookie_that_no_script_and_no_other_page_has(plane: Plane, ann: Person) -> None:
    answer = await log_in(plane, cookie=True)
    parts = {part.strip().split("=")[0].lower(): part.strip() for part in answer.headers["set-cookie"].split(";")}
    assert {"httponly", "samesite", "path", "max-age"} <= set(parts)
    assert parts["samesite"].lower() == "samesite=strict"
    assert "secure" not in parts and "domain" not in parts  # plain HTTP here
    foreign = {"Origin": "http://evil.example"}
    wish = {"email": "ann@example.org", "password": PASSWORD, "cookie": True}
    refused = await plane.stack_client().post("/v1/auth/login", json=wish, headers=foreign)
    assert code(refused) == (403, "forbidden") and "set-cookie" not in refused.headers
    client, csrf = await browser(plane)
    assert (await client.get("/v1/me")).json()["email"] == "ann@example.org"
    assert (await client.get("/v1/me", headers=foreign)).status_code == 403
    assert code(await client.post("/v1/teams", json={"name": "x"})) == (403, "forbidden")
    assert code(await client.post("/v1/teams", json={"name": "x"}, headers={"X-CSRF-Token": csrf} | foreign)) == (403, "forbidden")
    assert (await client.post("/v1/teams", json={"name": "x"}, headers={"X-CSRF-Token": csrf, "Origin": plane.url})).status_code == 201
    assert (await client.get("/v1/auth/session")).json()["csrf_token"] == csrf
    assert "csrf_token" not in (await ann.client.get("/v1/auth/session")).json()
    assert (await client.post("/v1/auth/logout", headers={"X-CSRF-Token": csrf})).status_code == 204
    assert client.cookies.get("torpor_session") is None
    cookie = answer.headers["set-cookie"].split(";")[0]
    assert (await plane.stack_client().get("/v1/me", headers={"Cookie": cookie})).status_code == 200  # another login of the same user


async def test_logging_out_voids_the_cookie_itself(plane: Plane, ann: Person) -> None:
    client, csrf = await browser(plane)
    cookie = {"Cookie": f"torpor_session={client.cookies['torpor_session']}"}
    assert (await plane.anyone.get("/v1/me", headers=cookie)).status_code == 200
    await client.post("/v1/auth/logout", headers={"X-CSRF-Token": csrf})
    assert (await plane.stack_client().get("/v1/me", headers=cookie)).status_code == 401


async def test_switching_teams_renews_a_browsers_login(plane: Plane, ann: Person) -> None:
    team = (await ann.client.post("/v1/teams", json={"name": "Second"})).json()["id"]
    client, csrf = await browser(plane)
    before = client.cookies["torpor_session"]
    switched = await client.post("/v1/auth/switch-team", json={"team_id": team}, headers={"X-CSRF-Token": csrf})
    assert (switched.json()["team_id"], "token" in switched.json()) == (team, False)
    assert switched.json()["csrf_token"] != csrf and client.cookies["torpor_session"] != before
    assert (await plane.stack_client().get("/v1/me", headers={"Cookie": f"torpor_session={before}"})).status_code == 401
    assert (await client.get("/v1/me")).json()["team_id"] == team
    stranger = await person(plane, "bob")
    for unknown in (stranger.team_id, "team-" + "1" * 25):
        assert code(await ann.client.post("/v1/auth/switch-team", json={"team_id": unknown})) == (404, "not_found")


@pytest.mark.parametrize("careful", [SignUp.OPEN], indirect=True)
async def test_a_proxys_word_counts_only_where_it_is_trusted(careful: Plane, tmp_path: Path) -> None:
    said = {"X-Forwarded-For": "203.0.113.9, 198.51.100.7", "X-Forwarded-Proto": "https"}
    await person(careful, "ann")

    async def seen(plane: Plane) -> tuple[str, bool]:
        wish = {"email": "ann@example.org", "password": PASSWORD, "cookie": True}
        answer = await plane.anyone.post("/v1/auth/login", json=wish, headers=said)
        (newest, *_) = (await plane.stack_client().get("/v1/me/sessions", headers=said | {"Cookie": answer.headers["set-cookie"].split(";")[0]})).json()
        return newest["address"], "secure" in answer.headers["set-cookie"].lower()

    assert await seen(careful) == ("127.0.0.1", False)
    from ipaddress import ip_network

    (tmp_path / "proxied").mkdir()
    async with open_plane(tmp_path / "proxied", cheap(proxies=(ip_network("127.0.0.0/8"),))) as plane:
        await person(plane, "ann")
        assert await seen(plane) == ("198.51.100.7", True)


# One's own account


async def test_one_sees_and_ends_ones_logins(plane: Plane, ann: Person) -> None:
    await browser(plane)
    found = (await ann.client.get("/v1/me/sessions")).json()
    assert [(each["kind"], each["current"]) for each in found] == [("browser", False), ("token", True)]
    assert found[0]["address"] == "127.0.0.1" and found[0]["agent"].startswith("python-httpx")
    bob = await person(plane, "bob")
    assert code(await bob.client.delete(f"/v1/me/sessions/{found[0]['id']}")) == (404, "not_found")
    assert (await ann.client.delete(f"/v1/me/sessions/{found[0]['id']}")).status_code == 204
    assert len((await ann.client.get("/v1/me/sessions")).json()) == 1
    assert (await ann.client.post("/v1/auth/logout")).status_code == 204
    assert code(await ann.client.get("/v1/me")) == (401, "unauthorized")


async def test_a_new_password_ends_every_other_login(plane: Plane, ann: Person) -> None:
    other = (await log_in(plane)).json()["token"]
    wish = {"current_password": "wrong password", "new_password": "another one"}
    assert code(await ann.client.post("/v1/me/password", json=wish)) == (401, "wrong_password")
    assert code(await ann.client.post("/v1/me/password", json=wish | {"new_password": "short"})) == (400, "invalid_request")
    ticket = (await plane.anyone.post("/v1/auth/ticket", headers={"Authorization": f"Bearer {other}"})).json()["ticket"]
    assert (await ann.client.post("/v1/me/password", json=wish | {"current_password": PASSWORD})).status_code == 204
    assert (await ann.client.get("/v1/me")).status_code == 200
    assert (await plane.anyone.get("/v1/me", headers={"Authorization": f"Bearer {other}"})).status_code == 401
    assert (await plane.anyone.get("/v1/events/stream", params={"ticket": ticket})).status_code == 401
    assert (await log_in(plane)).status_code == 401
    assert (await log_in(plane, password="another one")).status_code == 200
    assert len((await ann.client.get("/v1/me/sessions")).json()) == 2


async def test_a_forgotten_password_is_set_with_an_administrators_token(plane: Plane, ann: Person) -> None:
    admin = await login(plane)
    tokens = [(await admin.client.post(f"/v1/admin/users/{ann.user_id}/password-reset")).json()["token"] for _ in range(2)]
    wish = {"new_password": "another one"}
    assert code(await plane.anyone.post("/v1/me/password/reset/confirm", json=wish | {"token": tokens[0]})) == (400, "invalid_token")
    answers = await asyncio.gather(*(plane.anyone.post("/v1/me/password/reset/confirm", json=wish | {"token": tokens[1]}) for _ in range(3)))
    assert sorted(answer.status_code for answer in answers) == [204, 400, 400]
    assert (await ann.client.get("/v1/me")).status_code == 401
    assert (await log_in(plane, password="another one")).status_code == 200


async def test_a_name_is_changed(plane: Plane, ann: Person) -> None:
    answer = (await ann.client.patch("/v1/me", json={"name": "Anna"})).json()
    assert jwt.decode(answer["token"], options={"verify_signature": False})["name"] == "Anna"
    me = (await ann.client.get("/v1/me")).json()
    assert (me["name"], me["has_password"], me["providers"], me["role"]) == ("Anna", True, [], "owner")
    client, csrf = await browser(plane)
    assert "token" not in (await client.patch("/v1/me", json={"name": "Ann"}, headers={"X-CSRF-Token": csrf})).json()


async def test_an_account_is_deleted_with_the_teams_it_owns_alone(plane: Plane, ann: Person) -> None:
    capsule = await ann.capsule()
    key = (await ann.client.post("/v1/api-keys", json={})).json()["key"]
    bob = await person(plane, "bob")
    await ann.invite(bob)

    async def delete(confirmation: str = "ANN@example.org") -> httpx.Response:
        return await ann.client.request("DELETE", "/v1/me", json={"confirmation": confirmation})

    assert code(await delete()) == (409, "owns_team_with_members")
    assert code(await delete("bob@example.org")) == (400, "invalid_request")
    assert (await ann.client.delete(f"/v1/teams/{ann.team_id}/members/{bob.user_id}")).status_code == 204
    assert (await delete()).status_code == 204
    assert code(await ann.client.get("/v1/me")) == (401, "unauthorized")
    assert (await plane.anyone.get("/v1/capsules", headers={"X-API-Key": key})).status_code == 401
    assert capsule.removeprefix("cl-") not in plane.host.statuses()
    assert code(await log_in(plane)) == (401, "unauthorized")
    await person(plane, "ann")  # the address is free
    admin = await login(plane)
    assert "deleted-user" in [one["name"] for one in (await admin.client.get("/v1/admin/users")).json()["users"]]
    refused = await admin.client.request("DELETE", "/v1/me", json={"confirmation": ADMIN_EMAIL})
    assert code(refused) == (400, "last_admin")


async def test_users_are_found_by_those_who_know_them(plane: Plane, ann: Person) -> None:
    bob, _ = await person(plane, "bob"), await person(plane, "bobby")

    async def found(email: str) -> list[str]:
        return [one["email"] for one in (await ann.client.get("/v1/users/search", params={"email": email})).json()]

    assert await found("bob@") == []
    assert await found("bob@example.org") == ["bob@example.org"]
    await ann.invite(bob)
    assert await found("BOB@") == ["bob@example.org"]
    for bad in ("bo", "bobby"):
        assert (await ann.client.get("/v1/users/search", params={"email": bad})).status_code == 400


# The first start


async def test_the_first_start_makes_an_administrator_once(plane: Plane) -> None:
    admin = await login(plane)
    me = (await admin.client.get("/v1/me")).json()
    assert (me["is_admin"], me["role"]) == (True, "owner")
    assert plane.wired.first is not None
    assert admin.team_id == f"team-{plane.wired.first.team_id}"
    context = plane.wired.context
    assert await first_start(context) is None
    async with context.store.write() as records:
        (user,) = (await records.users.list()).items
        assert user.status is UserStatus.ACTIVE
        await records.users.remove(user.id)
    later = await first_start(context)  # an installation of before there were people
    assert later is not None and (later.key, later.email, bool(later.password)) == ("", ADMIN_EMAIL, True)
    assert (await log_in(plane, ADMIN_EMAIL, later.password)).status_code == 200
