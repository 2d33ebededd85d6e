"""E2B's Python SDK against a real server: create to first command beside torpor.client, and the first cell of a code interpreter beside the tenth. The SDK
runs in a process of its own, with the published package of the version named here."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from pathlib import Path

from serving import Refused
from stage import Stage

sys.path.append(str(Path(__file__).parents[2] / "tests"))
import published

PACKAGE = "e2b-code-interpreter==2.11.5"
"""With the `e2b` that it asks for."""
PROGRAM = Path(__file__).parents[1] / "programs" / "sdk.py"
CELLS = 10
PAUSE = 4.0
"""Seconds between two sandboxes from the pool."""


async def measure(stage: Stage) -> None:
    """Without a pool, then with the pool that a server has by default."""
    folder = await asyncio.to_thread(published.from_pypi, f"bench-{PACKAGE}", PACKAGE)
    rounds = stage.counts.idle // 2
    await _rounds(stage, folder, "e_first_result", [str(rounds), str(CELLS)], TORPOR_POOL_SIZE="0")
    await _rounds(stage, folder, "e_cell_pooled", [str(rounds), str(CELLS), str(PAUSE)])


async def _rounds(stage: Stage, folder: Path, key: str, arguments: list[str], **settings: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        domain = f"sbx.localhost:{free.getsockname()[1]}"  # the code interpreter's SDK goes by names and TLS alone
    settings |= {"TORPOR_PORT": domain.partition(":")[2], "TORPOR_DOMAIN": domain, "TORPOR_TLS": "auto"}
    async with stage.attempt(key), stage.server(**settings) as server:
        stage.say(f"rounds through E2B's SDK: {' '.join(arguments)}")
        authority = str(stage.home / "tls" / "ca.pem")
        theirs = {"E2B_DOMAIN": domain, "E2B_API_KEY": (stage.home / "first-e2b-key").read_text().strip(), "SSL_CERT_FILE": authority}
        ours = {"TORPOR_URL": f"https://api.{domain}", "TORPOR_API_KEY": server.key, "TORPOR_CA_FILE": authority}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "ignore", str(PROGRAM), *arguments),
            env=published.environment(PYTHONPATH=str(folder), **theirs, **ours),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        said, wrong = await process.communicate()
        for line in said.splitlines():
            sample = json.loads(line)
            stage.samples.add(sample["key"], sample["engine"], floor=sample["floor"])
        if process.returncode:
            raise Refused(f"The program ended with {process.returncode}: {wrong.decode()[-2000:]}")
