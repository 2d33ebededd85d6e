"""/files and the other plain endpoints of the E2B dialect's data plane."""

from __future__ import annotations

import gzip
import hashlib
import os
import pwd
import time
from base64 import b64encode
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from envd_world import EnvdWorld, enveloped

from torpor.model.errors import GuestOSError
from torpor.model.records import Exposure

OCTETS = {"Content-Type": "application/octet-stream"}


async def test_the_small_endpoints(envd: EnvdWorld) -> None:
    health = await envd.stranger.get("/health")
    assert (health.status_code, health.content) == (204, b"")
    metrics = (await envd.client.get("/metrics")).json()
    assert metrics["cpu_count"] >= 1
    assert metrics["mem_total_mib"] == metrics["mem_total"] >> 20
    assert set(metrics) == {"ts", "cpu_count", "cpu_used_pct", "mem_total", "mem_used", "mem_cache", "mem_total_mib", "mem_used_mib", "disk_used", "disk_total"}
    other = await envd.make(env={"A": "b"})
    token = envd.plane.wired.services.tokens.access(other)
    found = await envd.client.get("/envs", headers={"E2b-Sandbox-Id": other, "X-Access-Token": token})
    assert (found.json()["A"], found.json()["E2B_SANDBOX_ID"]) == ("b", other)
    for path in ("/init", "/freeze", "/unfreeze", "/collapse", "/fsfreeze", "/fsthaw", "/upgrade", "/none", "/process.Process/None"):
        answer = await envd.client.post(path)
        assert (answer.status_code, answer.json()["code"]) == (404, 404)
    assert (await envd.client.post("/metrics")).status_code == 405


async def test_pages_of_any_origin_may_ask(envd: EnvdWorld) -> None:
    answer = await envd.stranger.options("/files", headers={"Origin": "https://a.example", "Access-Control-Request-Method": "POST"})
    assert (answer.status_code, answer.headers["access-control-allow-origin"], answer.headers["access-control-max-age"]) == (204, "*", "7200")
    assert (await envd.stranger.get("/files")).headers["access-control-allow-origin"] == "*"


async def test_an_upload_and_a_download(envd: EnvdWorld) -> None:
    answer = await envd.client.post("/files", params={"path": "in/here.txt"}, files={"file": ("ignored", b"hello")})
    assert answer.json() == [{"name": "here.txt", "type": "file", "path": f"{envd.home}/in/here.txt"}]
    assert (envd.home / "in/here.txt").stat().st_mode & 0o777 == 0o644
    assert (envd.home / "in").stat().st_mode & 0o777 == 0o755
    answer = await envd.client.get("/files", params={"path": "in/here.txt"}, headers={"Accept-Encoding": "identity"})
    assert (answer.content, answer.headers["content-length"], answer.headers["content-type"]) == (b"hello", "5", "text/plain; charset=utf-8")
    assert (answer.headers["content-disposition"], answer.headers["vary"]) == ("inline; filename=here.txt", "Accept-Encoding")
    head = await envd.client.head("/files", params={"path": "in/here.txt"}, headers={"Accept-Encoding": "identity"})
    assert (head.content, head.headers["content-length"]) == (b"", "5")


async def test_many_files_in_one_form_have_their_paths_as_names(envd: EnvdWorld) -> None:
    parts = [("file", (f"{envd.home}/m/{name}", name.encode())) for name in ("one", "two")] + [("file", ("three/ü", b"3"))]
    answer = await envd.client.post("/files", files=parts)
    assert [each["path"] for each in answer.json()] == [f"{envd.home}/m/one", f"{envd.home}/m/two", f"{envd.home}/three/ü"]
    assert (envd.home / "m/two").read_bytes() == b"two"
    for files, params in ((parts, {"path": "x"}), ([("other", ("x", b""))], {})):
        answer = await envd.client.post("/files", params=params, files=files)
        assert (answer.status_code, answer.json()["code"]) == (400, 400)


