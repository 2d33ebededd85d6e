"""Drives E2B's published SDK, which is on the path and told of us by its environment, through its public methods: drive_e2b.py SECTION... Says `done` after
each. What goes through envd (commands, files) belongs into sections of its own at the end."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import version

import e2b
from e2b import AsyncSandbox, Sandbox, SandboxQuery, SandboxState

LATER = tuple(int(part) for part in version("e2b").split(".")[:2]) >= (2, 60)


def raises(kind: type[Exception], call: Callable[[], object]) -> Exception:
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} did not come")


def left(sandbox: Sandbox) -> float:
    return sandbox.get_info().end_at.timestamp() - time.time()


def lifecycle() -> None:
    sandbox = Sandbox.create(timeout=120, metadata={"driver": "python", "odd &=+": "v =1/é"}, envs={"A": "b"})
    info = sandbox.get_info()
    assert (info.sandbox_id, info.metadata) == (sandbox.sandbox_id, {"driver": "python", "odd &=+": "v =1/é"})
    assert info.state == SandboxState.RUNNING
    assert (info.cpu_count, info.memory_mb, info.name, info.envd_version) == (1, 512, "base", "0.6.13")
    assert 100 < left(sandbox) <= 120
    sandbox.set_timeout(60)
    assert 40 < left(sandbox) <= 60
    again = Sandbox.connect(sandbox.sandbox_id, timeout=30)
    assert again.sandbox_id == sandbox.sandbox_id
    assert 40 < left(sandbox) <= 60
    Sandbox.connect(sandbox.sandbox_id, timeout=600)
    assert 500 < left(sandbox) <= 600
    assert sandbox.kill() is True
    assert sandbox.kill() is False
    assert Sandbox.kill("nonexisting-sandbox") is False
    raises(e2b.NotFoundException, lambda: Sandbox.get_info(sandbox.sandbox_id))
    raises(e2b.NotFoundException, lambda: Sandbox.connect("nonexisting", timeout=5))
    raises(e2b.AuthenticationException, lambda: Sandbox.create(api_key="e2b_" + "0" * 40))
    raises(e2b.SandboxException, lambda: Sandbox.create("no-such-template"))
    raises(e2b.SandboxException, lambda: Sandbox.create(timeout=-1))


def pausing() -> None:
    sandbox = Sandbox.create(timeout=120)
    pause = sandbox.pause if LATER else sandbox.beta_pause
    pause()
    assert sandbox.get_info().state == SandboxState.PAUSED
    raises(e2b.NotFoundException, lambda: sandbox.set_timeout(9))
    sandbox.connect(timeout=200)
    assert sandbox.get_info().state == SandboxState.RUNNING
    assert 150 < left(sandbox) <= 201
    if LATER:
        pause(keep_memory=False)
        sandbox.connect()
        assert sandbox.get_info().state == SandboxState.RUNNING
    kept = Sandbox.create(timeout=60, lifecycle={"on_timeout": "pause", "auto_resume": True})
    kept.set_timeout(0)
    while kept.get_info().state != SandboxState.PAUSED:
        time.sleep(0.05)
    for one in (sandbox, kept):
        assert one.kill() is True


def forks() -> None:
    sandbox = Sandbox.create(timeout=120, metadata={"k": "v"})
    made = sandbox.fork(count=2)
    twins = [getattr(one, "sandbox", one) for one in made]
    assert len({twin.sandbox_id for twin in twins} | {sandbox.sandbox_id}) == 3
    for twin in twins:
        assert twin.get_info().metadata == {"k": "v"}
        assert left(twin) > 100
        assert twin.kill() is True
    assert sandbox.kill() is True


def lists() -> None:
    mark = f"m{time.time_ns()}&="
    made = [Sandbox.create(timeout=120, metadata={"mark": mark, "number": str(number)}) for number in range(3)]
    ids = [sandbox.sandbox_id for sandbox in made]
    query = SandboxQuery(metadata={"mark": mark})
    pages = Sandbox.list(query=query, limit=2)
    found = pages.next_items()
    assert [each.sandbox_id for each in found] == [ids[2], ids[1]]
    assert pages.has_next
    assert [each.sandbox_id for each in pages.next_items()] == [ids[0]]
    assert not pages.has_next
    (made[0].pause if LATER else made[0].beta_pause)()
    for state, expected in ((SandboxState.PAUSED, [ids[0]]), (SandboxState.RUNNING, [ids[2], ids[1]])):
        asked = Sandbox.list(query=SandboxQuery(metadata={"mark": mark}, state=[state]))
        assert [each.sandbox_id for each in asked.next_items()] == expected
    both = Sandbox.list(query=SandboxQuery(metadata={"mark": mark}, state=[SandboxState.PAUSED, SandboxState.RUNNING]))
    assert [each.sandbox_id for each in both.next_items()] == ids[::-1]
    for sandbox in made:
        assert sandbox.kill() is True
    assert Sandbox.list(query=query).next_items() == []


def snapshots() -> None:
    sandbox = Sandbox.create(timeout=120)
    plain = sandbox.create_snapshot()
    name = f"s{time.time_ns()}"
    named = sandbox.create_snapshot(name=f"{name}:v1") if LATER else plain
    listed = Sandbox.list_snapshots(sandbox_id=sandbox.sandbox_id)
    assert {plain.snapshot_id, named.snapshot_id} <= {each.snapshot_id for each in listed.next_items()}
    for snapshot in {plain.snapshot_id, named.snapshot_id}:
        started = Sandbox.create(snapshot, timeout=60)
        raises(e2b.SandboxException, lambda snapshot=snapshot: Sandbox.delete_snapshot(snapshot))
        assert started.kill() is True
        assert Sandbox.delete_snapshot(snapshot) is True
        assert Sandbox.delete_snapshot(snapshot) is False
    assert sandbox.get_info().state == SandboxState.RUNNING
    assert sandbox.kill() is True


def metrics() -> None:
    sandbox = Sandbox.create(timeout=120)
    end = time.monotonic() + 30
    while not (found := sandbox.get_metrics()):
        assert time.monotonic() < end
        time.sleep(0.2)
    assert (found[0].cpu_count, found[0].mem_total, found[0].disk_total > 0) == (1, 512 << 20, True)
    assert 0 <= found[0].cpu_used_pct <= 100
    assert sandbox.kill() is True


def network() -> None:
    sandbox = Sandbox.create(timeout=120, allow_internet_access=False)
    assert sandbox.get_info().allow_internet_access is False
    sandbox.update_network({"allow_out": ["8.8.8.8"], "deny_out": lambda context: [context.all_traffic]})
    sandbox.update_network({"allow_out": ["example.com", "*.example.org", "8.8.8.8"], "deny_out": lambda context: [context.all_traffic]})
    raises(e2b.SandboxException, lambda: sandbox.update_network({"allow_out": ["example.com"]}))
    sandbox.update_network({})
    assert sandbox.get_info().allow_internet_access is True
    raises(e2b.SandboxException, lambda: sandbox.update_network({"deny_out": ["example.com"]}))
    assert sandbox.kill() is True


def templates() -> None:
    from e2b import Template

    exists = getattr(Template, "exists", None) or Template.alias_exists
    assert exists("base") is True
    assert exists("no-such-template") is False
    sandbox = Sandbox.create(timeout=120)
    name = f"t{time.time_ns()}"
    made = sandbox.create_snapshot(name=name)
    Template.assign_tags(f"{name}:default", ["v1", "v2"])
    assert {each.tag for each in Template.get_tags(name)} == {"default", "v1", "v2"}
    Template.remove_tags(name, ["v2"])
    started = Sandbox.create(f"{name}:v1", timeout=60)
    assert started.kill() is True
    assert exists(f"{name}:v2") is False
    assert sandbox.kill() is True
    assert Sandbox.delete_snapshot(made.snapshot_id) is True


def asynchronous() -> None:
    async def all_of_it() -> None:
        sandbox = await AsyncSandbox.create(timeout=60, metadata={"a": "b"})
        assert (await sandbox.get_info()).metadata == {"a": "b"}
        await sandbox.set_timeout(30)
        pages = AsyncSandbox.list()
        assert sandbox.sandbox_id in [each.sandbox_id for each in await pages.next_items()]
        assert await sandbox.kill() is True

    asyncio.run(all_of_it())


if __name__ == "__main__":
    for section in sys.argv[1:]:
        globals()[section]()
        print("done", section, flush=True)
    os._exit(0)  # the package's own threads may take an interpreter down that ends as usual
