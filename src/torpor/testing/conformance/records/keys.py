"""API keys, sessions, single-use tokens."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from torpor.model.errors import Conflict
from torpor.model.records import (
    Chore,
    ChoreKind,
    Session,
    Token,
    Tries,
)
from torpor.model.sandbox import base36
from torpor.testing.conformance.records.samples import ODD, OTHER, TEAM, StoreRig, a_key


async def check_keys(rig: StoreRig) -> None:
    store = await rig.open()
    full = a_key(1, created_by="ann", scopes=("sandboxes:read", ODD), expires_at=5.5, last_used_at=6.5)
    plain = a_key(2, created_by="ann", team_id=OTHER)
    async with store.write() as records:
        for key in (full, plain):
            await records.keys.add(key)
        assert await records.keys.by_digest(full.digest) == full
        assert await records.keys.by_digest("nothing") is None
        assert await records.keys.get(TEAM, full.id) == full
        assert await records.keys.get(OTHER, full.id) is None
        assert await records.keys.list(TEAM) == [full]
        await records.keys.touch({full.id: 6.0, plain.id: 7.0, "unknown": 1.0})
        await records.keys.touch({})
        assert (await records.keys.list(TEAM))[0].last_used_at == 6.5
        assert (await records.keys.list(OTHER))[0].last_used_at == 7.0
        assert await records.keys.revoke(OTHER, full.id, 9.0) is None
        assert await records.keys.revoke(TEAM, full.id, 9.0) == replace(full, revoked_at=9.0)
        assert await records.keys.revoke(TEAM, full.id, 10.0) == replace(full, revoked_at=9.0)
        assert [key.id for key in await records.keys.revoke_of_user("ann", 11.0)] == [plain.id]
        assert await records.keys.revoke_of_user("ann", 12.0) == []
        for number, team_id in ((4, TEAM), (5, OTHER)):
            await records.keys.add(a_key(number, created_by="bob", team_id=team_id))
        assert [key.id for key in await records.keys.revoke_of_user("bob", 13.0, team_id=OTHER)] == [base36(5)]
        assert [key.id for key in await records.keys.revoke_of_user("bob", 14.0)] == [base36(4)]
    with pytest.raises(Conflict):
        async with store.write() as records:
            await records.keys.add(a_key(3, digest=full.digest))


async def check_a_key_that_was_never_used_gets_another_secret(rig: StoreRig) -> None:
    store = await rig.open()
    async with store.write() as records:
        for key in (a_key(1), a_key(2, last_used_at=1.0), a_key(3, revoked_at=1.0)):
            await records.keys.add(key)
        assert [await records.keys.renew(TEAM, base36(number), f"new-{number}", "trp_9") for number in (1, 2, 3, 4)] == [True, False, False, False]
        assert not await records.keys.renew(OTHER, base36(1), "new", "trp_9")
        assert await records.keys.by_digest("digest-1") is None
        assert await records.keys.by_digest("new-1") == a_key(1, digest="new-1", prefix="trp_9")
        assert await records.keys.by_digest("digest-2") == a_key(2, last_used_at=1.0)


async def check_logins_of_a_user(rig: StoreRig) -> None:
    store = await rig.open()
    ann = base36(1)
    sessions = [Session(f"s{number}", ann, TEAM, "", float(number), 10.0, 1, base36(40 + number), "192.0.2.1", ODD) for number in range(4)]
    others = Session("s9", base36(2), TEAM, "csrf", 1.0, 10.0, 1, base36(49))
    async with store.write() as records:
        for session in [*sessions, others]:
            await records.keys.add_session(session)
        assert await records.keys.sessions_of(ann) == sessions[::-1]
        assert await records.keys.session_by_id(ann, base36(41)) == sessions[1]
        assert await records.keys.session_by_id(base36(2), base36(41)) is None
        await records.keys.keep_session("s2", 7)
        await records.keys.end_sessions_of(ann, but="s2")
        assert await records.keys.sessions_of(ann) == [replace(sessions[2], user_version=7)]
        assert await records.keys.session("s9") == others
        await records.keys.end_sessions_of(ann)
        assert await records.keys.sessions_of(ann) == []


async def check_tries_are_counted_and_forgotten(rig: StoreRig) -> None:
    store = await rig.open()
    tries = Tries("login ann", 3, 5.0, 9.0)
    async with store.write() as records:
        assert await records.keys.tries("login ann") is None
        await records.keys.set_tries(tries)
        await records.keys.set_tries(replace(tries, count=4))
        await records.keys.set_tries(Tries(ODD, 1, 20.0))
        assert await records.keys.tries("login ann") == replace(tries, count=4)
        await records.keys.forget_expired(8.0, tries_before=6.0)  # it blocks still
        assert await records.keys.tries("login ann") is not None
        await records.keys.forget_expired(9.0, tries_before=6.0)
        assert await records.keys.tries("login ann") is None
        await records.keys.forget_tries(ODD)
        assert await records.keys.tries(ODD) is None


async def check_chores_stay_until_they_are_done(rig: StoreRig) -> None:
    store, other = await rig.open(), await rig.open()
    first, second = Chore(base36(1), ChoreKind.CLEAR_TEAM, TEAM, 5.0, {"a": ODD}), Chore(base36(2), ChoreKind.REST_TEAM, TEAM, 4.0)
    async with store.write() as records:
        await records.chores.add(first)
        await records.chores.add(replace(first, id=base36(9), data={}))  # the same is wanted already
        await records.chores.add(second)
    async with other.write() as records:
        assert await records.chores.list() == [second, first]
        await records.chores.remove(first.id)
        await records.chores.remove(base36(9))
        assert await records.chores.list() == [second]


async def check_sessions_and_tokens(rig: StoreRig) -> None:
    store = await rig.open()
    sessions = [Session(f"s{number}", base36(number // 2), TEAM, "csrf", 1.0, 10.0 + number, 4) for number in range(4)]
    token = Token("t", "activation", "ann", 10.0, {"a": ODD})
    async with store.write() as records:
        for session in sessions:
            await records.keys.add_session(session)
        assert await records.keys.session("s1") == sessions[1]
        await records.keys.end_session("s1")
        assert await records.keys.session("s1") is None
        await records.keys.end_sessions_of(base36(1))
        assert await records.keys.session("s2") is None
        await records.keys.add_token(token)
        await records.keys.add_token(replace(token, purpose="reset"))
        assert await records.keys.use_token("t", "ticket", 1.0) is None
        assert await records.keys.use_token("t", "activation", 9.9) == token
        assert await records.keys.use_token("t", "activation", 9.9) is None
        assert await records.keys.use_token("t", "reset", 10.0) is None  # over
        for purpose, subject in (("reset", "ann"), ("reset", "bob")):
            await records.keys.add_token(Token(f"of {subject}", purpose, subject, 10.0))
        await records.keys.drop_tokens("reset", "ann")
        assert [await records.keys.use_token(f"of {subject}", "reset", 1.0) is not None for subject in ("ann", "bob")] == [False, True]
        await records.keys.add_token(replace(token, expires_at=20.0))
        await records.keys.forget_expired(10.0)
        assert await records.keys.session("s0") is None
        assert await records.keys.use_token("t", "activation", 19.0) is not None


async def check_a_token_is_used_once(rig: StoreRig) -> None:
    stores = [await rig.open(), await rig.open()]
    async with stores[0].write() as records:
        await records.keys.add_token(Token("t", "ticket", "ann", 10.0))

    async def use(number: int) -> bool:
        async with stores[number % 2].write() as records:
            return await records.keys.use_token("t", "ticket", 1.0) is not None

    assert sum(await asyncio.gather(*(use(number) for number in range(10)))) == 1
