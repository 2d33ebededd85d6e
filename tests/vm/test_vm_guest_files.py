"""Files, watches, ports, metrics and disk sizes, through the real channel."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator

import pytest
from vm_world import read, run, shell, start

from torpor.apps.engine import Engine
from torpor.host.agent import CreateSpec
from torpor.host.sandbox import Sandbox
from torpor.model.errors import GuestOSError
from torpor.model.shapes import Shape
from torpor.ports.guest import FileKind, Guest, WatchEvent, WatchKind

pytestmark = [pytest.mark.vm, pytest.mark.root]

MIB = 1 << 20


async def test_files_of_many_sizes_come_back_as_they_went(sandbox: Sandbox) -> None:
    guest = await sandbox.guest()
    for size in (0, 1, 65_537, 20 * MIB):
        content = hashlib.shake_128(str(size).encode()).digest(size)

        async def pieces(content: bytes = content) -> AsyncIterator[bytes]:
            for at in range(0, len(content), 50_000):
                yield content[at : at + 50_000]

        info = await guest.write_file("/home/user/deep/down/file", pieces())
        assert (info.size, info.mode, info.user) == (size, 0o644, "user")
        assert await read(guest, "/home/user/deep/down/file") == content
    part = [piece async for piece in guest.read_file("/home/user/deep/down/file", offset=MIB, length=100)]
    assert b"".join(part) == content[MIB : MIB + 100]


async def test_file_operations(sandbox: Sandbox) -> None:
    guest = await sandbox.guest()
    assert await guest.make_directory("/tmp/tree/a")
    assert not await guest.make_directory("/tmp/tree/a")
    await guest.write_file("/tmp/tree/a/one", b"1", mode=0o600)
    await guest.write_file("/tmp/tree/a/one", b"23", append=True)
    await guest.symlink("one", "/tmp/tree/a/link")
    await guest.move("/tmp/tree/a/one", "/dev/shm/one")
    await guest.move("/dev/shm/one", "/tmp/tree/a/one")
    assert await read(guest, "/tmp/tree/a/link") == b"123"
    link = await guest.stat("/tmp/tree/a/link", follow=False)
    assert (link.kind, link.target) == (FileKind.SYMLINK, "one")
    await guest.chown("/tmp/tree/a/one", "root", "root")
    await guest.chmod("/tmp/tree/a/one", 0o4755)
    one = await guest.stat("/tmp/tree/a/link")
    assert (one.kind, one.size, one.mode, one.user, one.group) == (FileKind.FILE, 3, 0o4755, "root", "root")
    await guest.set_xattr("/tmp/tree/a/one", "user.colour", b"blue\0green")
    assert await guest.get_xattrs("/tmp/tree/a/one") == {"user.colour": b"blue\0green"}
    await guest.set_xattr("/tmp/tree/a/one", "user.colour", None)
    assert await guest.get_xattrs("/tmp/tree/a/one") == {}
    assert [info.path for info in await guest.list_directory("/tmp/tree", depth=2)] == ["/tmp/tree/a", "/tmp/tree/a/link", "/tmp/tree/a/one"]
    with pytest.raises(GuestOSError) as refused:
        await guest.remove("/tmp/tree")
    assert refused.value.name == "ENOTEMPTY"
    await guest.remove("/tmp/tree", recursive=True)
    with pytest.raises(GuestOSError) as missing:
        await guest.stat("/tmp/tree")
    assert missing.value.name == "ENOENT"


async def test_what_a_user_may_not_read_or_write_stays_so(sandbox: Sandbox) -> None:
    guest = await sandbox.guest()
    for refused in (guest.write_file("/etc/passwd", b"", user="user"), read_as(guest, "/etc/shadow", "user")):
        with pytest.raises(GuestOSError) as error:
            await refused
        assert error.value.name == "EACCES"


async def read_as(guest: Guest, path: str, user: str) -> None:
    async for _ in guest.read_file(path, user=user):
        raise AssertionError("it was read")


async def following(events: AsyncIterator[WatchEvent]) -> WatchEvent:
    return await anext(events)


async def test_a_watch_tells_what_happens_below(sandbox: Sandbox) -> None:
    guest = await sandbox.guest()
    await guest.make_directory("/tmp/watched")
    seen: list[WatchEvent] = []
    begun = asyncio.Event()

    async def watch() -> None:
        events = guest.watch("/tmp/watched", recursive=True)
        first = asyncio.create_task(following(events))
        while not first.done():
            await guest.write_file("/tmp/watched/begun", b"")
        begun.set()
        seen.append(await first)
        async for event in events:
            seen.append(event)

    task = asyncio.create_task(watch())
    await begun.wait()
    await shell(guest, "cd /tmp/watched; mkdir sub; sync; echo text > old; mv old new; rm new")
    await guest.write_file("/tmp/watched/sub/inner", b"x", user="root")
    await guest.remove("/tmp/watched", recursive=True)
    await task
    found = {(event.kind, event.path, event.new_path) for event in seen}
    assert {(WatchKind.CREATED, "sub", ""), (WatchKind.RENAMED, "old", "new"), (WatchKind.REMOVED, "new", "")} <= found


SERVER = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
with socket.create_server((sys.argv[1], int(sys.argv[2])), family=family) as server:
    while True:
        peer, _ = server.accept()
        while data := peer.recv(65536):
            peer.sendall(data.upper())
        peer.close()
"""


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
async def test_ports_of_the_guest_are_reached_on_either_loopback(sandbox: Sandbox, address: str) -> None:
    guest = await sandbox.guest()
    with pytest.raises(GuestOSError) as refused:
        await guest.connect(8080)
    assert refused.value.name == "ECONNREFUSED"
    await start(guest, ["python3", "-c", SERVER, address, "8080"], user="user")
    await shell(guest, "until ss -ltn | grep -q :8080; do :; done")
    stream = await guest.connect(8080)
    sent = b"some words " * 100_000
    writer = asyncio.create_task(stream.write(sent))
    got = b""
    while len(got) < len(sent):
        got += await stream.read()
    await writer
    await stream.close_write()
    assert await stream.read() == b""
    assert got == sent.upper()


