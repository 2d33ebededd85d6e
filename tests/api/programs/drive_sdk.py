"""Drives the dialect's published SDK, which is on the path, through its public methods: drive_sdk.py URL KEY TEMPLATE SECTION... Says `done` after each. The
section `completeness` says whether those before it used every public method there is."""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import date
from typing import Any

import wrenn
import wrenn.client
import wrenn.commands
import wrenn.files
import wrenn.pty

URL, KEY, TEMPLATE = sys.argv[1:4]
HOW = {"api_key": KEY, "base_url": URL}
LATER = wrenn.__version__ >= "0.2" if hasattr(wrenn, "__version__") else False


# What was used


used: set[str] = set()
there: set[str] = set()


def watch(owner: type, name: str, member: object) -> None:
    """Notes whenever it is called."""
    function = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
    if not inspect.isfunction(function) or (name.startswith("_") and not name.startswith(("_instance_", "_static_"))):
        return
    label = f"{owner.__name__}.{name}"
    there.add(label)

    @functools.wraps(function)
    def noted(*args: Any, **named: Any) -> Any:
        used.add(label)
        return function(*args, **named)

    setattr(owner, name, type(member)(noted) if isinstance(member, (classmethod, staticmethod)) else noted)


def watched() -> list[type]:
    modules = (wrenn.client, wrenn.commands, wrenn.files, wrenn.pty)
    names = ("Resource", "Commands", "Files", "PtySession", "WrennClient")
    found = [kind for module in modules for kind in vars(module).values() if inspect.isclass(kind) and kind.__name__.endswith(names)]
    capsules = [wrenn.Capsule, wrenn.AsyncCapsule]
    gits = [type(capsule_git) for capsule_git in (wrenn._git.Git("", None), wrenn._git.AsyncGit("", None))]
    return list(dict.fromkeys([*found, *capsules, *gits]))


for kind in watched():
    for name, member in list(vars(kind).items()):
        watch(kind, name, member)


def completeness() -> None:
    assert there - used == set(), sorted(there - used)


async def _(value: Any) -> Any:
    """Of either half of the SDK."""
    return await value if inspect.isawaitable(value) else value


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
        assert wrenn.Capsule.pause(capsule.capsule_id, **HOW).status == "paused"
        assert wrenn.Capsule.resume(capsule.capsule_id, **HOW).status == "running"
        raises(wrenn.WrennConflictError, capsule.resume)
        assert capsule.info is not None
        assert capsule.get_url(8080).split("://")[1].startswith(f"8080-{capsule.capsule_id}.")
    assert wrenn.Capsule.get_info(capsule.capsule_id, **HOW).status == "stopped"
    wrenn.Capsule.destroy(capsule.capsule_id, **HOW)
    assert capsule.capsule_id not in [each.id for each in wrenn.Capsule.list(**HOW)]
    assert isinstance(raises(wrenn.WrennNotFoundError, lambda: wrenn.Capsule.get_info("cl-" + "0" * 25, **HOW)), wrenn.WrennError)
    raises(wrenn.WrennValidationError, lambda: wrenn.Capsule.get_info("nonsense", **HOW))
    raises(wrenn.WrennAuthenticationError, lambda: wrenn.Capsule.list(api_key="wrn_" + "0" * 32, base_url=URL))
    raises(wrenn.WrennNotFoundError, lambda: wrenn.Capsule(template="no-such-template", **HOW))
    made = wrenn.Capsule.create(template=TEMPLATE, **HOW)
    made.wait_ready()
    made.destroy()


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
        with capsule.pty(cmd="sleep", args=["1000"]) as terminal:
            terminal.kill()
            assert [event.exit_code for event in terminal if event.type == "exit"] == [137]
        with capsule.pty(cmd="echo", args=["quiet"]) as terminal:  # nothing is typed
            events = list(terminal)
        assert b"".join(event.data for event in events if event.type == "output") == b"quiet\r\n"
        assert (events[-1].type, events[-1].exit_code) == ("exit", 0)