async def test_an_overwritten_file_is_the_same_file_for_the_new_user(envd: EnvdWorld) -> None:
    path = envd.home / "f"
    path.write_bytes(b"long before")
    path.chmod(0o600)
    before = path.stat().st_ino
    answer = await envd.client.post("/files", params={"path": str(path), "username": "nobody"}, content=b"new", headers=OCTETS)
    assert answer.status_code == 200
    assert (path.read_bytes(), path.stat().st_ino, path.stat().st_mode & 0o777) == (b"new", before, 0o600)
    assert path.stat().st_uid == pwd.getpwnam("nobody").pw_uid


async def test_gzip_both_ways(envd: EnvdWorld) -> None:
    text = b"abc" * 100_000
    for body, headers in (
        (gzip.compress(text), OCTETS | {"Content-Encoding": "gzip"}),
        (gzip.compress(text[:1000]) + gzip.compress(text[1000:]), OCTETS | {"Content-Encoding": "gzip"}),
    ):
        assert (await envd.client.post("/files", params={"path": "z"}, content=body, headers=headers)).status_code == 200
        assert (envd.home / "z").read_bytes() == text
    for body in (b"no gzip", gzip.compress(text)[:-9]):
        answer = await envd.client.post("/files", params={"path": "z2"}, content=body, headers=OCTETS | {"Content-Encoding": "gzip"})
        assert answer.status_code == 400
    async with envd.client.stream("GET", "/files", params={"path": "z"}, headers={"Accept-Encoding": "gzip"}) as answer:
        raw = b"".join([piece async for piece in answer.aiter_raw()])
    assert (answer.headers["content-encoding"], gzip.decompress(raw)) == ("gzip", text)
    assert "content-encoding" not in (await envd.client.get("/files", params={"path": "z"}, headers={"Accept-Encoding": "br"})).headers
    assert (await envd.client.get("/files", params={"path": "z"}, headers={"Accept-Encoding": "identity;q=0"})).status_code == 406
    assert (await envd.client.get("/files", params={"path": "z"}, headers={"Accept-Encoding": "*;q=0, gzip"})).headers["content-encoding"] == "gzip"
    answer = await envd.client.post("/files", params={"path": "z"}, content=b"", headers=OCTETS | {"Content-Encoding": "br"})
    assert answer.status_code == 400


async def test_parts_of_a_file(envd: EnvdWorld) -> None:
    (envd.home / "f").write_bytes(b"0123456789")
    for asked, status, content, said in (
        ("bytes=2-4", 206, b"234", "bytes 2-4/10"),
        ("bytes=-3", 206, b"789", "bytes 7-9/10"),
        ("bytes=8-", 206, b"89", "bytes 8-9/10"),
        ("bytes=10-", 416, b"", "bytes */10"),
        ("pieces=1-2", 200, b"0123456789", None),
    ):
        answer = await envd.client.get("/files", params={"path": "f"}, headers={"Range": asked, "Accept-Encoding": "gzip" if status == 206 else "identity"})
        assert (answer.status_code, answer.content, answer.headers.get("content-range")) == (status, content, said)


async def test_files_of_the_kernel_have_no_size_and_are_read_all_the_same(envd: EnvdWorld) -> None:
    assert b"VmRSS" in (await envd.client.get("/files", params={"path": "/proc/self/status"})).content
    (envd.home / "empty").touch()
    answer = await envd.client.get("/files", params={"path": "empty"})
    assert (answer.status_code, answer.content, answer.headers["content-length"]) == (200, b"", "0")


