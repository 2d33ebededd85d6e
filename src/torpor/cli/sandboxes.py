"""`torpor create, list, show, pause, resume, boot, fork, snapshot, rollback, kill, url`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from torpor.cli.remote import ago, each, find, lines, plain, run, slowly
from torpor.cli.sandbox_grammar import environment
from torpor.cli.show import Screen
from torpor.client.asynchronous import AsyncClient
from torpor.client.sandboxes import AsyncSandbox

_ALL_STATES = ("pending", "starting", "running", "pausing", "paused", "resuming", "snapshotting", "stopping", "missing", "stopped", "error")


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def _rows(sandboxes: Sequence[AsyncSandbox]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for sandbox in sandboxes:
        now = sandbox.details
        shape = f"{now.vcpus} x {now.memory_mb} MiB"
        rows.append({"id": now.id, "name": now.name, "state": now.state, "template": now.template, "shape": shape, "created": ago(now.created_at)})
    return rows


def _print(screen: Screen, words: Namespace, sandboxes: Sequence[AsyncSandbox]) -> None:
    if words.json:
        screen.document({"sandboxes": [plain(each.details) for each in sandboxes]})
    elif words.quiet:
        lines([each.id for each in sandboxes])
    else:
        screen.table("Sandboxes", _rows(sandboxes))


def create(words: Namespace, screen: Screen) -> int:
    async def work(client: AsyncClient) -> int:
        labels = dict(words.label)
        async with slowly(screen, "waiting for the sandbox to run"):
            made = await client.sandboxes.create(
                words.template,
                name=words.called,
                vcpus=words.vcpus,
                memory_mb=words.memory,
                disk_size_mb=words.disk,
                network=words.net == "on",
                timeout_sec=words.timeout,
                lifetime_sec=words.lifetime,
                on_timeout=words.on_timeout,
                auto_resume=words.auto_resume,
                metadata=labels,
                envs=environment(words.env),
            )
        if words.json:
            screen.document(plain(made.details))
        else:
            now = made.details
            if not words.quiet and (now.vcpus, now.memory_mb) != (words.vcpus, words.memory):
                screen.note(f"It has {now.vcpus} vCPUs and {now.memory_mb} MiB.")
            lines([made.id])
        return 0

    return run(words, screen, work)


def list_(words: Namespace, screen: Screen) -> int:
    async def work(client: AsyncClient) -> int:
        states = words.state or (list(_ALL_STATES) if words.all else None)
        labels = dict(words.label)
        _print(screen, words, [each async for each in client.sandboxes.list(states=states, template=words.template, labels=labels)])
        return 0

    return run(words, screen, work)


def show(words: Namespace, screen: Screen) -> int:
    async def work(client: AsyncClient) -> int:
        found, code = await each(client, screen, words.sandboxes, _itself)
        if words.json:
            screen.document({"sandboxes": [plain(one.details) for one in found]})
        for one in () if words.json else found:
            screen.facts(_facts(one))
        return code

    return run(words, screen, work)


async def _itself(sandbox: AsyncSandbox) -> AsyncSandbox:
    return sandbox


def _facts(sandbox: AsyncSandbox) -> dict[str, str]:
    now = sandbox.details
    facts: dict[str, Any] = {
        "id": now.id,
        "name": now.name,
        "state": now.state + (f" ({now.operation.kind} under way)" if now.operation else ""),
        "ended": f"{now.end_reason}: {now.end_note}".rstrip(": ") if now.end_reason else "",
        "template": now.template,
        "shape": f"{now.vcpus} vCPUs, {now.memory_mb} MiB of memory, {now.disk_size_mb} MiB of disk",
        "network": now.network,
        "stored": _size(now.stored_bytes),
        "created": f"{plain(now.created_at)} ({ago(now.created_at)})",
        "last used": f"{plain(now.last_active_at)} ({ago(now.last_active_at)})",
        "time-out": f"{now.on_timeout} after {now.timeout_sec} s without use" if now.timeout_sec else "none",
        "expires": f"{plain(now.expires_at)}, then: {now.on_timeout}" if now.expires_at else "",
        "auto-resume": "yes" if now.auto_resume else "no",
        "labels": ", ".join(f"{name}={value}" for name, value in now.metadata.items()),
    }
    return {name: text for name, text in facts.items() if text}


def _moving(words: Namespace, screen: Screen, verb: str, what: str) -> int:
    async def one(sandbox: AsyncSandbox) -> AsyncSandbox:
        await getattr(sandbox, verb)()
        return sandbox

    async def work(client: AsyncClient) -> int:
        async with slowly(screen, what):
            found, code = await each(client, screen, words.sandboxes, one)
        if words.json:
            screen.document({"sandboxes": [plain(done.details) for done in found]})
        else:
            lines([done.id for done in found])
        return code

    return run(words, screen, work)


def pause(words: Namespace, screen: Screen) -> int:
    return _moving(words, screen, "pause", "writing memory and disk to files")


def resume(words: Namespace, screen: Screen) -> int:
    return _moving(words, screen, "resume", "resuming")


def boot(words: Namespace, screen: Screen) -> int:
    return _moving(words, screen, "boot", "booting")


def kill(words: Namespace, screen: Screen) -> int:
    return _moving(words, screen, "kill", "ending")


def fork(words: Namespace, screen: Screen) -> int:
    async def work(client: AsyncClient) -> int:
        source = await find(client, words.sandbox)
        async with slowly(screen, "copying"):
            _print(screen, words, await source.fork(words.count))
        return 0

    return run(words, screen, work)


def snapshot(words: Namespace, screen: Screen) -> int:
    async def work(client: AsyncClient) -> int:
        source = await find(client, words.sandbox)
        async with slowly(screen, "writing memory and disk to files"):
            made = await source.snapshot(words.snapshot, overwrite=words.overwrite, keep_running=not words.pause)
        if words.json:
            screen.document(plain(made))
        else:
            lines([made.name])
            if not words.quiet:
                screen.note(f"{_size(made.size_bytes)}. Start from it with: torpor create {made.name}")
        return 0

    return run(words, screen, work)


def rollback(words: Namespace, screen: Screen) -> int:
    async def work(client: AsyncClient) -> int:
        sandbox = await find(client, words.sandbox)
        async with slowly(screen, "going back"):
            await sandbox.rollback(words.snapshot)
        if words.json:
            screen.document(plain(sandbox.details))
        else:
            lines([sandbox.id])
        return 0

    return run(words, screen, work)


def url(words: Namespace, screen: Screen) -> int:
    async def work(client: AsyncClient) -> int:
        made = await (await find(client, words.sandbox)).port_url(words.port, expires_in=words.seconds)
        if words.json:
            screen.document(plain(made))
        else:
            lines([made.url])
            if not words.quiet:
                screen.note(f"Whoever has it can use port {words.port} until {plain(made.expires_at)}.")
        return 0

    return run(words, screen, work)
