"""docs/client.md: its examples, and that it names what there is."""

from __future__ import annotations

import asyncio
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from client_world import Restartable

import torpor.client
from listings import CLIENT_SAYS, ROOT, client_program
from published import environment

PAGE = (ROOT / "docs" / "client.md").read_text()
TABLE = re.findall(r"^\| (`client\.[^|]*|a sandbox|`sandbox\.[^|]*) \| (.*) \|$", PAGE, re.MULTILINE)
KINDS = {
    "client.sandboxes": "AsyncSandboxes",
    "a sandbox": "AsyncSandbox",
    "sandbox.commands": "AsyncCommands",
    "sandbox.terminals": "AsyncTerminals",
    "sandbox.files": "AsyncFiles",
}


async def test_the_examples(server: Restartable, tmp_path: Path) -> None:
    program = tmp_path / "example.py"
    program.write_text(client_program())
    variables = environment(TORPOR_URL=server.url, TORPOR_API_KEY=server.key)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", str(program), env=variables, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    said, complaints = await process.communicate()
    assert (process.returncode, said.decode(), complaints.decode()) == (0, CLIENT_SAYS, "")


@pytest.mark.parametrize(("what", "named"), [pair for pair in TABLE if pair[0].strip("`") in KINDS], ids=lambda text: text[:20])
def test_the_table_names_every_method(what: str, named: str) -> None:
    kind: Any = getattr(torpor.client, KINDS[what.strip("`")])
    methods = {name for name, member in vars(kind).items() if inspect.isfunction(member) and not name.startswith("_")}
    words = set(re.findall(r"`([a-z_]+)`", named)) - {"details"}
    assert words == methods


def test_the_table_is_read() -> None:
    assert {what.strip("`") for what, _ in TABLE} >= set(KINDS)
