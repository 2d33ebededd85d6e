"""The port proxy of `torpor serve` to a web server in a real microVM: by name, by path, with a signed address; through a pause, and to the sandbox's end."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import httpx
import pytest
from cli_world import end, left, served, started

pytestmark = pytest.mark.vm
SERVER = "cd /tmp && mkdir -p site && cd site && echo hello > index.html && exec python3 -u -m http.server 8000 --bind 127.0.0.1"
ENDLESS = """
import socket
server = socket.create_server(("::1", 8001), family=socket.AF_INET6)
while True:
    connection, _ = server.accept()
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\\r\\n\\r\\nbegun")
"""


async def test_ports_of_a_real_microvm(fresh_home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        own_port = free.getsockname()[1]
    with started(fresh_home, "serve", "--port", "0", "--proxy-port", str(own_port)) as process:
        url = await asyncio.to_thread(served, process)
        key = {"X-API-Key": (fresh_home / "first-key").read_text().strip()}
        async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as client:
            made = await client.post("/v1/capsules", headers=key, json={"template": "base", "auto_resume": True})
            capsule = made.json()["id"]
            for command in (["sh", "-c", SERVER], ["python3", "-c", ENDLESS]):
                body = {"cmd": command[0], "args": command[1:], "background": True}
                assert (await client.post(f"/v1/capsules/{capsule}/exec", headers=key, json=body)).status_code == 202
            by_name = {"Host": f"8000-{capsule}.localhost"}
            while (answer := await client.get("/", headers=by_name | key)).status_code == 502:
                assert "Nothing listens" in answer.text
            assert (answer.status_code, answer.text) == (200, "hello\n")
            assert (await client.get("/", headers=by_name)).status_code == 404
            signed = (await client.post(f"/v1/capsules/{capsule}/ports/8000/url", headers=key, json={"expires_in": 600})).json()["url"]
            assert signed.startswith(f"http://127.0.0.1:{own_port}/{capsule}/8000/?")
            assert (await client.get(signed)).text == "hello\n"
            assert (await client.post(f"/v1/capsules/{capsule}/pause", headers=key)).json()["state"] == "paused"
            assert (await client.get("/", headers=by_name)).status_code == 404
            assert (await client.get(f"/v1/capsules/{capsule}", headers=key)).json()["state"] == "paused"
            assert (await client.get("/", headers=by_name | key)).text == "hello\n"
            async with client.stream("GET", "/", headers={"Host": f"8001-{capsule}.localhost"} | key) as stream:
                pieces = stream.aiter_raw()
                assert await anext(pieces) == b"begun"
                assert (await client.delete(f"/v1/capsules/{capsule}", headers=key)).status_code == 204
                with pytest.raises(httpx.ReadError):
                    await anext(pieces)
            assert (await client.get("/", headers=by_name | key)).status_code == 409
        assert await asyncio.to_thread(end, process) == 0
    assert left(fresh_home) == {}
