"""E2B's Python SDK against a real server: create to first command beside torpor.client, and the first cell of a code interpreter beside the tenth. The SDK
runs in a process of its own, with the published packages of the versions named here."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from serving import Refused
from stage import Stage

sys.path.append(str(Path(__file__).parents[2] / "tests"))
import published

PACKAGES = ("e2b==2.45.1", "e2b-code-interpreter==2.11.5")
PROGRAM = Path(__file__).parents[1] / "programs" / "sdk.py"
CELLS = 10


async def measure(stage: Stage) -> None:
    folder = await asyncio.to_thread(published.from_pypi, "bench-" + "-".join(PACKAGES).replace("==", "-"), *PACKAGES)
    rounds = stage.counts.idle // 2
    async with stage.attempt("e_first_result"), stage.server(TORPOR_POOL_SIZE="0") as server:
        stage.say(f"{rounds} rounds through E2B's SDK")
        key = (stage.home / "first-e2b-key").read_text().strip()
        variables = {"E2B_API_URL": server.url, "E2B_SANDBOX_URL": server.url, "E2B_API_KEY": key, "TORPOR_URL": server.url, "TORPOR_API_KEY": server.key}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "ignore", str(PROGRAM), str(rounds), str(CELLS)),
            env=published.environment(PYTHONPATH=str(folder), **variables),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        said, wrong = await process.communicate()
        for line in said.splitlines():
            sample = json.loads(line)
            stage.samples.add(sample["key"], sample["engine"], floor=sample["floor"])
        if process.returncode:
            raise Refused(f"The program ended with {process.returncode}: {wrong.decode()[-2000:]}")
