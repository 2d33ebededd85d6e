"""Drives a published E2B SDK, which is on the path, on one running sandbox: drive_envd.py SANDBOX HOME SECTION... Says `done` after each.
Where the server is, the SDK's own variables say."""

from __future__ import annotations

import asyncio
import gzip
import io
import os
import sys
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import e2b
import httpx
from e2b import AsyncSandbox, CommandExitException, PtySize, Sandbox, TimeoutException

ID, HOME = sys.argv[1:3]
LATER = tuple(map(int, version("e2b").split(".")[:2])) >= (2, 60)


def raises(kind: type[Exception], call: Callable[[], object]) -> Exception:
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} did not come")


def until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 100
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def commands() -> None:
    sandbox = Sandbox.connect(ID)
    assert sandbox.is_running()
    run = sandbox.commands.run
    result = run("echo out; echo err >&2")
    assert (result.stdout, result.stderr, result.exit_code, result.error) == ("out\n", "err\n", 0, None)
    failed = raises(CommandExitException, lambda: run("echo said; exit 7"))
    assert isinstance(failed, CommandExitException)
    assert (failed.exit_code, failed.stdout) == (7, "said\n")
    assert run("echo $A; pwd; echo $HOME", envs={"A": "ü"}, cwd="/usr").stdout == f"ü\n/usr\n{HOME}\n"
    assert run("id -un", user="nobody").stdout == "nobody\n"
    assert run(r"printf 'a\342'").stdout == "a\ufffd"
    assert len(run("head -c 3000000 /dev/zero | tr '\\0' x").stdout) == 3_000_000
    said: list[str] = []
    run("for n in 1 2 3; do echo $n; done", on_stdout=said.append)
    assert "".join(said) == "1\n2\n3\n"
    raises(e2b.AuthenticationException, lambda: run("true", user="root123"))
    raises(e2b.InvalidArgumentException, lambda: run("true", cwd="/no/such"))
    raises(TimeoutException, lambda: run("sleep 1000", timeout=2))
    until(lambda: not sandbox.commands.list())


def background() -> None:
    sandbox = Sandbox.connect(ID)
    handle = sandbox.commands.run("echo begun; cat", background=True, stdin=True, envs={"K": "v"})
    listed = sandbox.commands.list()
    assert [each.pid for each in listed] == [handle.pid]
    assert (listed[0].cmd, listed[0].args[:2], listed[0].envs["K"]) == ("/bin/bash", ["-l", "-c"], "v")
    sandbox.commands.run(f"kill -0 {handle.pid}")
    sandbox.commands.send_stdin(handle.pid, "typed\n")
    handle.disconnect()
    again = sandbox.commands.connect(handle.pid)
    sandbox.commands.send_stdin(handle.pid, "more\n")
    if hasattr(sandbox.commands, "close_stdin"):
        sandbox.commands.close_stdin(handle.pid)
    else:
        assert sandbox.commands.kill(handle.pid)
    if hasattr(sandbox.commands, "close_stdin"):
        assert again.wait().stdout.endswith("more\n")
    late = sandbox.commands.connect(handle.pid)
    assert late.pid == handle.pid
    other = sandbox.commands.run("sleep 1000", background=True)
    assert other.kill()
    failed = raises(CommandExitException, other.wait)
    assert isinstance(failed, CommandExitException)
    assert (failed.exit_code, failed.error) == (-1, "signal: killed")
    assert not sandbox.commands.kill(other.pid)
    raises(e2b.NotFoundException, lambda: sandbox.commands.connect(999_999))


def pty() -> None:
    sandbox = Sandbox.connect(ID)
    terminal = sandbox.pty.create(PtySize(rows=30, cols=90), timeout=0, envs={"A": "1"})
    heard: list[bytes] = []
    reading = threading.Thread(target=lambda: [heard.append(piece) for _, _, piece in terminal if piece], daemon=True)
    reading.start()
    sandbox.pty.send_stdin(terminal.pid, b"stty size; echo $TERM-$A\n")
    until(lambda: b"30 90" in b"".join(heard) and b"xterm-256color-1" in b"".join(heard))
    sandbox.pty.resize(terminal.pid, PtySize(rows=20, cols=40))
    sandbox.pty.send_stdin(terminal.pid, b"stty size\n")
    until(lambda: b"20 40" in b"".join(heard))
    assert sandbox.pty.kill(terminal.pid)
    reading.join(100)
    assert not sandbox.pty.kill(terminal.pid)


