"""Accounts and logins with a moved clock: what is over, what is counted, what happens at once."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace

import pytest
from service_people import HERE, PASSWORD, People, people_on
from service_world import World

from torpor.model.errors import AccountReason, AccountRefused, InvalidInput, RateLimited, TorporError, Unauthorized
from torpor.model.records import PLATFORM_TEAM, AuditStatus, Role, UserStatus
from torpor.service import passwords as passwords_room
from torpor.service.accounts import SignUp
from torpor.service.passwords import Passwords
from torpor.service.sessions import COOKIE_SECONDS, MOST_LOGINS, TOKEN_SECONDS, Client
from torpor.service.tries import LOGIN, Guard, Rule, of_account, of_address
from torpor.service.tries import PASSWORD as OF_ACCOUNT


@pytest.fixture
async def people(world: World) -> People:
    return await people_on(world, await world.start())


async def refused(people: People, email: str, password: str, client: Client = HERE) -> TorporError:
    with pytest.raises(TorporError) as found:
        await people.accounts.log_in(client, email, password)
    return found.value


# Tries


async def test_pauses_double_and_end_with_a_rest(world: World) -> None:
    plane = await world.start()
    guard, rule = Guard(plane.context), Rule("x", 3, 10.0, 60.0, rest=600.0)

    async def wait() -> int:
        try:
            await guard.take((rule, "me"))
        except RateLimited as error:
            return error.retry_after
        return 0

    assert [await wait() for _ in range(3)] == [0, 0, 0]
    for pause in (10, 20, 40, 60, 60):
        assert await wait() == pause
        world.clock.move(pause - 1)
        assert await wait() == 1  # a refused try makes it no longer
        world.clock.move(1)
        assert await wait() == 0
    await guard.take((rule, "somebody else"))
    world.clock.move(601)
    assert [await wait() for _ in range(3)] == [0, 0, 0]
    assert await wait() == 10


async def test_many_tries_at_once_are_no_way_around(people: People) -> None:
    await people.person("ann")
    tries = [people.accounts.log_in(Client(f"203.0.113.{number}"), "ann@example.org", f"wrong {number}") for number in range(30)]
    ended = await asyncio.gather(*tries, return_exceptions=True)
    assert sum(isinstance(one, Unauthorized) for one in ended) == OF_ACCOUNT.free
    assert sum(isinstance(one, RateLimited) for one in ended) == 30 - OF_ACCOUNT.free


async def test_what_counts_as_one_address_and_one_account() -> None:
    def same(*addresses: str) -> bool:
        return len({of_address(LOGIN, address) for address in addresses}) == 1

    assert same("2001:db8::1", "2001:db8:0:0:ffff::")
    assert not same("2001:db8::1", "2001:db8:0:1::1")
    assert same("192.0.2.1", "::ffff:192.0.2.1")
    assert same("", "")
    assert of_account(LOGIN, "ANN@x") == of_account(LOGIN, "ann@X")


async def test_a_login_that_went_well_begins_the_count_anew(people: People) -> None:
    await people.person("ann")
    for _ in range(2):
        for _ in range(OF_ACCOUNT.free - 1):
            assert isinstance(await refused(people, "ann@example.org", "wrong"), Unauthorized)
        await people.accounts.log_in(HERE, "ann@example.org", PASSWORD)


async def test_one_address_is_slowed_down_over_all_accounts(people: People) -> None:
    kinds = [type(await refused(people, f"nobody{number}@example.org", "wrong")) for number in range(LOGIN.free + 2)]
    assert kinds == [Unauthorized] * LOGIN.free + [RateLimited] * 2
    assert isinstance(await refused(people, "nobody@example.org", "wrong", Client("192.0.2.2")), Unauthorized)


# Accounts


async def test_an_activation_is_good_for_half_an_hour_and_keeps_the_address_so_long(people: People, world: World) -> None:
    token = await people.accounts.sign_up(HERE, "ann@example.org", PASSWORD, "Ann")
    world.clock.move(1799)
    with pytest.raises(AccountRefused) as found:
        await people.accounts.sign_up(HERE, "ann@example.org", PASSWORD, "Another Ann")
    assert found.value.reason is AccountReason.SIGNUP_COOLDOWN
    world.clock.move(1)
    with pytest.raises(AccountRefused) as found:
        await people.accounts.activate(HERE, token)
    assert found.value.reason is AccountReason.INVALID_TOKEN
    later = await people.accounts.sign_up(HERE, "ANN@example.org", PASSWORD, "Another Ann")
    login = await people.accounts.activate(HERE, later)
    assert login.user.name == "Another Ann"
    with pytest.raises(AccountRefused):
        await people.accounts.activate(HERE, later)


async def test_an_invitation_is_not_taken_over_by_who_signs_up(people: People, world: World) -> None:
    _, token = await people.admin.create_user(await people.root(), "ann@example.org", "Ann")
    world.clock.move(86400)
    with pytest.raises(AccountRefused) as found:
        await people.accounts.sign_up(HERE, "ann@example.org", PASSWORD, "Not Ann")
    assert found.value.reason is AccountReason.EMAIL_TAKEN
    with pytest.raises(InvalidInput):
        await people.accounts.activate(HERE, token)
    assert (await people.accounts.activate(HERE, token, PASSWORD)).user.name == "Ann"


async def test_the_same_address_signs_up_once_at_a_time(people: People) -> None:
    wishes = [people.accounts.sign_up(Client(f"203.0.113.{number}"), "Ann@example.org", PASSWORD, "Ann") for number in range(4)]
    ended = await asyncio.gather(*wishes, return_exceptions=True)
    assert sorted(type(one).__name__ for one in ended) == ["AccountRefused"] * 3 + ["str"]


@pytest.mark.parametrize("name", ["Ann", "Ännchen", "a" * 100])
async def test_a_first_team_has_a_name_that_teams_may_have(people: People, name: str) -> None:
    token = await people.accounts.sign_up(HERE, "ann@example.org", PASSWORD, name)
    caller = await people.caller(await people.accounts.activate(HERE, token))
    ((team, member),) = await people.teams.list(caller)
    assert team.name == (f"{name}'s Team" if name.isascii() else "My Team")
    assert (member.role, member.is_default) == (Role.OWNER, True)


# Logins


@pytest.mark.parametrize(("wants_cookie", "seconds"), [(True, COOKIE_SECONDS), (False, TOKEN_SECONDS)])
async def test_a_login_is_over_at_its_time(people: People, world: World, wants_cookie: bool, seconds: float) -> None:
    await people.person("ann")
    login = await people.accounts.log_in(Client("192.0.2.1", wants_cookie=wants_cookie), "ann@example.org", PASSWORD)
    assert bool(login.cookie) == wants_cookie == (not login.token) == bool(login.session.csrf)
    world.clock.move(seconds - 1)
    caller = await people.caller(login)
    world.clock.move(1)
    with pytest.raises(Unauthorized):
        await people.caller(login)
    assert login.session.id not in [one.id for one in await people.sessions.list(caller)]


async def test_one_has_so_many_logins_and_the_oldest_goes(people: People, world: World) -> None:
    first = await people.person("ann")
    caller = await people.caller(first)
    logins = []
    for _ in range(MOST_LOGINS):
        world.clock.move(1)
        logins.append(await people.accounts.again(caller, HERE))
    assert len(await people.sessions.list(caller)) == MOST_LOGINS
    with pytest.raises(Unauthorized):
        await people.caller(first)
    await people.caller(logins[0])


async def test_what_is_kept_of_a_login_is_no_credential(people: People) -> None:
    login = await people.person("ann")
    async with people.world.store.look() as records:
        (session,) = await records.keys.sessions_of(login.user.id)
    for guess in (session.digest, session.id, session.csrf, people.access.sign(session.digest, session, login.user, Role.OWNER)):
        with pytest.raises(Unauthorized):
            await people.access.by_session(guess)


async def test_a_client_that_calls_itself_strange_things(people: People) -> None:
    await people.person("ann")
    login = await people.accounts.log_in(Client("192.0.2.1", "a\x00b\ud800" + "c" * 500), "ann@example.org", PASSWORD)
    assert login.session.agent == "a?b?" + "c" * 196


async def test_a_change_between_the_password_and_the_login_counts(people: People, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is deactivated, or has a new password, while an old one is being compared does not get in."""
    login = await people.person("ann")
    root = await people.root()
    right = Passwords.matches

    async def matches(self: Passwords, stored: str, password: str) -> bool:
        found = await right(self, stored, password)
        await people.admin.set_active(root, login.user.id, active=False)
        return found

    monkeypatch.setattr(Passwords, "matches", matches)
    assert isinstance(await refused(people, "ann@example.org", PASSWORD), Unauthorized)


