"""Files over HTTP, through the real agent."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_world import World


async def on(world: World, capsule: str, what: str, **body: Any) -> httpx.Response:
    return await world.client.post(f"/v1/capsules/{capsule}/files/{what}", json=body)


async def put(world: World, capsule: str, path: str, data: bytes, what: str = "write") -> httpx.Response:
    return await world.client.post(f"/v1/capsules/{capsule}/files/{what}", data={"path": path}, files={"file": ("upload", data)})


@pytest.mark.parametrize("what", ["write", "stream/write"])
@pytest.mark.parametrize("size", [0, 1, 70_000, 5_000_000])
async def test_what_is_written_is_read(world: World, capsule: str, what: str, size: int) -> None:
    data = os.urandom(size)
    assert (await put(world, capsule, "new/folder/ü file", data, what)).status_code == 204
    assert (world.home / "new/folder/ü file").read_bytes() == data
    for answer in (
        await on(world, capsule, "read", path="~/new/folder/ü file"),
        await on(world, capsule, "stream/read", path=f"{world.home}/new/folder/ü file"),
        await world.client.get(f"/v1/capsules/{capsule}/files/content", params={"path": "new/folder/ü file"}),
    ):
        assert (answer.status_code, answer.content, answer.headers["content-type"]) == (200, data, "application/octet-stream")


@pytest.mark.parametrize(
    ("header", "status", "wanted", "shown"),
    [
        ("bytes=0-3", 206, b"0123", "bytes 0-3/10"),
        ("bytes=4-", 206, b"456789", "bytes 4-9/10"),
        ("bytes=-3", 206, b"789", "bytes 7-9/10"),
        ("bytes=-30", 206, b"0123456789", "bytes 0-9/10"),
        ("bytes=8-30", 206, b"89", "bytes 8-9/10"),
        ("bytes=5-2", 200, b"0123456789", None),
        ("bytes=0-1,3-4", 200, b"0123456789", None),
        ("lines=1-2", 200, b"0123456789", None),
        ("bytes=-", 200, b"0123456789", None),
        ("bytes=10-", 416, b"", "bytes */10"),
        ("bytes=-0", 416, b"", "bytes */10"),
    ],
)
async def test_a_range_is_a_part(world: World, capsule: str, header: str, status: int, wanted: bytes, shown: str | None) -> None:
    (world.home / "digits").write_bytes(b"0123456789")
    answer = await world.client.post(f"/v1/capsules/{capsule}/files/read", json={"path": "digits"}, headers={"Range": header})
    assert (answer.status_code, answer.content, answer.headers.get("content-range")) == (status, wanted, shown)


async def test_what_has_no_size_beforehand_is_read_to_its_end(world: World, capsule: str) -> None:
    answer = await on(world, capsule, "read", path="/proc/self/status")
    assert answer.content.startswith(b"Name:")
    assert "content-length" not in answer.headers


async def test_the_path_may_follow_the_file_or_stand_in_the_query(world: World, capsule: str) -> None:
    boundary = "xyz"

    def part(name: str, value: str, more: str = "") -> str:
        return f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n{value}\r\n'

    async def post(text: str, query: str = "") -> int:
        url = f"/v1/capsules/{capsule}/files/stream/write{query}"
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        return (await world.client.post(url, content=(text + f"--{boundary}--\r\n").encode(), headers=headers)).status_code

    file = part("file", "body", '; filename="f"')
    assert await post(file + part("path", "after")) == 204
    assert await post(file, "?path=query") == 204
    assert await post(part("mode", "0750") + part("user", "root") + part("path", "with") + file) == 204
    assert [(world.home / name).read_text() for name in ("after", "query", "with")] == ["body"] * 3
    assert (world.home / "with").stat().st_mode & 0o7777 == 0o750
    assert await post(file) == 400
    assert await post(part("path", "x")) == 400
    assert await post("") == 400
    assert await post(part("path", "x" * 9000) + file) == 400
    assert await post(part("path", "bad\0name") + file) == 400
    assert await post(part("mode", "9") + part("path", "m") + file) == 400


@pytest.mark.parametrize(
    ("headers", "content"),
    [
        ({"Content-Type": "multipart/form-data"}, b""),
        ({"Content-Type": "multipart/form-data; boundary="}, b"--\r\n"),
        ({"Content-Type": "application/json"}, b"{}"),
        ({"Content-Type": "multipart/form-data; boundary=a"}, b"nonsense"),
        ({"Content-Type": "multipart/form-data; boundary=a"}, b'--a\r\nContent-Disposition: form-data; name="path"\r\n\r\nx\r\n--a\r\nContent-Disp'),
        ({"Content-Type": "multipart/form-data; boundary=a"}, b"--a\r\nX: y\r\n\r\nx\r\n--a--\r\n"),
        ({"Content-Type": "multipart/form-data; boundary=a"}, b'--a\r\nContent-Disposition: form-data; name="path"\r\n\r\n\xff\xfe\r\n--a--\r\n'),
        ({"Content-Type": "multipart/form-data; boundary=a"}, b"--a\r\n" + b"H: " + b"x" * 100_000),
    ],
)
async def test_forms_that_are_none(world: World, capsule: str, headers: dict[str, str], content: bytes) -> None:
    answer = await world.client.post(f"/v1/capsules/{capsule}/files/write", content=content, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")


async def test_an_upload_that_breaks_off_leaves_the_old_file(world: World, capsule: str) -> None:
    (world.home / "kept").write_text("old")
    head = b'--a\r\nContent-Disposition: form-data; name="path"\r\n\r\nkept\r\n--a\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'

    async def body() -> AsyncIterator[bytes]:
        yield head + b"x" * 100_000
        while world.sandboxes.in_use == 0:
            await asyncio.sleep(0.01)
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await world.client.post(f"/v1/capsules/{capsule}/files/stream/write", content=body(), headers={"Content-Type": "multipart/form-data; boundary=a"})
    while world.sandboxes.in_use:
        await asyncio.sleep(0.01)
    assert ((world.home / "kept").read_text(), os.listdir(world.home)) == ("old", ["kept"])


async def test_large_files_leave_the_server_small(world: World, capsule: str) -> None:
    size, piece = 300 << 20, bytes(1 << 20)
    head = b'--a\r\nContent-Disposition: form-data; name="path"\r\n\r\nlarge\r\n--a\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'

    async def body() -> AsyncIterator[bytes]:
        yield head
        for _ in range(size // len(piece)):
            yield piece
        yield b"\r\n--a--\r\n"

    before = peak()
    answer = await world.client.post(
        f"/v1/capsules/{capsule}/files/stream/write", content=body(), headers={"Content-Type": "multipart/form-data; boundary=a"}, timeout=120
    )
    assert answer.status_code == 204
    total = 0
    async with world.client.stream("POST", f"/v1/capsules/{capsule}/files/stream/read", json={"path": "large"}, timeout=120) as stream:
        async for data in stream.aiter_raw():
            total += len(data)
    assert total == size
    assert peak() - before < 40 << 20


def peak() -> int:
    """The most memory this process has had, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) << 10