async def test_metadata_is_replaced_by_every_upload(envd: EnvdWorld, tmp_path: Path) -> None:
    async def upload(**headers: str) -> Any:
        named = {f"X-Metadata-{name}": value for name, value in headers.items()}
        return (await envd.client.post("/files", params={"path": "f"}, content=b"x", headers=OCTETS | named)).json()

    async def shown() -> dict[str, str]:
        found = await envd.asked("filesystem.Filesystem/Stat", {"path": "f"})
        return dict(found["entry"].get("metadata", {}))

    assert (await upload(One="1", two="b c"))[0]["metadata"] == {"one": "1", "two": "b c"}
    assert os.getxattr(envd.home / "f", "user.e2b.two") == b"b c"
    os.setxattr(envd.home / "f", "user.e2b.more", b"3")
    os.setxattr(envd.home / "f", "user.other", b"kept")
    assert await shown() == {"one": "1", "two": "b c", "more": "3"}
    await envd.asked("filesystem.Filesystem/Move", {"source": "f", "destination": "g"})
    await envd.asked("filesystem.Filesystem/Move", {"source": "g", "destination": "f"})
    assert (await shown())["one"] == "1"
    await upload(three="3")
    assert await shown() == {"three": "3"}
    assert "metadata" not in (await upload())[0]
    assert await shown() == {}
    assert os.getxattr(envd.home / "f", "user.other") == b"kept"
    for refused in ({"n" * 247: "x"}, {"n": "x" * 4097}, {"n": "a\tb"}):
        assert (await upload(**refused))["code"] == 400


@pytest.mark.parametrize(
    ("method", "params", "body", "status"),
    [
        ("GET", {"path": "none"}, None, 404),
        ("GET", {"path": "."}, None, 400),
        ("GET", {"path": "/dev/null"}, None, 400),
        ("GET", {"path": "x", "username": "root123"}, None, 401),
        ("GET", {"path": "a\0b"}, None, 400),
        ("POST", {"path": "."}, b"x", 400),
        ("POST", {"path": "/dev/null"}, b"x", 400),
        ("POST", {}, b"x", 400),
        ("POST", {"path": "x", "username": "root123"}, b"x", 401),
    ],
)
async def test_what_is_refused(envd: EnvdWorld, method: str, params: dict[str, str], body: bytes | None, status: int) -> None:
    answer = await envd.client.request(method, "/files", params=params, content=body, headers=OCTETS)
    assert (answer.status_code, answer.json()["code"]) == (status, status), answer.text


