"""The commands for sandboxes, keys and templates, against a real server: what they print for people, for scripts and for programs."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from client_world import Restartable
from command_world import torpor


async def test_a_life_in_commands(server: Restartable) -> None:
    made = await torpor(server, "create", "-q", "--name", "web", "--label", "team=blue", "--env", "A=1", "--timeout", "600")
    assert (made.code, made.err) == (0, "")
    (web,) = made.words
    assert web.startswith("cl-")
    listed = await torpor(server, "list")
    assert web in listed.words and "web" in listed.words and "running" in listed.words
    assert (await torpor(server, "list", "-q", "--label", "team=red")).words == []
    assert [each["id"] for each in (await torpor(server, "list", "--json")).tree["sandboxes"]] == [web]
    shown = await torpor(server, "show", "web")
    assert "pause after 600 s without use" in shown.out.decode() and "team=blue" in shown.out.decode()
    assert (await torpor(server, "snapshot", "web", "kept", "-q")).words == ["kept"]
    copies = (await torpor(server, "fork", "-q", "-n", "2", web)).words
    assert len(copies) == 2
    assert (await torpor(server, "pause", *copies)).words == copies
    assert sorted((await torpor(server, "list", "-q", "--state", "paused")).words) == sorted(copies)
    assert (await torpor(server, "resume", copies[0])).code == 0
    assert (await torpor(server, "rollback", web, "kept")).words == [web]
    assert (await torpor(server, "kill", web, *copies)).code == 0
    assert (await torpor(server, "list", "-q")).words == []
    assert "ended" in (await torpor(server, "show", web)).words
    assert sorted((await torpor(server, "list", "-qa")).words) == sorted([web, *copies])
    assert "kept" in (await torpor(server, "templates", "-q")).words
    assert "kept" not in (await torpor(server, "templates", "-q", "--remove", "kept")).words


async def test_several_at_once_each_with_its_own_answer(server: Restartable) -> None:
    ids = [(await torpor(server, "create", "-q")).words[0] for _ in range(2)]
    done = await torpor(server, "pause", ids[0], "no-such", ids[1])
    assert (done.code, done.words) == (125, ids)
    assert "There is no sandbox 'no-such'." in done.err
    ambiguous = await torpor(server, "show", "cl-")
    assert ambiguous.code == 125
    short = next(n for n in range(3, 25) if not ids[1][3:].startswith(ids[0][3 : 3 + n]))
    assert (await torpor(server, "show", "--json", ids[0][3 : 3 + short])).tree["sandboxes"][0]["id"] == ids[0]


async def test_the_address_of_a_port(server: Restartable) -> None:
    box = (await torpor(server, "create", "-q", "--name", "web")).words[0]
    hello = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(hello)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as web:
        port = web.sockets[0].getsockname()[1]
        done = await torpor(server, "url", "web", str(port), "--for", "60")
        (address,) = done.words
        assert done.code == 0 and f"port {port} until" in done.err
        made = (await torpor(server, "url", "--json", "web", str(port))).tree
        assert made.keys() == {"url", "expires_at"}
        host = urlsplit(address).netloc
        assert host == f"{port}-{box}.localhost:{server.port}"
        async with httpx.AsyncClient(base_url=server.url, headers={"Host": host}) as anybody:
            assert (await anybody.get("/")).status_code == 404
            assert (await anybody.get(f"/?{urlsplit(address).query}")).text == "hello"
    for words in (
        ("url", "web", "0"),
        ("url", "web", "80", "--for", "0"),
        ("url", "web", "80", "--for", "9999999"),
        ("url", "web", "x"),
        ("url", "no-such", "80"),
    ):
        refused = await torpor(server, *words)
        assert (refused.code, refused.out) == (125, b""), words
    assert (await torpor(server, "url", "-q", "web", "80")).err == ""


async def test_keys(server: Restartable) -> None:
    made = (await torpor(server, "keys", "create", "ci", "--scope", "sandboxes:read", "--days", "1", "--json")).tree
    env = {"TORPOR_API_KEY": made["key"]}
    assert (await torpor(server, "list", env=env)).code == 0
    refused = await torpor(server, "create", env=env)
    assert (refused.code, refused.out) == (125, b"")
    assert made["id"] in (await torpor(server, "keys", "list")).words
    assert (await torpor(server, "keys", "revoke", made["id"])).code == 0
    gone = await torpor(server, "list", "--json", env=env)
    assert (gone.code, gone.tree["error"]["code"]) == (125, "unauthorized")


async def test_where_the_server_is(server: Restartable, tmp_path: Path) -> None:
    nowhere = {"TORPOR_URL": "", "TORPOR_API_KEY": "", "TORPOR_HOME": str(tmp_path)}
    lost = await torpor(server, "list", env=nowhere)
    assert lost.code == 125 and "torpor serve" in lost.err
    file = tmp_path / "client.json"
    file.write_text(json.dumps({"url": server.url, "key": server.key}))
    file.chmod(0o644)
    assert "others" in (await torpor(server, "list", env=nowhere)).err
    file.chmod(0o600)
    assert (await torpor(server, "list", env=nowhere)).code == 0
    with socket.create_server(("127.0.0.1", 0)) as free:
        closed = f"http://127.0.0.1:{free.getsockname()[1]}"
    elsewhere = await torpor(server, "list", "--url", closed, env=nowhere)
    assert "no server of this home, nor a key" in elsewhere.err, "the home's key goes to the home's server only"
    away = await torpor(server, "list", "--url", closed, "--key", "trp_x")
    assert (away.code, "No connection" in away.err) == (125, True)
    assert (await torpor(server, "list", "--url", "ftp://x")).code == 125
    os.remove(file)


async def test_what_is_no_torpor_server_is_said_to_be_none(server: Restartable) -> None:
    import asyncio

    async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 5\r\n\r\n<html")
        writer.close()

    other = await asyncio.start_server(garbage, "127.0.0.1", 0)
    async with other:
        url = f"http://127.0.0.1:{other.sockets[0].getsockname()[1]}"
        done = await torpor(server, "list", env={"TORPOR_URL": url})
        assert (done.code, "no torpor server" in done.err, "Traceback" in done.err) == (125, True, False)


@pytest.mark.parametrize(
    "words", [["create", "--memory", "x"], ["cp", "a", "b"], ["cp", "x:a", "y:b"], ["keys"], ["create", "--label", "x"], ["fork", "a", "-n", "0"]]
)
async def test_wrong_words(server: Restartable, words: list[str]) -> None:
    done = await torpor(server, *words)
    assert done.code == 125 and done.err.startswith("torpor: ") and "Traceback" not in done.err