async def test_a_reader_who_leaves_lets_go_of_the_sandbox(world: World, capsule: str) -> None:
    with (world.home / "sparse").open("wb") as file:
        file.truncate(1 << 30)
    async with world.client.stream("POST", f"/v1/capsules/{capsule}/files/read", json={"path": "sparse"}) as stream:
        await anext(stream.aiter_raw())
        assert world.sandboxes.in_use == 1
    while world.sandboxes.in_use:
        await asyncio.sleep(0.01)


async def test_bodies_beyond_the_bounds_are_refused(world: World, capsule: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(world.url).port)
    writer.write(f"POST /v1/capsules/{capsule}/files/write HTTP/1.1\r\nHost: x\r\nX-API-Key: {world.key}\r\nContent-Length: {200 << 20}\r\n\r\n".encode())
    answered = await reader.readuntil(b"\r\n\r\n")
    assert answered.startswith(b"HTTP/1.1 413 ")
    writer.close()

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b'"' + b" " * 100_000

    answer = await world.client.post(f"/v1/capsules/{capsule}/exec", content=endless(), headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")


async def test_a_directory_is_listed_as_the_dialect_wants(world: World, capsule: str) -> None:
    (world.home / "d/e").mkdir(parents=True)
    (world.home / "d/file").write_text("12345")
    (world.home / "d/file").chmod(0o640)
    (world.home / "d/link").symlink_to("file")
    os.mkfifo(world.home / "d/pipe")
    (world.home / "d/e/deep").touch()
    os.close(os.open(os.fsencode(world.home) + b"/d/\xff", os.O_CREAT))
    entries = (await on(world, capsule, "list", path="d")).json()["entries"]
    shown = [(e["name"], e["type"], e["kind"], e["permissions"]) for e in entries if e["name"] != "\ufffd"]
    assert shown == [
        ("e", "directory", "directory", "drwxr-xr-x"),
        ("file", "file", "file", "-rw-r-----"),
        ("link", "symlink", "symlink", "Lrwxrwxrwx"),
        ("pipe", "file", "other", "-rw-r--r--"),
    ]
    by_name = {e["name"]: e for e in entries}
    assert (by_name["file"]["size"], by_name["file"]["owner"], by_name["file"]["mode"], by_name["link"]["symlink_target"]) == (5, "root", 0o640, "file")
    assert "raw_path" in by_name["\ufffd"]
    deep = (await on(world, capsule, "list", path="d", depth=2)).json()["entries"]
    assert f"{world.home}/d/e/deep" in [e["path"] for e in deep]
    assert (await on(world, capsule, "list", path="d", depth=0)).json()["entries"] == entries


async def test_directories_are_made_moved_and_removed(world: World, capsule: str) -> None:
    made = await on(world, capsule, "mkdir", path="a/b", mode=0o700)
    assert (made.status_code, made.json()["entry"]["type"], made.json()["entry"]["mode"]) == (200, "directory", 0o700)
    again = await on(world, capsule, "mkdir", path="a/b")
    assert (again.status_code, again.json()["error"]["code"]) == (409, "conflict")
    (world.home / "plain").touch()
    assert (await on(world, capsule, "mkdir", path="plain")).status_code == 400
    assert (await on(world, capsule, "move", source="a/b", target="a/c")).json()["entry"]["name"] == "c"
    assert (await on(world, capsule, "stat", path="a/c")).json()["entry"]["kind"] == "directory"
    assert (await on(world, capsule, "remove", path="a")).status_code == 204
    assert sorted(os.listdir(world.home)) == ["plain"]


@pytest.mark.parametrize(
    ("what", "body", "status", "code"),
    [
        ("read", {"path": "/no/such"}, 404, "not_found"),
        ("read", {"path": "/etc"}, 400, "invalid_request"),
        ("read", {"path": "/etc/passwd/x"}, 400, "invalid_request"),
        ("read", {"path": "/" + "a" * 300}, 400, "invalid_request"),
        ("read", {"path": ""}, 400, "invalid_request"),
        ("read", {"path": "a\0b"}, 400, "invalid_request"),
        ("read", {"path": "a" * 5000}, 400, "invalid_request"),
        ("read", {"path": "ü" * 3000}, 400, "invalid_request"),
        ("read", {"path": ["a"]}, 400, "invalid_request"),
        ("list", {"path": "/no/such"}, 404, "not_found"),
        ("list", {"path": "/etc/passwd"}, 400, "invalid_request"),
        ("list", {"path": "/", "depth": -1}, 400, "invalid_request"),
        ("stat", {"path": "/no/such"}, 404, "not_found"),
        ("remove", {"path": "/no/such"}, 404, "not_found"),
        ("move", {"source": "/no/such", "target": "/tmp/x"}, 404, "not_found"),
        ("mkdir", {"path": "/proc/x/y"}, 404, "not_found"),
        ("mkdir", {"path": "x", "user": "nobody-of-that-name"}, 400, "invalid_request"),
    ],
)
async def test_paths_that_lead_nowhere(world: World, capsule: str, what: str, body: dict[str, Any], status: int, code: str) -> None:
    answer = await on(world, capsule, what, **body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


async def test_a_watch_tells_what_happens(world: World, capsule: str) -> None:
    async with world.client.stream("GET", f"/v1/capsules/{capsule}/files/watch", params={"path": "~", "recursive": True}) as stream:
        lines = stream.aiter_lines()

        async def event() -> tuple[str, Any]:
            fields: dict[str, str] = {}
            while "event" not in fields:  # what is nothing but a comment keeps the connection alive
                while line := await anext(lines):
                    name, _, value = line.partition(": ")
                    fields[name] = value
            return fields["event"], json.loads(fields["data"])

        assert (await event())[0] == "ready"
        (world.home / "new").write_text("x")
        assert await event() == ("created", {"kind": "created", "path": "new", "is_directory": False})
        (world.home / "new").rename(world.home / "newer")
        while (found := await event())[0] != "renamed":
            pass
        assert found[1]["new_path"] == "newer"
    while world.sandboxes.in_use:
        await asyncio.sleep(0.01)
    answer = await world.client.get(f"/v1/capsules/{capsule}/files/watch", params={"path": "/no/such"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
