"""A live agent on this host: its real code in a process of its own, over a unix socket, as the present user."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Iterator

import pytest
from guest_world import SOURCE, Agent, Cutter

from torpor.guestlink.guest import RemoteGuest
from torpor.guestlink.link import Link

_START = "import sys; sys.path.insert(0, sys.argv.pop(1)); from torpor.guest.main import serve_socket; serve_socket(*sys.argv[1:])"


@pytest.fixture
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    home = tmp_path_factory.mktemp("guest")
    path = home.parent / f"{home.name}.sock"
    argv = [sys.executable, "-I", "-S", "-B", "-c", _START, str(SOURCE), str(path), "root", str(home)]
    with subprocess.Popen(argv, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == b"torpor: agent ready\n"
        agent = Agent(path, home, process)
        yield agent
        died = process.poll() is not None
        process.kill()
        complaints = process.stderr.read().decode()
    assert died == agent.may_die, complaints
    assert complaints == ""


@pytest.fixture
async def guest(agent: Agent) -> AsyncIterator[RemoteGuest]:
    session = await Link().connect(agent.socket, generation=None, timeout=100)
    yield session
    await session.close()


@pytest.fixture
async def cutter(agent: Agent) -> AsyncIterator[Cutter]:
    proxy = Cutter(agent.socket, agent.socket.with_suffix(".cut"))
    await proxy.serve()
    yield proxy
    await proxy.close()
