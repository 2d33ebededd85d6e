"""A microVM that may reach one name: it does, and reaches no other by any trick; also after a pause, in a fork, under a new owner, after a change."""

from __future__ import annotations

import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from net_world import PRIVATE, PUBLIC, RESOLVER, World, make_world
from vm_world import clear, python, settings, start
from web_world import HTTP, HTTPS, Web, Zone, closing_all

from torpor.apps.engine import Engine
from torpor.host.agent import CreateSpec
from torpor.host.sandbox import Sandbox
from torpor.model.sandbox import Egress, NetworkMode
from torpor.model.shapes import Shape
from torpor.net.plan import NetworkSettings
from torpor.net.pool import SlotPool

pytestmark = [pytest.mark.vm, pytest.mark.root]

EVERYTHING = ("0.0.0.0/0",)
ALLOWED, EVIL, OTHER = PUBLIC

TRY = """
import json, socket, sys
def attempt(address, port, data, size):
    try:
        if not address[0].isdigit():
            address = socket.getaddrinfo(address, port, socket.AF_INET, socket.SOCK_STREAM)[0][4][0]
        with socket.create_connection((address, port), timeout=20) as peer:
            peer.sendall(data)
            said = b""
            while len(said) < size and (piece := peer.recv(65536)):
                said += piece
            return said.hex()
    except socket.gaierror:
        return "no such name"
    except OSError as error:
        return type(error).__name__
print(json.dumps([attempt(address, port, bytes.fromhex(data), size) for address, port, data, size in json.loads(sys.argv[1])]))
"""
HOLD = """
import os, socket, sys, time
def ask():
    peer.sendall(b"GET / HTTP/1.1\\r\\nHost: allowed.test\\r\\n\\r\\n")
    return peer.recv(1000)
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=60) as peer:
    first = ask()
    os.mkfifo("/root/go")
    open("/root/go").close()
    second = ask()
    with open("/root/held.new", "w") as file:
        file.write(f"{first == second} {second.startswith(b'HTTP/1.1 200')}")
    os.rename("/root/held.new", "/root/held")
"""
GO = """
import os, time
while not os.path.exists("/root/go"):
    time.sleep(0.02)
open("/root/go", "w").close()
while not os.path.exists("/root/held"):
    time.sleep(0.02)
print(open("/root/held").read())
"""


def get(host: str, more: str = "") -> bytes:
    return f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n{more}".encode()


def hello(name: str | None) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    out = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name).do_handshake()
    return out.read()


def tries(name: str, address: str) -> dict[str, tuple[str, int, bytes, int]]:
    """Where to, what to say, how much of an answer to wait for. `name`: the one that is allowed, at `address`."""
    other = EVIL if address != EVIL else ALLOWED
    foreign = "evil.test" if name != "evil.test" else "allowed.test"
    whole = 1 << 20
    return {
        "by name": (name, HTTP, get(name), whole),
        "by name, TLS": (name, HTTPS, hello(name), 6),
        "at a forged address": (other, HTTP, get(name.upper() + "."), whole),
        "another by name": (foreign, HTTP, get(foreign), whole),
        "another's address": (other, HTTP, get(foreign), whole),
        "an address": (other, HTTP, get(other), whole),
        "an odd address": (other, HTTP, get(str(int.from_bytes(bytes(map(int, other.split(".")))))), whole),
        "another Host at the allowed address": (address, HTTP, get(foreign), whole),
        "a second Host": (address, HTTP, get(name).replace(b"Connection: close\r\n", b"") + get(foreign), whole),
        "another SNI": (other, HTTPS, hello(foreign), 7),
        "another SNI at the allowed address": (address, HTTPS, hello(foreign), 7),
        "no SNI": (address, HTTPS, hello(None), 7),
        "a subdomain": (other, HTTP, get(f"www.{name}"), whole),
        "a name that leads inside": (other, HTTP, get("inside.test"), whole),
        "inside": (PRIVATE[0], HTTP, get(name), whole),
    }


