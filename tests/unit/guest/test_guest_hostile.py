"""The agent under a host that breaks every rule: it never ends, never speaks nonsense back, and serves the next hello."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest
from guest_world import SOURCE, Agent
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from torpor.wire import guest as wire

chunk = st.one_of(
    st.binary(max_size=200),
    st.just(wire.MAGIC),
    st.builds(
        wire.encode,
        st.integers(0, 15),
        st.integers(0, 40),
        st.integers(0, 1),
        st.integers(0, 300_000),
        st.one_of(
            st.binary(max_size=100),
            st.sampled_from(
                [
                    b"{}",
                    b"[]",
                    b'{"versions":[1]}',
                    b'{"versions":[1],"link":1}',
                    b'{"op":"exec","argv":["true"]}',
                    b'{"op":"exec","argv":["cat"],"stdin":true,"terminal":[1,"x"]}',
                    b'{"op":"exec","argv":[1],"env":[]}',
                    b'{"op":"read","path":"/etc/passwd","offset":"x"}',
                    b'{"op":"write","path":"/nowhere/x","make_parents":false}',
                    b'{"op":"list","path":"/etc","depth":-1}',
                    b'{"op":"connect","port":"none"}',
                    b'{"op":"watch","path":"/tmp"}',
                    b'{"op":"kill","exec_id":["p1"]}',
                    b'{"op":"processes","done":[1,"x",{}]}',
                    b'{"op":null}',
                    b'{"done":7}',
                    wire.WINDOW_PAIR.pack(0, 100),
                    wire.WINDOW_PAIR.pack(1 << 60, 1),
                ]
            ),
        ),
        st.integers(0, 1),
    ),
)


def hello(connection: socket.socket, nonce: int) -> None:
    connection.sendall(wire.encode(wire.HELLO, 0, 0, nonce, wire.to_json({"versions": [1], "link": nonce})))


def welcome(connection: socket.socket, nonce: int) -> None:
    reader = wire.FrameReader(lambda header: header.type == wire.WELCOME and header.offset == nonce, watchful=False)
    while True:
        data = connection.recv(4096)
        assert data, "the agent closed the connection"
        reader.space()[: len(data)] = data
        if reader.feed(len(data)):
            return


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chunks=st.lists(chunk, max_size=12), greet=st.booleans())
def test_garbage_does_not_harm_the_agent(agent: Agent, chunks: list[bytes], greet: bool) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(100)
        connection.connect(str(agent.socket))
        if greet:
            hello(connection, 1)
            welcome(connection, 1)
        for piece in chunks:
            connection.sendall(piece)
        hello(connection, 99)
        welcome(connection, 99)


@pytest.mark.parametrize("python", [sys.executable])
def test_the_agent_imports_nothing_but_the_standard_library_and_its_own(python: str) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import torpor.guest.main; "
        "print(*sorted(n for n in sys.modules if n.split('.')[0] not in sys.stdlib_module_names and n != '__main__'))"
    )
    out = subprocess.run([python, "-I", "-S", "-B", "-c", code, str(SOURCE)], check=True, capture_output=True, text=True).stdout
    foreign = [name for name in out.split() if not name.startswith(("torpor.guest", "torpor.wire"))]
    assert foreign == ["torpor"]
