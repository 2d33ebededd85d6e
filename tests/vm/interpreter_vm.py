"""A sandbox of the code interpreter's template, spoken to on its ports over the guest channel, without an SDK or a proxy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import h11

from torpor.ports.guest import Guest

PORT = 49999


async def request(guest: Guest, method: str, path: str, body: Mapping[str, object] | None = None) -> tuple[int, bytes]:
    """One exchange on a connection of its own."""
    stream = await guest.connect(PORT)
    try:
        content = b"" if body is None else json.dumps(body).encode()
        headers = [("Host", "guest"), ("Content-Type", "application/json"), ("Content-Length", str(len(content)))]
        ours = h11.Connection(h11.CLIENT)
        sent = [ours.send(h11.Request(method=method, target=path, headers=headers)), ours.send(h11.Data(content)), ours.send(h11.EndOfMessage())]
        await stream.write(b"".join(piece or b"" for piece in sent))
        status, received = 0, b""
        while True:
            event = ours.next_event()
            if event is h11.NEED_DATA:
                ours.receive_data(await stream.read())
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                received += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return status, received
    finally:
        stream.close()


async def run_code(guest: Guest, code: str, **fields: object) -> list[dict[str, Any]]:
    """The lines of one cell."""
    status, body = await request(guest, "POST", "/execute", {"code": code, **fields})
    assert status == 200, body
    return [json.loads(line) for line in body.splitlines()]


async def text(guest: Guest, code: str, **fields: object) -> str:
    """The value of a cell's last expression, or what it printed. It must not fail."""
    lines = await run_code(guest, code, **fields)
    assert "error" not in {line["type"] for line in lines}, lines
    values = [line["text"] for line in lines if line.get("is_main_result")]
    return str(values[0]) if values else "".join(line["text"] for line in lines if line["type"] == "stdout")
