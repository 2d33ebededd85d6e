"""The server's own matters: where it may listen, whom it tells the first key, how it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
from pathlib import Path

import httpx
import pytest
import websockets
from fastapi import FastAPI, WebSocket

from torpor.apps import serve
from torpor.apps.serve import Listening, hand_over, host_id, listen
from torpor.model.errors import InvalidInput, NoPermission
from torpor.model.sandbox import check_id
from torpor.service.first import FirstStart


@pytest.mark.parametrize(
    ("where", "allowed"),
    [
        (Listening("127.0.0.1", 1), True),
        (Listening("127.8.9.1", 1), True),
        (Listening("::1", 1), True),
        (Listening("localhost", 1), True),
        (Listening("0.0.0.0", 1), False),
        (Listening("::", 1), False),
        (Listening("10.0.0.1", 1), False),
        (Listening("example.com", 1), False),
        (Listening("0.0.0.0", 1, insecure=True), True),
        (Listening("0.0.0.0", 1, "cert.pem", "key.pem"), True),
        (Listening("0.0.0.0", 1, "cert.pem"), False),
        (Listening("127.0.0.1", 1, private_key="key.pem"), False),
    ],
)
def test_beyond_this_machine_only_with_tls_or_on_purpose(where: Listening, allowed: bool) -> None:
    if allowed:
        where.check()
    else:
        with pytest.raises(InvalidInput):
            where.check()


def test_addresses_are_shown_as_one_can_use_them() -> None:
    assert Listening("::1", 0).url(7) == "http://[::1]:7"
    assert Listening("127.0.0.1", 0, "c", "k").url(7) == "https://127.0.0.1:7"


def test_addresses_that_cannot_be_served_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with listen(Listening("127.0.0.1", 0)) as taken:
        with pytest.raises(InvalidInput, match="in use"):
            listen(Listening("127.0.0.1", taken.getsockname()[1]))
    with pytest.raises(InvalidInput):
        listen(Listening("192.0.2.1", 0))
    with pytest.raises(InvalidInput):
        listen(Listening("no.such.name.invalid", 0))

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(NoPermission):
        listen(Listening("127.0.0.1", 80))


def test_connections_answer_without_waiting_for_more() -> None:
    """What asyncio looks at before it switches Nagle's algorithm off for a connection."""
    with listen(Listening("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.proto == socket.IPPROTO_TCP


FIRST = FirstStart("t", "trp_secret", "admin@localhost", "hush-word", "e2b_secret")


def test_the_first_key_and_password_go_to_a_terminal_or_into_files_of_the_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    hand_over(FIRST, tmp_path, said.append)
    assert "trp_secret" in said[0]
    assert "e2b_secret" in said[1]
    assert "admin@localhost" in said[2] and "hush-word" in said[2]
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    (tmp_path / "first-key").touch(mode=0o644)
    said.clear()
    hand_over(FIRST, tmp_path, said.append)
    assert "secret" not in "".join(said) and "hush-word" not in "".join(said)
    for name, secret in (("first-key", "trp_secret\n"), ("first-e2b-key", "e2b_secret\n"), ("first-password", "hush-word\n")):
        assert (tmp_path / name).read_text() == secret
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


def test_an_installation_that_had_teams_is_told_of_its_administrator_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    hand_over(FirstStart("", "", "admin@localhost", "hush-word"), tmp_path, print)
    assert [file.name for file in tmp_path.iterdir()] == ["first-password"]


def test_a_link_in_the_keys_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "first-key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError):
        hand_over(FIRST, tmp_path, print)
    assert not (tmp_path / "elsewhere").exists()


def test_a_home_keeps_its_name(tmp_path: Path) -> None:
    name = host_id(tmp_path)
    assert check_id(name) == name
    assert host_id(tmp_path) == name
    (tmp_path / "other").mkdir()
    assert host_id(tmp_path / "other") != name


async def test_a_signal_ends_it_after_what_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that takes its time is answered; a WebSocket is closed with 1012; new connections are refused."""
    monkeypatch.setattr(serve, "GRACE_SECONDS", 30)
    app, begun, finish, ready = FastAPI(), asyncio.Event(), asyncio.Event(), asyncio.Event()
    app.state.stopping = asyncio.Event()

    @app.get("/slow")
    async def slow() -> str:
        begun.set()
        await finish.wait()
        return "done"

    @app.websocket("/socket")
    async def open_socket(socket: WebSocket) -> None:
        await socket.accept()
        await socket.receive()

    with listen(Listening("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        running = asyncio.create_task(serve.run(app, listener, Listening("127.0.0.1", port), ready.set))
        await ready.wait()
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client, websockets.connect(f"ws://127.0.0.1:{port}/socket") as opened:
            asking = asyncio.create_task(client.get("/slow"))
            await begun.wait()
            os.kill(os.getpid(), signal.SIGTERM)
            with pytest.raises(websockets.ConnectionClosed):
                await opened.recv()
            assert opened.close_code == 1012
            assert app.state.stopping.is_set()
            finish.set()
            assert (await asking).json() == "done"
        await running
    with pytest.raises(OSError):
        await asyncio.open_connection("127.0.0.1", port)
