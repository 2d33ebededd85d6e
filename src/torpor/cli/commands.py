"""`torpor exec, shell, ps, logs`: commands in a sandbox."""

from __future__ import annotations

import asyncio
import os
import shlex
from argparse import Namespace
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, cast

from torpor.apps.console import on_terminal, size
from torpor.cli.console import follow, live, show
from torpor.cli.remote import ago, find, lines, plain, run
from torpor.cli.sandbox_grammar import environment
from torpor.cli.show import Screen
from torpor.client.answers import Output
from torpor.client.asynchronous import AsyncClient
from torpor.client.sandboxes import AsyncSandbox
from torpor.model.errors import InvalidInput, NotFound

LOGIN_SHELL = ("/bin/sh", "-c", "command -v bash >/dev/null && exec bash -l; exec sh -l")


def exec_(words: Namespace, screen: Screen) -> int:
    async def work(client: AsyncClient) -> int:
        sandbox = await find(client, words.sandbox)
        how: dict[str, Any] = {"envs": environment(words.env), "cwd": words.workdir, "user": words.user, "tag": words.tag}
        if words.detach:
            left = await sandbox.commands.background(words.command, timeout=words.timeout, **how)
            if words.json:
                screen.document(plain(left))
            else:
                lines([left.tag])
            return 0
        if words.json:
            return await _captured(sandbox, words, screen, how)
        if on_terminal() and not words.no_terminal and words.timeout is None:
            return await _terminal(sandbox, words.command, how)
        process = await sandbox.commands.start(words.command, stdin=True, timeout=words.timeout, **how)
        async with process:
            return await follow(process, screen, stdin=True)

    return run(words, screen, work)


async def _captured(sandbox: AsyncSandbox, words: Namespace, screen: Screen, how: dict[str, Any]) -> int:
    given = None if os.isatty(0) else await asyncio.to_thread(_read_all)
    done = await sandbox.commands.run(words.command, stdin=given, timeout=words.timeout, **how)
    document = {"sandbox_id": sandbox.id, "exit_code": done.exit_code, "timed_out": done.timed_out, "oom": done.oom}
    screen.document(document | {"stdout": done.stdout, "stderr": done.stderr})
    return done.exit_code


def _read_all() -> bytes:
    with open(0, "rb", closefd=False) as file:
        return file.read()


async def _terminal(sandbox: AsyncSandbox, command: Any, how: dict[str, Any]) -> int:
    columns, rows = size()
    envs = {"TERM": os.environ.get("TERM") or "xterm"} | how["envs"]
    async with await sandbox.terminals.open(command, cols=columns, rows=rows, **(how | {"envs": envs})) as terminal:
        return await live(terminal)


def shell(words: Namespace, screen: Screen) -> int:
    async def work(client: AsyncClient) -> int:
        if not on_terminal():
            raise InvalidInput("torpor shell needs a terminal.", mend="For scripts: torpor exec")
        sandbox = await find(client, words.sandbox)
        if words.attach:
            async with await sandbox.terminals.connect(words.attach) as terminal:
                return await live(terminal)
        how = {"envs": environment(words.env), "cwd": words.workdir, "user": words.user}
        return await _terminal(sandbox, words.command or LOGIN_SHELL, how)

    return run(words, screen, work)


def ps(words: Namespace, screen: Screen) -> int:
    async def work(client: AsyncClient) -> int:
        found = await (await find(client, words.sandbox)).commands.list(ended=words.all)
        if words.json:
            screen.document({"processes": [plain(each) for each in found]})
        elif words.quiet:
            lines([each.tag for each in found])
        else:
            rows: list[dict[str, object]] = []
            for each in found:
                state = "runs" if each.exit_code is None else f"ended: {each.exit_code}"
                line = shlex.join([each.cmd, *each.args]).replace("\n", " ")
                kind = "yes" if each.terminal else ""
                rows.append(
                    {
                        "pid": each.pid,
                        "tag": each.tag,
                        "state": state,
                        "user": each.user,
                        "terminal": kind,
                        "started": ago(each.started_at),
                        "command": line[:80],
                    }
                )
            screen.table("Processes", rows)
        return 0

    return run(words, screen, work)


def logs(words: Namespace, screen: Screen) -> int:
    async def work(client: AsyncClient) -> int:
        sandbox = await find(client, words.sandbox)
        if words.events:
            return await _events(client, sandbox, words, screen)
        return await _output(sandbox, words, screen)

    return run(words, screen, work)


async def _events(client: AsyncClient, sandbox: AsyncSandbox, words: Namespace, screen: Screen) -> int:
    def tell(event: Any) -> None:
        if words.json:
            screen.document(plain(event))
        else:
            more = " ".join(f"{name}={value}" for name, value in event.metadata.items())
            lines([f"{plain(event.timestamp)}  {event.name}  {event.actor.name or event.actor.type}  {more}".rstrip()])

    found = await sandbox.events(limit=200)
    for event in found:
        tell(event)
    if words.follow:
        async with aclosing(cast("Any", client.events.stream(after=found[-1].id if found else None))) as events:
            async for event in events:
                if event.resource.id == sandbox.id:
                    tell(event)
    return 0


async def _output(sandbox: AsyncSandbox, words: Namespace, screen: Screen) -> int:
    known = await sandbox.commands.list(ended=True)
    wanted = words.process
    if wanted is None:
        if not known:
            raise NotFound("No command was started in this sandbox.", mend="For what happened to it: torpor logs --events")
        latest = max(known, key=lambda each: (each.started_at, each.pid))
        wanted = latest.tag or str(latest.pid)
    kept = {"stdout": bytearray(), "stderr": bytearray()}

    async def take(pieces: AsyncIterator[Output]) -> None:
        async for piece in pieces:
            if words.json:
                kept[piece.stream] += piece.data
            else:
                await show(piece, screen)

    if words.follow:
        async with await sandbox.commands.connect(wanted) as process:
            await take(process.output())
    else:
        await take(sandbox.commands.logs(wanted))
    if words.json:
        screen.document({"process": wanted} | {name: data.decode(errors="replace") for name, data in kept.items()})
    return 0