def git() -> None:
    with wrenn.Capsule(template=TEMPLATE, wait=True, **HOW) as capsule:
        asyncio.run(repositories(capsule))


async def repositories(capsule: Any) -> None:
    """A repository, one it is cloned from, and what people do with both. The home of git's own settings is a folder of the test."""
    git, run = capsule.git, capsule.commands.run
    home = (await _(run("mktemp -d"))).stdout.strip()
    how = {"envs": {"HOME": home}}
    origin, ours, theirs = f"{home}/origin.git", f"{home}/ours", f"{home}/theirs"
    await _(git.init(origin, bare=True, initial_branch="main", **how))
    await _(git.configure_user("Ann", "ann@example.com", scope="global", **how))
    await _(git.set_config("init.defaultBranch", "main", scope="global", **how))
    assert await _(git.get_config("user.name", scope="global", **how)) == "Ann"
    assert await _(git.get_config("no.such", scope="global", **how)) is None
    await _(git.init(ours, initial_branch="main", **how))
    at = {"cwd": ours, **how}
    await _(git.remote_add("origin", origin, **at))
    assert await _(git.remote_get("origin", **at)) == origin
    assert await _(git.remote_get("none", **at)) is None
    await _(capsule.files.write(f"{ours}/file", "text"))
    status = await _(git.status(**at))
    assert ([entry.path for entry in status.files], status.has_untracked) == (["file"], True)
    await _(git.add(["file"], **at))
    assert (await _(git.status(**at))).has_staged
    await _(git.commit("first", **at))
    assert (await _(git.status(**at))).is_clean
    await _(git.push("origin", "main", set_upstream=True, **at))
    cloned = await _(git.clone(origin, theirs, branch="main", depth=1, **how))
    assert cloned.exit_code == 0
    await _(capsule.files.write(f"{theirs}/file", "other text"))
    await _(git.add(all=True, cwd=theirs, **how))
    await _(git.commit("second", author_name="Bob", author_email="bob@example.com", cwd=theirs, **how))
    await _(git.push(cwd=theirs, **how))
    await _(git.pull(ff_only=True, **at))
    assert await _(capsule.files.read(f"{ours}/file")) == "other text"
    await _(git.create_branch("topic", **at))
    assert {branch.name for branch in await _(git.branches(**at))} == {"main", "topic"}
    await _(git.checkout_branch("main", **at))
    assert (await _(git.status(**at))).branch == "main"
    await _(git.delete_branch("topic", **at))
    await _(capsule.files.write(f"{ours}/file", "spoilt"))
    await _(git.restore(["file"], worktree=True, **at))
    assert await _(capsule.files.read(f"{ours}/file")) == "other text"
    await _(git.reset(mode="hard", ref="HEAD~1", **at))
    assert await _(capsule.files.read(f"{ours}/file")) == "text"
    await _(git.dangerously_authenticate("ann", "secret", host="example.com", **how))
    assert "ann:secret@example.com" in (await _(run(f"cat {home}/.git-credentials"))).stdout
    for failing in (lambda: git.checkout_branch("none", **at), lambda: git.clone(f"{home}/nowhere", **how), lambda: git.push("nowhere", **at)):
        try:
            await _(failing())
        except wrenn.GitCommandError as error:
            assert error.exit_code != 0
        else:
            raise AssertionError("GitCommandError did not come")
    await _(run(f"rm -rf {home}"))


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
        for span in ("5m", "1h", "6h", "24h", "30d"):
            assert client.capsules.stats(range=span).current is not None
        assert client.capsules.usage().points is not None
        assert client.capsules.usage(date(2026, 1, 1), "2026-01-31").points == []
    asyncio.run(events_async())


