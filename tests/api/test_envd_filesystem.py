"""filesystem.Filesystem of the E2B dialect on the wire."""

from __future__ import annotations

import asyncio
import os
import pwd
from typing import Any

import pytest
from envd_world import EnvdWorld

from torpor.api.e2b.envd.watches import MOST_WATCHERS

CODECS = pytest.mark.parametrize("codec", ["json", "proto"])
Json = dict[str, Any]


async def entry(envd: EnvdWorld, path: str, **how: str) -> Json:
    return dict((await envd.asked("filesystem.Filesystem/Stat", {"path": path}, **how))["entry"])


async def refused(envd: EnvdWorld, method: str, message: Json, **how: Any) -> str:
    answer = await envd.call(f"filesystem.Filesystem/{method}", message, **how)
    assert answer.status_code >= 400
    assert answer.headers["content-type"] == "application/json"
    return str(answer.json()["code"])


@CODECS
async def test_stat_of_files_directories_and_links(envd: EnvdWorld, codec: str) -> None:
    home = envd.home
    (home / "d").mkdir(mode=0o755)
    (home / "d" / "f").write_bytes(b"12345")
    os.chmod(home / "d" / "f", 0o640)
    os.utime(home / "d" / "f", (1, 1700000000.25))
    (home / "link").symlink_to("d/f")
    (home / "dangling").symlink_to("nowhere")
    found = await entry(envd, "d/f", codec=codec)
    assert found == {
        "name": "f", "type": "FILE_TYPE_FILE", "path": f"{home}/d/f", "size": "5", "mode": 0o640, "permissions": "-rw-r-----", "owner": "root",
        "group": "root", "modifiedTime": "2023-11-14T22:13:20.250Z",
    }  # fmt: skip
    directory = await entry(envd, "~/d/", codec=codec)
    assert (directory["type"], directory["permissions"], directory["mode"], directory["name"]) == ("FILE_TYPE_DIRECTORY", "drwxr-xr-x", 0o755, "d")
    link = await entry(envd, f"{home}/x/../link", codec=codec)
    assert (link["type"], link["mode"], link["permissions"], link["size"], link["symlinkTarget"], link["path"]) == (
        "FILE_TYPE_FILE", 0o640, "Lrwxrwxrwx", "3", f"{home}/d/f", f"{home}/link",
    )  # fmt: skip
    dangling = await entry(envd, "dangling", codec=codec)
    assert ("type" not in dangling or dangling["type"] == "FILE_TYPE_UNSPECIFIED") and dangling.get("mode", 0) == 0
    assert dangling["symlinkTarget"] == f"{home}/nowhere"
    (home / "round").symlink_to("round")
    assert await refused(envd, "Stat", {"path": "round"}, codec=codec) == "failed_precondition"
    assert await refused(envd, "Stat", {"path": "none"}, codec=codec) == "not_found"
    assert await refused(envd, "Stat", {"path": "d/f/g"}, codec=codec) == "invalid_argument"
    assert await refused(envd, "Stat", {"path": "~root"}, codec=codec) == "invalid_argument"
    assert await refused(envd, "Stat", {"path": "a\0b"}, codec=codec) == "invalid_argument"
    assert await refused(envd, "Stat", {"path": "d"}, user="root123") == "unauthenticated"


async def test_odd_names_and_modes_are_shown(envd: EnvdWorld) -> None:
    with open(os.fsencode(envd.home) + b"/\xff", "wb"):
        pass
    os.mkdir(envd.home / "t")
    os.chmod(envd.home / "t", 0o1777)
    os.mkfifo(envd.home / "p", 0o600)
    found = (await envd.asked("filesystem.Filesystem/ListDir", {"path": ""}))["entries"]
    assert [(each["name"], each["permissions"]) for each in found] == [("p", "prw-------"), ("t", "dtrwxrwxrwx"), ("\ufffd", "-rw-r--r--")]