async def test_passwords_of_an_old_cost_are_hashed_anew(people: People) -> None:
    login = await people.person("ann")
    old = await Passwords(time_cost=2, memory_kib=64).hash(PASSWORD)
    async with people.world.store.write() as records:
        user = await records.users.get(login.user.id)
        assert user is not None
        await records.users.update(replace(user, password=old))
    await people.accounts.log_in(HERE, "ann@example.org", PASSWORD)
    async with people.world.store.look() as records:
        found = await records.users.get(login.user.id)
    assert found is not None and "t=1" in found.password and found.version == user.version
    await people.caller(login)


async def test_few_passwords_are_worked_at_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    passwords, begun, finish = Passwords(time_cost=1, memory_kib=64), threading.Semaphore(0), threading.Event()
    monkeypatch.setattr(passwords_room, "_MOST_WAITING", 5)

    def slow(_password: str) -> str:
        begun.release()
        finish.wait(60)
        return "hash"

    monkeypatch.setattr(passwords._hasher.__class__, "hash", lambda _self, password: slow(password))
    asked = [asyncio.create_task(passwords.hash(PASSWORD)) for _ in range(6)]
    for _ in range(2):
        assert await asyncio.to_thread(begun.acquire, timeout=60)
    assert not begun.acquire(blocking=False)
    finish.set()
    ended = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(one) for one in ended] == [str] * 5 + [RateLimited]