async def events_async() -> None:
    async with wrenn.AsyncWrennClient(**HOW) as client:
        async for event in client.events.stream():
            assert event.event == "connected"
            break
        assert (await client.capsules.stats()).series is not None
        assert (await client.capsules.usage()).points is not None
        capsule = await client.capsules.create(template=TEMPLATE)
        with wrenn.WrennClient(**HOW) as beside:
            assert beside.capsules.metrics(capsule.id, range="10m").sandbox_id == capsule.id
        assert (await client.capsules.metrics(capsule.id)).points is not None
        await client.capsules.destroy(capsule.id)


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
        await asynchronous_rest(capsule)
        await repositories(capsule)
    await clients()


async def asynchronous_rest(capsule: Any) -> None:
    name = capsule.capsule_id
    await capsule.ping()
    await capsule.wait_ready()
    assert (await capsule.is_running(), (await capsule.get_info()).id, capsule.info.id) == (True, name, name)
    assert name in [each.id for each in await wrenn.AsyncCapsule.list(**HOW)]
    assert (await wrenn.AsyncCapsule.pause(name, **HOW)).status == "paused"
    assert (await wrenn.AsyncCapsule.resume(name, **HOW)).status == "running"
    assert (await wrenn.AsyncCapsule.get_info(name, **HOW)).status == "running"
    again = await wrenn.AsyncCapsule.connect(name, **HOW)
    handle = await again.commands.run("sleep 1000", background=True, tag="waiting")
    assert [each.tag for each in await again.commands.list()] == ["waiting"]
    following = again.commands.connect(handle.pid)
    assert (await anext(following)).type == "start"
    await again.commands.kill(handle.pid)
    assert [event.type async for event in following][-1] == "exit"
    folder = (await again.commands.run("mktemp -d")).stdout.strip()
    await again.files.write(f"{folder}/text", "ä")
    assert await again.files.read(f"{folder}/text") == "ä"
    assert await again.files.exists(f"{folder}/text")
    assert [(await again.files.make_dir(f"{folder}/d")).name for _ in range(2)] == ["d", "d"]
    assert {entry.name for entry in await again.files.list(folder)} == {"text", "d"}
    await again.files.remove(folder)
    async with again.pty(cmd="cat") as terminal:
        async for event in terminal:
            if event.type == "started":
                break
        await terminal.resize(100, 30)
        async with again.pty_connect(terminal.tag) as beside:
            await beside.write(b"to both\n")
            async for event in terminal:
                if event.type == "output" and b"to both" in event.data:
                    break
            await beside.kill()
    made = await again.create_snapshot()
    async with wrenn.AsyncWrennClient(**HOW) as client:
        assert made.name in [each.name for each in await client.snapshots.list(type="snapshot")]
        await client.snapshots.delete(made.name)
    assert again.get_url(80).split("://")[1].startswith(f"80-{name}.")


async def clients() -> None:
    """The plain resources, of both halves."""
    async with wrenn.AsyncWrennClient(**HOW) as client:
        with wrenn.WrennClient(**HOW) as other:
            for each in (client, other):
                made = await _(each.capsules.create(template=TEMPLATE, vcpus=1, memory_mb=512, timeout_sec=300))
                while (await _(each.capsules.get(made.id))).status != "running":
                    await asyncio.sleep(0.1)
                assert made.id in [one.id for one in await _(each.capsules.list())]
                await _(each.capsules.ping(made.id))
                assert (await _(each.capsules.pause(made.id))).status == "paused"
                assert (await _(each.capsules.resume(made.id))).status == "running"
                snapshot = await _(each.snapshots.create(made.id))
                assert snapshot.name in [one.name for one in await _(each.snapshots.list())]
                await _(each.snapshots.delete(snapshot.name))
                await _(each.capsules.destroy(made.id))
                assert (await _(each.capsules.get(made.id))).status == "stopped"
    await client.aclose()
    other.close()
    last = await wrenn.AsyncCapsule.create(template=TEMPLATE, **HOW)
    await wrenn.AsyncCapsule.destroy(last.capsule_id, **HOW)


def asynchronous() -> None:
    asyncio.run(drive_async())


for section in sys.argv[4:]:
    globals()[section]()
    print("done", section, flush=True)