async def test_broken_forms(envd: EnvdWorld) -> None:
    form = {"Content-Type": "multipart/form-data; boundary=B"}
    begin = b'--B\r\nContent-Disposition: form-data; name="file"; filename="p"\r\n\r\n'
    for body, headers in (
        (begin + b"no end", form),
        (b"nothing", form),
        (begin + b"x\r\n--B--\r\n", {"Content-Type": "multipart/form-data"}),
        (b'--B\r\nContent-Disposition: form-data; name="file"\r\n\r\nx\r\n--B--\r\n', form),
        (b"x", {"Content-Type": "text/plain"}),
    ):
        answer = await envd.client.post("/files", params={} if b'name="file"\r\n' in body else {"path": "broken"}, content=body, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (400, 400), answer.text


async def test_a_full_disk_has_its_status(envd: EnvdWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """/dev/full stands in: a device that has no room, ever; but it is no regular file, so the guest's refusal is put into its mouth."""
    guest = await envd.plane.host.guest(envd.sandbox)

    async def full(*args: Any, **named: Any) -> None:
        raise GuestOSError(28, "No space left on device", "/x")

    monkeypatch.setattr(type(guest), "rewrite_file", full)
    answer = await envd.client.post("/files", params={"path": "x"}, content=b"x", headers=OCTETS)
    assert (answer.status_code, answer.json()["code"]) == (507, 507)


async def test_files_are_put_together(envd: EnvdWorld) -> None:
    for name, text in (("a", "1"), ("b", "22"), ("c", "333")):
        (envd.home / name).write_text(text)
    answer = await envd.client.post("/files/compose", json={"source_paths": ["a", "b", str(envd.home / "c")], "destination": "b"})
    assert (answer.status_code, answer.json()) == (200, {"name": "b", "type": "file", "path": f"{envd.home}/b"})
    assert (envd.home / "b").read_text() == "122333"
    for wish, status in (
        ({"source_paths": ["none"], "destination": "x"}, 404),
        ({"source_paths": [], "destination": "x"}, 400),
        ({"source_paths": ["a"]}, 400),
        ({"source_paths": ["a"], "destination": "."}, 400),
        ([], 400),
    ):
        assert (await envd.client.post("/files/compose", json=wish)).status_code == status
    assert [each.name for each in envd.home.iterdir() if each.name not in "abc"] == []


# Who may


def sign(path: str, operation: str, user: str, token: str, expiration: int | None = None) -> dict[str, str]:
    raw = f"{path}:{operation}:{user}:{token}" + (f":{expiration}" if expiration is not None else "")
    found = {"path": path, "signature": "v1_" + b64encode(hashlib.sha256(raw.encode()).digest()).decode().rstrip("=")}
    return found | ({"username": user} if user else {}) | ({"signature_expiration": str(expiration)} if expiration is not None else {})


async def test_signed_addresses(envd: EnvdWorld) -> None:
    (envd.home / "f").write_text("x")
    later, before = int(time.time()) + 1000, int(time.time()) - 10
    for params in (sign("f", "read", "", envd.token), sign("f", "read", "root", envd.token, later), sign("~/f", "read", "", envd.token, later)):
        assert (await envd.stranger.get("/files", params=params)).text == "x"
    assert (await envd.stranger.post("/files", params=sign("g", "write", "", envd.token), files={"file": b"y"})).status_code == 200
    expired = await envd.stranger.get("/files", params=sign("f", "read", "", envd.token, before))
    assert (expired.status_code, expired.json()) == (401, {"code": 401, "message": "signature is already expired"})
    other = await envd.make()
    for method, params in (
        ("GET", {"path": "f"}),
        ("GET", sign("f", "write", "", envd.token)),
        ("POST", sign("f", "read", "", envd.token)),
        ("GET", sign("f", "read", "", envd.token) | {"path": "g"}),
        ("GET", sign("f", "read", "", envd.token) | {"username": "root"}),
        ("GET", sign("f", "read", "", envd.token) | {"signature_expiration": str(later)}),
        ("GET", sign("f", "read", "", envd.token, later) | {"signature_expiration": str(later + 1)}),
        ("GET", sign("f", "read", "", envd.plane.wired.services.tokens.access(other))),
        ("GET", {"path": "f", "signature": "v1_\u00ff"}),
    ):
        answer = await envd.stranger.request(method, "/files", params=params)
        assert (answer.status_code, answer.json()["code"]) == (401, 401), params


async def test_the_token_opens_its_own_sandbox_only(envd: EnvdWorld) -> None:
    other = await envd.make()
    theirs = envd.plane.wired.services.tokens.access(other)
    for headers in ({"X-Access-Token": theirs}, {"X-Access-Token": envd.token[:-1]}, {"X-Access-Token": ""}):
        for answer in (
            await envd.stranger.get("/metrics", headers=headers),
            await envd.stranger.get("/files", params=sign("f", "read", "", "")),
            await envd.stranger.post("/files/compose", headers=headers, json={}),
        ):
            assert (answer.status_code, answer.json()["code"]) == (401, 401)
        for content_type in ("application/json", "application/connect+json"):
            answer = await envd.stranger.post("/process.Process/List", content=b"{}", headers=headers | {"Content-Type": content_type})
            assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
    for given in ("0" * 25, "none"):
        answer = await envd.client.get("/metrics", headers={"E2b-Sandbox-Id": given})
        assert (answer.status_code, answer.json()["message"]) == (502, "The sandbox was not found")


async def test_what_is_not_guarded_is_open_but_only_where_this_dialect_made_it(envd: EnvdWorld) -> None:
    open_one = await envd.make(exposure=Exposure())
    native = await envd.make(exposure=Exposure(), dialect="native")
    assert (await envd.stranger.get("/metrics", headers={"E2b-Sandbox-Id": open_one})).status_code == 200
    assert (await envd.stranger.get("/metrics", headers={"E2b-Sandbox-Id": native})).status_code == 401


# Hostile calls


@pytest.mark.parametrize(
    ("content_type", "body", "headers", "error"),
    [
        ("application/connect+json", b"\0\0\0\0\x05{}", {}, "invalid_argument"),
        ("application/connect+json", b"\0\xff\xff\xff\xff", {}, "resource_exhausted"),
        ("application/connect+json", b"", {}, "invalid_argument"),
        ("application/connect+json", enveloped(b"{}") * 2, {}, "invalid_argument"),
        ("application/connect+json", enveloped(b"{}", 2), {}, "invalid_argument"),
        ("application/connect+json", enveloped(b"{}", 1), {}, "invalid_argument"),
        ("application/connect+json", enveloped(b"xx", 1), {"Connect-Content-Encoding": "gzip"}, "invalid_argument"),
        ("application/connect+json", enveloped(gzip.compress(bytes(17 << 20)), 1), {"Connect-Content-Encoding": "gzip"}, "resource_exhausted"),
        ("application/connect+json", enveloped(b"{}"), {"Connect-Content-Encoding": "br"}, "unimplemented"),
        ("application/connect+json", enveloped(b"{" * 5000), {}, "invalid_argument"),
        ("application/connect+json", enveloped(b'{"process":1}'), {}, "invalid_argument"),
        ("application/connect+proto", enveloped(b"\xff\xff\xff"), {}, "invalid_argument"),
        ("application/connect+proto", enveloped(b"\x0a\xff\xff\xff\xff\x0f"), {}, "invalid_argument"),
        ("application/connect+json", enveloped(b"{}"), {"Connect-Protocol-Version": "2"}, "invalid_argument"),
        ("application/connect+json", enveloped(b"{}"), {"Connect-Timeout-Ms": "-1"}, "invalid_argument"),
        ("application/connect+json", enveloped(b'{"process":{"cmd":"ls"}}'), {"Connect-Timeout-Ms": "0"}, "deadline_exceeded"),
        ("application/connect+json", enveloped(b'{"process":{"cmd":"ls"}}'), {"Authorization": "Basic !"}, None),
    ],
)
async def test_broken_streams_are_refused_in_the_streams_own_way(
    envd: EnvdWorld, content_type: str, body: bytes, headers: dict[str, str], error: str | None
) -> None:
    answer = await envd.client.post("/process.Process/Start", content=body, headers={"Content-Type": content_type} | headers)
    if error is None:
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
        return
    assert (answer.status_code, answer.headers["content-type"]) == (200, content_type)
    assert answer.content[0] == 2
    assert f'"code":"{error}"'.encode() in answer.content


async def test_broken_calls(envd: EnvdWorld) -> None:
    async def status(content_type: str, body: bytes, **headers: str) -> int:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return (await envd.client.post("/filesystem.Filesystem/Stat", content=body, headers={"Content-Type": content_type} | named)).status_code

    assert await status("application/json; charset=utf-8", b'{"path":"."}') == 200
    assert await status("application/json", gzip.compress(b'{"path":"."}'), Content_Encoding="gzip") == 200
    assert await status("application/json", b"{") == 400
    assert await status("application/json", b"\xff") == 400
    assert await status("application/json", b" " * (17 << 20)) == 429
    assert await status("application/json", gzip.compress(bytes(17 << 20)), Content_Encoding="gzip") == 429
    assert await status("application/json", b"{}", Content_Encoding="br") == 501
    assert await status("application/connect+json", enveloped(b"{}")) == 415
    assert await status("text/plain", b"{}") == 415
    assert (await envd.client.get("/filesystem.Filesystem/Stat")).status_code == 405
    assert (await envd.client.post("/process.Process/Start", json={})).status_code == 415


# Size


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


async def test_memory_stays_flat_while_large_files_pass(envd: EnvdWorld) -> None:
    size = 1 << 30
    piece = bytes(1 << 20)

    async def body() -> AsyncIterator[bytes]:
        for _ in range(size // len(piece)):
            yield piece

    before = resident()
    answer = await envd.client.post("/files", params={"path": "large"}, content=body(), headers=OCTETS)
    assert answer.status_code == 200
    assert (envd.home / "large").stat().st_size == size
    assert resident() - before < 100 << 20
    got = 0
    async with envd.client.stream("GET", "/files", params={"path": "large"}, headers={"Accept-Encoding": "identity"}) as answer:
        async for data in answer.aiter_raw():
            got += len(data)
    assert got == size
    assert resident() - before < 100 << 20
    (envd.home / "large").unlink()
