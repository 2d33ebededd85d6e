"""A template's service, with the real agent: started, waited for, and what is said when it does not get ready."""

from __future__ import annotations

import socket
from dataclasses import replace

import pytest
from guest_world import Agent

from torpor.guestlink.guest import RemoteGuest
from torpor.host.services import TAG, exercise_service, start_service
from torpor.model.errors import HostError
from torpor.ports.images import Service


def service(start: str, ready: str, seconds: float = 100.0, exercise: str = "") -> Service:
    return Service(("/bin/sh", "-c", start), ("/bin/sh", "-c", ready), seconds, ("/bin/sh", "-c", exercise) if exercise else ())


async def running(guest: RemoteGuest) -> list[str]:
    return [info.tag for info in await guest.processes() if info.exited is None]


async def test_it_runs_on_once_it_is_ready(agent: Agent, guest: RemoteGuest) -> None:
    there = agent.home / "there"
    await start_service(guest, service(f"touch {there}; exec sleep 1000", f"test -e {there}"), "t")
    assert await running(guest) == [TAG]
    assert len(await guest.processes()) == 1  # what asked whether it is ready is forgotten
    for info in await guest.processes():
        await guest.kill_tree(info.exec_id)


async def test_it_is_asked_again_until_it_is_ready(agent: Agent, guest: RemoteGuest) -> None:
    asked = agent.home / "asked"
    await start_service(guest, service("exec sleep 1000", f"echo x >> {asked}; test $(wc -l < {asked}) -ge 3"), "t")
    assert asked.read_text() == "x\n" * 3
    for info in await guest.processes():
        await guest.kill_tree(info.exec_id)


async def test_one_that_ends_first_is_an_error_with_its_output(guest: RemoteGuest) -> None:
    with pytest.raises(HostError, match=r"template t ended before it was ready \(exit code 3\)\. It said: (no such port\nbye|bye\nno such port)"):
        await start_service(guest, service("echo bye; echo no such port >&2; exit 3", "false"), "t")


async def test_one_that_is_not_ready_in_time_is_an_error_with_its_output(guest: RemoteGuest) -> None:
    with pytest.raises(HostError, match=r"template t was not ready after 1 s\. It said: starting"):
        await start_service(guest, service("echo starting; exec sleep 1000", "false", 1.0), "t")
    for info in await guest.processes():
        await guest.kill_tree(info.exec_id)


async def test_an_exercise_that_fails_is_borne(agent: Agent, guest: RemoteGuest) -> None:
    await exercise_service(guest, service("true", "true", exercise=f"touch {agent.home}/done; false"), "t")
    assert (agent.home / "done").exists()
    assert await guest.processes() == []


async def test_an_exercise_comes_in_where_users_do(guest: RemoteGuest) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        await exercise_service(guest, replace(service("true", "true"), port=port), "t")
        server.accept()[0].close()
    await exercise_service(guest, replace(service("true", "true"), port=port), "t")  # nobody listens: that is borne