@CODECS
async def test_a_list_is_in_depth_first_order(envd: EnvdWorld, codec: str) -> None:
    for name in ("a", "a-b", "a/z", "c"):
        (envd.home / name).mkdir()
    (envd.home / "a" / "z" / "deep").touch()

    async def names(**fields: Any) -> list[str]:
        found = (await envd.asked("filesystem.Filesystem/ListDir", {"path": "."} | fields, codec=codec)).get("entries", [])
        return [each["path"].removeprefix(f"{envd.home}/") for each in found]

    assert await names() == ["a", "a-b", "c"]
    assert await names(depth=2) == ["a", "a/z", "a-b", "c"]
    assert await names(depth=9) == ["a", "a/z", "a/z/deep", "a-b", "c"]
    assert await names(path="c") == []
    assert await refused(envd, "ListDir", {"path": "none"}) == "not_found"
    assert await refused(envd, "ListDir", {"path": "a/z/deep"}) == "invalid_argument"


@CODECS
async def test_directories_are_made_with_their_parents_for_the_user(envd: EnvdWorld, codec: str) -> None:
    os.chmod(envd.home.parent, 0o755)
    made = (await envd.asked("filesystem.Filesystem/MakeDir", {"path": f"{envd.home}/x/y"}, user="nobody", codec=codec))["entry"]
    assert (made["owner"], made["mode"], made["type"]) == ("nobody", 0o755, "FILE_TYPE_DIRECTORY")
    nobody = pwd.getpwnam("nobody").pw_uid
    assert (envd.home / "x").stat().st_uid == (envd.home / "x" / "y").stat().st_uid == nobody
    assert await refused(envd, "MakeDir", {"path": f"{envd.home}/x"}, codec=codec) == "already_exists"
    (envd.home / "f").touch()
    assert await refused(envd, "MakeDir", {"path": "f"}, codec=codec) == "invalid_argument"
    assert await refused(envd, "MakeDir", {"path": "f/g"}, codec=codec) == "invalid_argument"


@CODECS
async def test_moves_and_removals(envd: EnvdWorld, codec: str) -> None:
    (envd.home / "f").write_text("1")
    (envd.home / "g").write_text("2")
    moved = (await envd.asked("filesystem.Filesystem/Move", {"source": "f", "destination": "new/place/h"}, codec=codec))["entry"]
    assert moved["path"] == f"{envd.home}/new/place/h"
    await envd.asked("filesystem.Filesystem/Move", {"source": "g", "destination": "new/place/h"}, codec=codec)
    assert (envd.home / "new/place/h").read_text() == "2"
    assert await refused(envd, "Move", {"source": "none", "destination": "other/x"}, codec=codec) == "not_found"
    assert not (envd.home / "other").exists()
    for _ in range(2):
        await envd.asked("filesystem.Filesystem/Remove", {"path": "new"}, codec=codec)
    assert not (envd.home / "new").exists()
    assert await refused(envd, "Remove", {"path": "/"}) == "invalid_argument"


async def heard(messages: Any, *wanted: tuple[str, str]) -> list[tuple[str, str]]:
    """Events until the wanted ones have come."""
    found: list[tuple[str, str]] = []
    while not set(wanted) <= set(found):
        event = (await anext(messages))["filesystem"]
        found.append((event["name"], event["type"].removeprefix("EVENT_TYPE_")))
    return found


@CODECS
async def test_a_watch_tells_an_upload_in_three_events(envd: EnvdWorld, codec: str) -> None:
    async with envd.stream("filesystem.Filesystem/WatchDir", {"path": "."}, codec=codec) as messages:
        assert await anext(messages) == {"start": {}}
        answer = await envd.client.post("/files", params={"path": "new"}, files={"file": b"x" * 100_000})
        assert answer.status_code == 200
        (envd.home / "last").touch()
        found = await heard(messages, ("last", "CREATE"))
        assert found[:4] == [("new", "CREATE"), ("new", "CHMOD"), ("new", "WRITE"), ("last", "CREATE")]
        os.rename(envd.home / "new", envd.home / "newer")
        os.rename(envd.home / "newer", envd.home.parent / "outside")
        os.remove(envd.home / "last")
        found = await heard(messages, ("last", "REMOVE"))
        assert [each for each in found if each[1] not in ("CHMOD", "WRITE")] == [
            ("new", "RENAME"), ("newer", "CREATE"), ("newer", "RENAME"), ("last", "REMOVE"),
        ]  # fmt: skip