async def test_metrics(sandbox: Sandbox) -> None:
    guest = await sandbox.guest()
    metrics = await guest.metrics()
    assert metrics.vcpus == 1
    assert 400 * MIB < metrics.memory_total < 512 * MIB
    assert 0 < metrics.memory_used < metrics.memory_total
    assert 0 < metrics.disk_used < metrics.disk_total < 4096 * MIB
    assert metrics.oom_kills == 0


async def test_a_larger_disk_is_grown_and_its_size_enforced(engine: Engine) -> None:
    """The guest sees 8 GiB; writing more fails inside, with no more than that stored outside, and the sandbox goes on."""
    sandbox = await engine.agent.create(CreateSpec("minimal", Shape(1, 256, 8192)))
    guest = await sandbox.guest()
    size = int(await shell(guest, "cat /sys/block/vda/size")) * 512
    assert size == 8192 * MIB
    assert 7500 * MIB < (await guest.metrics()).disk_total <= size
    assert not (await run(guest, "fallocate", "-l", "9G", "/root/too-much", user="root")).ok
    with pytest.raises(GuestOSError) as refused:
        await guest.write_file("/root/too-much", b"x", offset=9 << 40)
    assert refused.value.name in ("EFBIG", "ENOSPC")
    await engine.agent.pause(sandbox.id)
    await engine.agent.resume(sandbox.id)
    assert (await (await sandbox.guest()).metrics()).disk_total > 7500 * MIB
    (child,) = await engine.agent.fork(sandbox.id, 1)
    assert child.record.shape.disk_mib == 8192