def files() -> None:
    sandbox = Sandbox.connect(ID)
    store = sandbox.files
    made = store.write("a/one.txt", "text ü")
    assert (made.path, made.name, made.type.value) == (f"{HOME}/a/one.txt", "one.txt", "file")
    assert store.read("a/one.txt") == "text ü"
    assert bytes(store.read("a/one.txt", format="bytes")) == "text ü".encode()
    assert b"".join(store.read("a/one.txt", format="stream")) == "text ü".encode()
    many = store.write_files([{"path": f"{HOME}/a/{n}", "data": data} for n, data in (("b", b"\0\xff"), ("c", io.BytesIO(b"c" * 300_000)), ("d", "d"))])
    assert [each.path for each in many] == [f"{HOME}/a/{n}" for n in "bcd"]
    assert bytes(store.read("a/b", format="bytes")) == b"\0\xff"
    assert [each.name for each in store.list("a")] == ["b", "c", "d", "one.txt"]
    assert [each.path for each in store.list("", depth=2)][:2] == [f"{HOME}/a", f"{HOME}/a/b"]
    info = store.get_info("a/c")
    assert (info.size, info.mode, info.permissions, info.type.value) == (300_000, 0o644, "-rw-r--r--", "file")
    assert store.exists("a/c")
    assert not store.exists("a/none")
    assert store.make_dir("made/deep")
    assert not store.make_dir("made/deep")
    assert store.rename("a/c", "made/c").path == f"{HOME}/made/c"
    store.remove("a")
    store.remove("a")
    assert not store.exists("a")
    raises(e2b.NotFoundException, lambda: store.read("a/none"))
    raises(e2b.NotFoundException, lambda: store.list("a"))
    raises(e2b.InvalidArgumentException, lambda: store.read("made"))
    sandbox.commands.run("ln -s made/c link")
    assert store.get_info("link").symlink_target == f"{HOME}/made/c"
    if LATER:
        store.write("m", "x", metadata={"kind": "a b"}, use_octet_stream=True, gzip=True)
        assert store.read("m", gzip=True) == "x"
        assert store.get_info("m").metadata == {"kind": "a b"}


def watching() -> None:
    sandbox = Sandbox.connect(ID)
    sandbox.files.make_dir("watched")
    watch = sandbox.files.watch_dir("watched")
    sandbox.files.write("watched/f", "x")
    events: list[Any] = []

    def three() -> bool:
        events.extend(watch.get_new_events())
        return len(events) >= 3

    until(three)
    time.sleep(0.3)
    events.extend(watch.get_new_events())
    assert [(event.name, event.type.value) for event in events] == [("f", "create"), ("f", "chmod"), ("f", "write")], events
    watch.stop()
    deep = sandbox.files.watch_dir("watched", recursive=True)
    sandbox.files.make_dir("watched/inner")
    sandbox.files.write("watched/inner/g", "x")
    found: list[Any] = []
    until(lambda: found.extend(deep.get_new_events()) or [event for event in found if (event.name, event.type.value) == ("inner/g", "write")])
    deep.stop()
    raises(e2b.NotFoundException, lambda: sandbox.files.watch_dir("none"))


def signed() -> None:
    sandbox = Sandbox.connect(ID)
    upload = sandbox.upload_url("signed.txt", use_signature_expiration=1000)
    assert httpx.post(upload, files={"file": b"by a signature"}).status_code == 200
    assert httpx.get(sandbox.download_url("signed.txt")).text == "by a signature"
    expired = httpx.get(sandbox.download_url("signed.txt", use_signature_expiration=-100))
    assert (expired.status_code, expired.json()) == (401, {"code": 401, "message": "signature is already expired"})
    assert httpx.get(sandbox.download_url("signed.txt").split("&signature")[0]).status_code == 401
    assert gzip.decompress(gzip.compress(b"x")) == b"x"


async def _asynchronous() -> None:
    sandbox = await AsyncSandbox.connect(ID)
    assert await sandbox.is_running()
    results = await asyncio.gather(*(sandbox.commands.run(f"echo {n}") for n in range(10)))
    assert [each.stdout for each in results] == [f"{n}\n" for n in range(10)]
    handle = await sandbox.commands.run("cat", background=True, stdin=True)
    await sandbox.commands.send_stdin(handle.pid, "x")
    assert await handle.kill()
    events: list[Any] = []
    await sandbox.files.make_dir("aw")
    watch = await sandbox.files.watch_dir("aw", on_event=events.append)
    await sandbox.files.write("aw/f", b"x" * 1000)
    async with asyncio.timeout(100):
        while len(events) < 3:
            await asyncio.sleep(0.02)
    assert [event.type.value for event in events] == ["create", "chmod", "write"]
    await watch.stop()
    assert await sandbox.files.read("aw/f") == "x" * 1000
    heard: list[bytes] = []
    terminal = await sandbox.pty.create(PtySize(rows=30, cols=90), on_data=heard.append)
    await sandbox.pty.send_stdin(terminal.pid, b"stty size\n")
    async with asyncio.timeout(100):
        while b"30 90" not in b"".join(heard):
            await asyncio.sleep(0.02)
    assert await sandbox.pty.kill(terminal.pid)


def asynchronous() -> None:
    asyncio.run(_asynchronous())


for section in sys.argv[3:]:
    globals()[section]()
    print("done", section, flush=True)
os._exit(0)