async def test_no_password_matches_what_is_none(people: People) -> None:
    passwords = Passwords(time_cost=1, memory_kib=64)
    for stored in ("", "nonsense", "$argon2id$v=19$m=64,t=1,p=1$AAAA$AAAA"):
        assert not await passwords.matches(stored, "")
        assert not await passwords.matches(stored, "x" * 100_000)
    assert await passwords.matches(await passwords.hash("pässwörd ☃"), "pässwörd ☃")
    for bad in ("short", "x" * 1025, "lone \ud800 half"):
        with pytest.raises(InvalidInput):
            await passwords.hash(bad)


# Audit


async def test_a_flood_of_refusals_is_one_entry_a_minute(people: People, world: World) -> None:
    await people.person("ann")
    for _ in range(4):
        await refused(people, "ann@example.org", "wrong")
    world.clock.move(61)
    await refused(people, "ann@example.org", "wrong")
    async with world.store.look() as records:
        entries = (await records.audit.list(PLATFORM_TEAM, scopes=["admin"], actions=["login"])).items
    assert [entry.status for entry in entries] == [AuditStatus.DENIED] * 2


async def test_with_approval_an_account_waits_for_it(world: World) -> None:
    people = await people_on(world, await world.start(), SignUp.APPROVAL)
    assert await people.accounts.sign_up(HERE, "ann@example.org", PASSWORD, "Ann") == ""
    world.clock.move(86400)  # it is not forgotten for somebody else's sake
    assert await people.accounts.sign_up(HERE, "ann@example.org", "another one", "Eve") == ""
    async with world.store.look() as records:
        user = await records.users.by_email("ann@example.org")
    assert user is not None and (user.name, user.status) == ("Ann", UserStatus.INACTIVE)
