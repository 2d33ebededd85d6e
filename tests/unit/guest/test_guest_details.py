"""What an agent of level 2 tells and does beyond the first ones; and how one of level 1 is served all the same."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from torpor.guestlink.guest import RemoteGuest
from torpor.model.errors import Denied, DenyReason, GuestOSError
from torpor.ports.guest import ExecSpec, Exited, StreamName, Terminal, WatchKind
from torpor.wire.guest import LEVEL


@pytest.fixture(params=[1, LEVEL])
def leveled(guest: RemoteGuest, request: pytest.FixtureRequest) -> RemoteGuest:
    """A session with an agent that says this level; one of level 1 is never asked for what it cannot."""
    guest._channel.welcome["level"] = request.param
    return guest


async def told(guest: RemoteGuest, spec: ExecSpec) -> tuple[bytes, Exited]:
    process = await guest.exec(spec)
    data = b"".join([piece.data async for piece in process.output() if piece.stream is StreamName.STDOUT])
    return data, await process.wait()


async def test_details_of_files_and_links(leveled: RemoteGuest, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    os.setxattr(tmp_path / "f", "user.k", b"\0v")
    for name, target in (("link", "f"), ("dangling", "none"), ("round", "round")):
        (tmp_path / name).symlink_to(target)
    found = {Path(each.path).name: each.details for each in await leveled.list_directory(str(tmp_path), details=True)}
    plain, link, dangling, circle = found["f"], found["link"], found["dangling"], found["round"]
    assert plain is not None
    assert (stat.S_ISREG(plain.raw_mode), plain.reached, plain.attributes) == (True, None, {"user.k": b"\0v"})
    assert link is not None
    assert link.reached is not None
    assert (stat.S_ISLNK(link.raw_mode), stat.S_ISREG(link.reached.raw_mode), link.reached.path) == (True, True, str(tmp_path / "f"))
    assert dangling is not None
    assert dangling.reached is not None
    assert (dangling.reached.raw_mode, dangling.reached.errno, dangling.reached.path) == (0, errno.ENOENT, str(tmp_path / "none"))
    assert circle is not None
    assert circle.reached is not None
    assert circle.reached.errno == errno.ELOOP
    assert (await leveled.stat(str(tmp_path / "f"), details=True)).details == plain
    assert (await leveled.stat(str(tmp_path / "f"))).details is None


async def test_many_attributes_are_cut_short(guest: RemoteGuest, tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    try:
        for number in range(200):
            os.setxattr(tmp_path / "f", f"user.{number}", bytes(300))
    except OSError as error:
        assert error.errno in (errno.ENOSPC, errno.E2BIG)  # what the file system takes
    found = (await guest.stat(str(tmp_path / "f"), details=True)).details
    assert found is not None
    assert sum(len(name) + len(value) for name, value in found.attributes.items()) <= 16384


@pytest.mark.root
async def test_a_rewritten_file_belongs_to_its_owner_and_has_the_new_attributes(leveled: RemoteGuest, tmp_path: Path) -> None:
    path = tmp_path / "a/b/f"
    for text, given in ((b"long before", {"user.p.one": b"1"}), (b"new", {"user.p.two": b"2"})):
        await leveled.rewrite_file(str(path), text, owner="nobody", attributes=given, replaced="user.p.")
        assert path.read_bytes() == text
        assert {name: os.getxattr(path, name) for name in os.listxattr(path)} == given
        assert (path.stat().st_mode & 0o777, path.owner(), path.parent.owner(), (tmp_path / "a").owner()) == (0o644, "nobody", "nobody", "nobody")
    assert tmp_path.owner() == "root"
    assert await leveled.make_directory(str(tmp_path / "a/c/d"), user="root", owner="nobody")
    assert not await leveled.make_directory(str(tmp_path / "a/c/d"), user="root", owner="nobody")
    assert ((tmp_path / "a/c").owner(), (tmp_path / "a/c/d").owner()) == ("nobody", "nobody")


async def test_a_rewrite_of_what_is_no_file(leveled: RemoteGuest, tmp_path: Path) -> None:
    for path, code in ((tmp_path, errno.EISDIR), (Path("/dev/null"), errno.EINVAL)):
        with pytest.raises(GuestOSError) as caught:
            await leveled.rewrite_file(str(path), b"x", owner="root")
        assert caught.value.errno == code


async def test_a_rewrite_is_seen_in_three_steps_however_it_comes(guest: RemoteGuest, tmp_path: Path) -> None:
    async def drops() -> AsyncIterator[bytes]:
        for _ in range(50):
            yield b"x" * 100
            await asyncio.sleep(0)

    async with aclosing(await guest.watching(str(tmp_path), exact=True)) as events:
        for number in range(20):  # the first of it may come along with the request, or behind it
            await guest.rewrite_file(str(tmp_path / f"f{number}"), drops(), owner="root")
            (tmp_path / f"last{number}").touch()
            seen = [await anext(events) for _ in range(4)]
            assert [event.kind for event in seen] == [WatchKind.CREATED, WatchKind.ATTRIBUTES, WatchKind.WRITTEN, WatchKind.CREATED]
            assert seen[-1].path == f"last{number}"


async def test_a_large_rewrite_is_whole_and_a_cancelled_one_ends(guest: RemoteGuest, tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    await guest.rewrite_file(str(tmp_path / "f"), data, owner="root")
    assert (tmp_path / "f").read_bytes() == data
    begun = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(65536)
            begun.set()

    task = asyncio.create_task(guest.rewrite_file(str(tmp_path / "g"), endless(), owner="root"))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await guest.ping()


async def test_an_exact_watch_tells_moves_out_and_what_was_there_already(guest: RemoteGuest, tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    (outside / "d").mkdir(parents=True)
    (outside / "d" / "f").write_text("x")
    (outside / "d" / "empty").touch()
    async with aclosing(await guest.watching(str(inside), recursive=True, exact=True)) as events:
        (outside / "d").rename(inside / "d")
        seen = [await anext(events) for _ in range(4)]
        assert {(event.kind, event.path) for event in seen} == {
            (WatchKind.CREATED, "d"), (WatchKind.CREATED, "d/f"), (WatchKind.WRITTEN, "d/f"), (WatchKind.CREATED, "d/empty"),
        }  # fmt: skip
        (inside / "d").rename(outside / "d")
        event = await anext(events)
        assert (event.kind, event.path, event.new_path) == (WatchKind.RENAMED, "d", "")


async def test_an_attachment_knows_what_there_is(leveled: RemoteGuest) -> None:
    script = "seq 1 200000; echo odd >&2; echo ready; read x; echo more"
    first = await leveled.exec(ExecSpec(["sh", "-c", script], stdin=True, output_limit=65536))
    heard = b""
    async for piece in first.output():
        heard += piece.data if piece.stream is StreamName.STDOUT else b""
        if heard.endswith(b"ready\n"):
            break
    again = await leveled.attach(first.exec_id, present=True)
    out, err = (again.held[name] for name in StreamName)
    assert (out.stop, err) == (len(heard), range(4)) and 0 < out.start < out.stop, "what the ring dropped is not there"
    nothing = await leveled.attach(first.exec_id, stdout_offset=len(heard), stderr_offset=10, present=True)
    assert [len(held) for held in nothing.held.values()] == [0, 0]
    await nothing.write(b"\n")
    assert [(piece.offset, piece.data) async for piece in nothing.output()] == [(len(heard), b"more\n")]


async def test_input_without_an_attachment(guest: RemoteGuest) -> None:
    process = await guest.exec(ExecSpec(["cat"], stdin=True))
    process.detach()
    async with asyncio.timeout(100):
        await guest.send_input(process.exec_id, b"one ")
        await guest.send_input(process.exec_id, b"")
        await guest.send_input(process.exec_id, b"two")
        await guest.close_input(process.exec_id)
        again = await guest.attach(process.exec_id)
        assert b"".join([piece.data async for piece in again.output()]) == b"one two"
        assert await again.wait() == Exited(0)
        for sending in (guest.send_input(process.exec_id, b"late"),):
            with pytest.raises(GuestOSError) as caught:
                await sending
            assert caught.value.errno == errno.EPIPE


async def test_input_that_nobody_reads_waits_and_its_command_may_end(guest: RemoteGuest) -> None:
    process = await guest.exec(ExecSpec(["sleep", "1000"], stdin=True))
    sending = asyncio.create_task(guest.send_input(process.exec_id, bytes(1 << 20)))
    await guest.ping()
    assert not sending.done()
    await guest.kill_tree(process.exec_id)
    with pytest.raises(GuestOSError) as caught:
        await sending
    assert caught.value.errno == errno.EPIPE
    quiet = await guest.exec(ExecSpec(["sleep", "1000"]))
    with pytest.raises(Denied):
        await guest.send_input(quiet.exec_id, b"x")
    with pytest.raises(Denied):
        await guest.resize(quiet.exec_id, Terminal())
    await guest.kill_tree(quiet.exec_id)


async def test_an_agent_of_the_first_level_says_that_it_is_too_old(guest: RemoteGuest) -> None:
    guest._channel.welcome.pop("level")
    process = await guest.exec(ExecSpec(["cat"], stdin=True))
    for refused in (guest.send_input(process.exec_id, b"x"), guest.close_input(process.exec_id)):
        with pytest.raises(Denied) as caught:
            await refused
        assert caught.value.reason is DenyReason.TOO_OLD
    await guest.kill_tree(process.exec_id)


async def test_lingering_output_lasts_as_long_as_its_pipes(guest: RemoteGuest) -> None:
    data, exited = await told(guest, ExecSpec(["sh", "-c", "(sleep 1; echo late) & echo early; exit 3"], linger=True))
    assert (data, exited) == (b"early\nlate\n", Exited(3))


async def test_a_signal_ends_the_lingering(guest: RemoteGuest) -> None:
    process = await guest.exec(ExecSpec(["sh", "-c", "setsid sleep 1000 & echo $!; exit 3"], linger=True))
    assert await process.wait() == Exited(3)
    assert [each.open for each in await guest.processes() if each.exec_id == process.exec_id] == [True]
    await guest.signal(process.exec_id, 15)
    child = int(b"".join([piece.data async for piece in process.output()]))
    os.kill(child, 9)
    assert [each.open for each in await guest.processes() if each.exec_id == process.exec_id] == [False]


async def test_the_timeout_ends_the_lingering_too(guest: RemoteGuest) -> None:
    process = await guest.exec(ExecSpec(["sh", "-c", "sleep 1000 & echo said"], linger=True, timeout=1))
    async with asyncio.timeout(100):
        assert b"".join([piece.data async for piece in process.output()]) == b"said\n"


async def test_commands_are_listed_with_the_variables_they_were_given(guest: RemoteGuest) -> None:
    process = await guest.exec(ExecSpec(["cat"], stdin=True, env={"A": "1"}))
    large = await guest.exec(ExecSpec(["cat"], stdin=True, env={f"V{n}": "x" * 10000 for n in range(20)}))
    found = {each.exec_id: each.env for each in await guest.processes()}
    assert (found[process.exec_id], found[large.exec_id]) == ({"A": "1"}, {})
    for each in (process, large):
        await guest.kill_tree(each.exec_id)
