"""The code interpreter through the packages that are published for it, unmodified, in microVMs: @e2b/code-interpreter under Node, over names and TLS and over
one plain address, and both versions of wrenn, which speak to it as to a Jupyter server. (The Python package of E2B runs README.md's example.)"""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_world import left
from e2b_sdk_world import addresses
from interpreter_sdk_world import WRENN_VERSIONS, drive_node, drive_wrenn
from up_world import free_port, serving

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1800)]
"""The first run builds the template, and boots it once."""

HOME = "/home/user"


async def test_the_npm_package_over_names_and_tls(interpreter_home: Path) -> None:
    port = free_port()
    domain = f"sbx.localhost:{port}"
    with serving(interpreter_home, "--port", str(port), "--domain", domain, "--tls", "auto"):
        key = (interpreter_home / "first-e2b-key").read_text().strip()
        variables = {"E2B_DOMAIN": domain, "E2B_API_KEY": key, "NODE_EXTRA_CA_CERTS": str(interpreter_home / "tls" / "ca.pem")}
        await drive_node(variables, HOME, "cells", "contexts", "errors", "charts", "streaming", "pausing")
    assert left(interpreter_home) == {}


async def test_the_npm_package_over_one_plain_address(interpreter_home: Path) -> None:
    with serving(interpreter_home, "--port", "0") as url:
        await drive_node(addresses(url, (interpreter_home / "first-e2b-key").read_text().strip()), HOME, "cells", "streaming")
    assert left(interpreter_home) == {}


@pytest.mark.parametrize("version", WRENN_VERSIONS)
async def test_the_code_runner_of_wrenn(interpreter_home: Path, version: str) -> None:
    with serving(interpreter_home, "--port", "0") as url:
        key = (interpreter_home / "first-key").read_text().strip()
        await drive_wrenn(version, url, key, HOME, "cells", "errors", "results", "streaming", "pausing", "asynchronous")
    assert left(interpreter_home) == {}