def verdicts(name: str, address: str) -> dict[str, str]:
    reached = f"200 {address} "
    said = dict.fromkeys(tries(name, address), "403")
    return said | {
        "by name": reached + name,
        "by name, TLS": "hello",
        "at a forged address": reached + name.upper() + ".",
        "another by name": "no such name",
        "a second Host": "200, then 403",
        "another SNI": "alert 49",
        "another SNI at the allowed address": "alert 49",
        "no SNI": "alert 112",
        "inside": "OSError",
    }


def verdict(said: str) -> str:
    """In short, of what came back."""
    try:
        data = bytes.fromhex(said)
    except ValueError:
        return said
    if data[:1] == b"\x16":
        return "hello"
    if data[:1] == b"\x15":
        return f"alert {data[6]}"
    codes = [part[1:4].decode() for part in data.split(b"HTTP/1.1")[1:]]
    if len(codes) > 1:
        return ", then ".join(codes)
    return codes[0] if codes != ["200"] else "200 " + data.partition(b"\r\n\r\n")[2].decode()


async def check(sandbox: Sandbox, name: str = "allowed.test", address: str = ALLOWED, *, inside: str = "403") -> None:
    wanted = tries(name, address)
    asked = [(where, port, data.hex(), size) for where, port, data, size in wanted.values()]
    said = json.loads(await python(await sandbox.guest(), TRY, json.dumps(asked)))
    assert dict(zip(wanted, map(verdict, said), strict=True)) == verdicts(name, address) | {"a name that leads inside": inside}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    (tmp_path / "resolv.conf").write_text(f"nameserver {RESOLVER}\n")
    with make_world(tmp_path) as made:
        zone = Zone(made.host, RESOLVER, {"allowed.test": [ALLOWED], "evil.test": [EVIL], "www.allowed.test": [OTHER], "inside.test": [PRIVATE[0]]})
        web = Web(made.internet, tmp_path, "allowed.test", "evil.test")
        with closing_all(zone, web):
            yield made


def gates(home: Path) -> set[str]:
    return {gate.name for gate in (home / "run" / "gates").iterdir()}


@contextlib.asynccontextmanager
async def owner(world: World, home: Path) -> AsyncIterator[Engine]:
    engine = Engine(settings(home))
    engine.networks = SlotPool(home, home / "run" / "netns", engine.processes, NetworkSettings(pool=0), resolv_conf=world.scratch / "resolv.conf")
    engine.lock()
    async with engine:
        yield engine


async def test_one_name_and_no_other(world: World, fresh_home: Path) -> None:
    async with owner(world, fresh_home) as engine:
        spec = CreateSpec("minimal", Shape(1, 256, 1024), NetworkMode.ON, egress=Egress(("allowed.test",), EVERYTHING))
        sandbox = await engine.agent.create(spec)
        await check(sandbox)
        (before,) = gates(fresh_home)
        await engine.agent.pause(sandbox.id)
        await engine.agent.resume(sandbox.id)
        (after,) = gates(fresh_home)
        assert after != before, "the gate of the slot that was left is gone"
        await check(sandbox)
        (child,) = await engine.agent.fork(sandbox.id)
        await engine.agent.set_egress(sandbox.id, Egress(("evil.test", "inside.test"), EVERYTHING))
        await check(sandbox, "evil.test", EVIL, inside="502")
        await check(child)
        await engine.agent.set_egress(sandbox.id, Egress(("evil.test",), EVERYTHING))
        await check(sandbox, "evil.test", EVIL)
        await start(await child.guest(), ["python3", "-c", HOLD, EVIL, str(HTTP)])
    async with owner(world, fresh_home) as later:
        try:
            assert await python(await later.agent.get(child.id).guest(), GO) == "True True\n"
            await check(later.agent.get(child.id))
            await check(later.agent.get(sandbox.id), "evil.test", EVIL)
        finally:
            await clear(later)
        assert not gates(fresh_home)