async def test_a_recursive_watch_sees_new_directories_in_time(envd: EnvdWorld) -> None:
    request = {"path": str(envd.home), "recursive": True, "includeEntry": True}
    async with envd.stream("filesystem.Filesystem/WatchDir", request) as messages:
        await anext(messages)
        for number in range(5):
            await envd.asked("filesystem.Filesystem/MakeDir", {"path": f"n{number}/inner"})
            assert (await envd.client.post("/files", params={"path": f"n{number}/inner/f"}, files={"file": b"x"})).status_code == 200
            await heard(messages, (f"n{number}", "CREATE"), (f"n{number}/inner/f", "WRITE"))
        (envd.home / "n0" / "inner" / "f").write_text("12")
        while (event := (await anext(messages))["filesystem"])["name"] != "n0/inner/f" or event["entry"]["size"] != "2":
            pass
        assert event["entry"]["path"] == f"{envd.home}/n0/inner/f"


@CODECS
async def test_a_watch_that_is_polled(envd: EnvdWorld, codec: str) -> None:
    made = await envd.asked("filesystem.Filesystem/CreateWatcher", {"path": ".", "includeEntry": True}, codec=codec)
    (envd.home / "f").write_text("x")
    events: list[Json] = []
    while len(events) < 2:
        events += (await envd.asked("filesystem.Filesystem/GetWatcherEvents", made, codec=codec)).get("events", [])
        await asyncio.sleep(0.02)
    assert [(event["name"], event["type"]) for event in events] == [("f", "EVENT_TYPE_CREATE"), ("f", "EVENT_TYPE_WRITE")]
    assert events[1]["entry"]["path"] == f"{envd.home}/f"
    other = await envd.make()
    token = envd.plane.wired.services.tokens.access(other)
    theirs = await envd.call("filesystem.Filesystem/GetWatcherEvents", made, codec=codec, E2b_Sandbox_Id=other, X_Access_Token=token)
    assert theirs.json()["code"] == "not_found"
    await envd.asked("filesystem.Filesystem/RemoveWatcher", made, codec=codec)
    assert await refused(envd, "GetWatcherEvents", made, codec=codec) == "not_found"
    assert await refused(envd, "RemoveWatcher", {"watcherId": "x" * 1000}, codec=codec) == "not_found"


async def test_a_polled_watch_goes_on_after_its_session_was_lost(envd: EnvdWorld) -> None:
    made = await envd.asked("filesystem.Filesystem/CreateWatcher", {"path": "."})
    await envd.plane.host.close()  # as a pause ends it
    await envd.asked("filesystem.Filesystem/GetWatcherEvents", made)
    (envd.home / "f").touch()
    while not (await envd.asked("filesystem.Filesystem/GetWatcherEvents", made)).get("events"):
        await asyncio.sleep(0.02)


async def test_what_cannot_be_watched(envd: EnvdWorld) -> None:
    (envd.home / "f").touch()
    for method in ("CreateWatcher", "WatchDir"):
        for path, code in (("none", "not_found"), ("f", "invalid_argument")):
            if method == "WatchDir":
                async with envd.stream("filesystem.Filesystem/WatchDir", {"path": path}) as messages:
                    assert (await anext(messages))["end"]["error"]["code"] == code
            else:
                assert await refused(envd, method, {"path": path}) == code
    watchers = [await envd.asked("filesystem.Filesystem/CreateWatcher", {"path": "."}) for _ in range(3)]
    for each in watchers:
        await envd.asked("filesystem.Filesystem/RemoveWatcher", each)
    assert MOST_WATCHERS > 3
