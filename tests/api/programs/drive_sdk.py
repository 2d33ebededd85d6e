"""Drives the dialect's published SDK, which is on the path, through its public methods: drive_sdk.py URL KEY TEMPLATE SECTION... Says `done` after each."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator

import wrenn

URL, KEY, TEMPLATE = sys.argv[1:4]
HOW = {"api_key": KEY, "base_url": URL}
LATER = wrenn.__version__ >= "0.2" if hasattr(wrenn, "__version__") else False


def raises(kind: type[Exception], call: Callable[[], object]) -> Exception:
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} did not come")


def lifecycle() -> None:
    with wrenn.Capsule(template=TEMPLATE, vcpus=1, memory_mb=512, timeout=600, wait=True, **HOW) as capsule:
        info = capsule.get_info()
        assert (info.id, info.status, info.template, info.vcpus, info.memory_mb, info.timeout_sec) == (capsule.capsule_id, "running", TEMPLATE, 1, 512, 600)
        assert capsule.is_running()
        assert capsule.capsule_id in [each.id for each in wrenn.Capsule.list(**HOW)]
        capsule.ping()
        capsule.commands.run("echo kept > kept")
        assert capsule.pause().status == "paused"
        assert not capsule.is_running()
        raises(wrenn.WrennConflictError, capsule.ping)
        assert capsule.resume().status == "running"
        assert wrenn.Capsule.pause(capsule.capsule_id, **HOW).status == "paused"
        again = wrenn.Capsule.connect(capsule.capsule_id, **HOW)
        assert again.is_running()
        assert again.commands.run("cat kept").stdout == "kept\n"
        assert wrenn.Capsule.get_info(capsule.capsule_id, **HOW).status == "running"
        again.wait_ready()
    assert wrenn.Capsule.get_info(capsule.capsule_id, **HOW).status == "stopped"
    wrenn.Capsule.destroy(capsule.capsule_id, **HOW)
    assert capsule.capsule_id not in [each.id for each in wrenn.Capsule.list(**HOW)]
    assert isinstance(raises(wrenn.WrennNotFoundError, lambda: wrenn.Capsule.get_info("cl-" + "0" * 25, **HOW)), wrenn.WrennError)
    raises(wrenn.WrennValidationError, lambda: wrenn.Capsule.get_info("nonsense", **HOW))
    raises(wrenn.WrennAuthenticationError, lambda: wrenn.Capsule.list(api_key="wrn_" + "0" * 32, base_url=URL))
    raises(wrenn.WrennNotFoundError, lambda: wrenn.Capsule(template="no-such-template", **HOW))


def commands() -> None:
    with wrenn.Capsule(template=TEMPLATE, wait=True, **HOW) as capsule:
        result = capsule.commands.run("echo out; echo err >&2; exit 3")
        assert (result.stdout, result.stderr, result.exit_code) == ("out\n", "err\n", 3)
        assert result.duration_ms is not None
        assert capsule.commands.run("echo $A; pwd", envs={"A": "ü"}, cwd="/usr").stdout == "ü\n/usr\n"
        assert capsule.commands.run(r"printf 'a\377b'").stdout == "a\ufffdb"
        raises(wrenn.WrennAgentError, lambda: capsule.commands.run("sleep 30", timeout=1))
        handle = capsule.commands.run("for i in 1 2 3; do echo $i; sleep 0.1; done; exit 4", background=True, tag="counter")
        assert (handle.tag, handle.pid > 0) == ("counter", True)
        events = list(capsule.commands.connect(handle.pid))
        assert "".join(event.data for event in events if event.type == "stdout") == "1\n2\n3\n"
        assert (events[0].type, events[-1].type, events[-1].exit_code) == ("start", "exit", 4)
        endless = capsule.commands.run("sleep 1000", background=True)
        assert [(each.pid, each.tag) for each in capsule.commands.list()] == [(endless.pid, endless.tag)]
        capsule.commands.kill(endless.pid)
        while capsule.commands.list():
            time.sleep(0.02)
        raises(wrenn.WrennNotFoundError, lambda: capsule.commands.kill(endless.pid))
        streamed = list(capsule.commands.stream("echo one; echo two >&2; exit 5"))
        assert [event.type for event in streamed if event.type in ("start", "exit")] == ["start", "exit"]
        assert (streamed[-1].exit_code, "".join(event.data for event in streamed if event.type == "stderr")) == (5, "two\n")
        assert [event.data for event in capsule.commands.stream("echo", args=["plain"]) if event.type == "stdout"] == ["plain\n"]
        missing = list(capsule.commands.stream("/no/such/program", args=["x"]))
        assert [event.type for event in missing] == ["error"]


def files() -> None:
    with wrenn.Capsule(template=TEMPLATE, wait=True, **HOW) as capsule:
        base = capsule.commands.run("pwd").stdout.strip()
        capsule.files.write(f"{base}/a/b/text", "hällo")
        assert capsule.files.read(f"{base}/a/b/text") == "hällo"
        data = os.urandom(300_000)
        capsule.files.write(f"{base}/a/binary", data)
        assert capsule.files.read_bytes(f"{base}/a/binary") == data
        entries = {entry.name: entry for entry in capsule.files.list(f"{base}/a")}
        assert (set(entries), entries["b"].type, entries["binary"].size) == ({"b", "binary"}, "directory", len(data))
        assert f"{base}/a/b/text" in [entry.path for entry in capsule.files.list(f"{base}/a", depth=2)]
        assert capsule.files.exists(f"{base}/a/binary")
        assert not capsule.files.exists(f"{base}/a/none")
        assert not capsule.files.exists(f"{base}/none/none")
        assert [capsule.files.make_dir(f"{base}/made/deep").name for _ in range(2)] == ["deep", "deep"]
        capsule.files.remove(f"{base}/made")
        raises(wrenn.WrennNotFoundError, lambda: capsule.files.remove(f"{base}/made"))
        raises(wrenn.WrennNotFoundError, lambda: capsule.files.read(f"{base}/none"))
        raises(wrenn.WrennNotFoundError, lambda: capsule.files.list(f"{base}/none"))

        def pieces() -> Iterator[bytes]:
            for n in range(40):
                yield bytes([n]) * 50_000

        capsule.files.upload_stream(f"{base}/large", pieces())
        assert b"".join(capsule.files.download_stream(f"{base}/large")) == b"".join(pieces())


def pty() -> None:
    with wrenn.Capsule(template=TEMPLATE, wait=True, **HOW) as capsule:
        with capsule.pty(cmd="/bin/sh", cols=90, rows=20, envs={"PS1": "> ", "A": "from-env"}, cwd="/") as terminal:
            terminal.write(b"stty size; pwd; echo $A\n")
            seen = b""
            for event in terminal:
                if event.type == "output":
                    assert isinstance(event.data, bytes)
                    seen += event.data
                    if b"\nfrom-env\r\n" in seen:
                        break
            assert b"20 90\r\n/\r\n" in seen
            tag = terminal.tag
            assert tag
            assert tag.startswith("pty-")
            terminal.resize(100, 40)
            terminal.write(b"stty size\n")
            with capsule.pty_connect(tag) as beside:
                seen = b""
                for event in beside:
                    if event.type == "output" and b"40 100" in (seen := seen + event.data):
                        break
            terminal.write(b"exit 9\n")
            assert [event.exit_code for event in terminal if event.type == "exit"] == [9]
        with capsule.pty(cmd="echo", args=["quiet"]) as terminal:  # nothing is typed
            events = list(terminal)
        assert b"".join(event.data for event in events if event.type == "output") == b"quiet\r\n"
        assert (events[-1].type, events[-1].exit_code) == ("exit", 0)


def git() -> None:
    with wrenn.Capsule(template=TEMPLATE, wait=True, **HOW) as capsule:
        base = capsule.commands.run("pwd").stdout.strip() + "/repository"
        capsule.git.init(base)
        capsule.git.configure_user("Ann", "ann@example.com", scope="local", cwd=base)
        capsule.files.write(f"{base}/file", "text")
        status = capsule.git.status(cwd=base)
        assert [entry.path for entry in status.files] == ["file"]
        capsule.git.add(all=True, cwd=base)
        capsule.git.commit("first", cwd=base)
        assert capsule.git.status(cwd=base).files == []
        capsule.git.create_branch("topic", cwd=base)
        assert "topic" in [branch.name for branch in capsule.git.branches(cwd=base)]
        raises(wrenn.GitCommandError, lambda: capsule.git.checkout_branch("none", cwd=base))


def snapshots() -> None:
    name = f"sdk-{os.urandom(4).hex()}"
    with wrenn.WrennClient(**HOW) as client, wrenn.Capsule(template=TEMPLATE, wait=True, **HOW) as capsule:
        capsule.commands.run("echo one > state")
        made = capsule.create_snapshot(name)
        assert (made.name, made.type) == (name, "snapshot")
        assert raises(wrenn.WrennError, lambda: capsule.create_snapshot(name)).code == "template_name_taken"
        capsule.wait_ready()
        capsule.commands.run("echo two > state")
        assert capsule.create_snapshot(name, overwrite=True).name == name
        assert name in [each.name for each in client.snapshots.list(type="snapshot")]
        assert name not in [each.name for each in client.snapshots.list(type="base")]
        with wrenn.Capsule(template=name, wait=True, **HOW) as copy:
            assert copy.commands.run("cat state").stdout == "two\n"
        generated = capsule.create_snapshot()
        assert generated.name
        assert generated.name.startswith("template-")
        for each in (name, generated.name):
            client.snapshots.delete(each)
        raises(wrenn.WrennNotFoundError, lambda: client.snapshots.delete(name))


def events() -> None:
    with wrenn.WrennClient(**HOW) as client:
        seen: list[str] = []
        first = threading.Event()

        def follow() -> None:
            for event in client.events.stream():
                seen.append(f"{event.event.value}")
                first.set()
                if event.event == "capsule.destroy":
                    return

        thread = threading.Thread(target=follow)
        thread.start()
        assert first.wait(100)
        assert seen == ["connected"]
        with wrenn.Capsule(template=TEMPLATE, wait=True, **HOW) as capsule:
            capsule.pause()
            capsule.resume()
        thread.join(100)
        assert not thread.is_alive()
        for name in ("capsule.create", "capsule.pause", "capsule.resume", "capsule.destroy"):
            assert name in seen, seen
        assert client.capsules.stats(range="5m").current is not None
        assert client.capsules.usage().points is not None


async def drive_async() -> None:
    capsule = await wrenn.AsyncCapsule.create(template=TEMPLATE, wait=True, **HOW)
    async with capsule:
        assert (await capsule.commands.run("echo async")).stdout == "async\n"
        assert [event.data async for event in capsule.commands.stream("echo streamed") if event.type == "stdout"] == ["streamed\n"]
        await capsule.files.write("/tmp/sdk-async", b"x" * 1000)
        assert await capsule.files.read_bytes("/tmp/sdk-async") == b"x" * 1000

        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(5):
                yield b"y" * 100_000

        await capsule.files.upload_stream("/tmp/sdk-async", pieces())
        assert sum([len(data) async for data in capsule.files.download_stream("/tmp/sdk-async")]) == 500_000
        await capsule.files.remove("/tmp/sdk-async")
        async with capsule.pty(cmd="/bin/sh", envs={"PS1": "> "}) as terminal:
            await terminal.write(b"echo ty''ped; exit 6\n")
            events = [event async for event in terminal]
        assert b"typed" in b"".join(event.data for event in events if event.type == "output")
        assert events[-1].exit_code == 6
        assert (await capsule.pause()).status == "paused"
        assert (await capsule.resume()).status == "running"


def asynchronous() -> None:
    asyncio.run(drive_async())


for section in sys.argv[4:]:
    globals()[section]()
    print("done", section, flush=True)
