"""The published E2B SDKs, unmodified, on the data plane: the real use cases, with a fake host whose guests are the real agent."""

from __future__ import annotations

import pytest
from e2b_sdk_world import PYTHON_VERSIONS
from envd_sdk_world import drive_node, drive_python
from envd_world import EnvdWorld


@pytest.mark.parametrize("version", PYTHON_VERSIONS)
async def test_the_python_sdk_runs_commands(envd: EnvdWorld, version: str) -> None:
    await drive_python(version, envd.url, envd.sandbox, envd.home, "commands", "background", "pty")


@pytest.mark.parametrize("version", PYTHON_VERSIONS)
async def test_the_python_sdk_keeps_files(envd: EnvdWorld, version: str) -> None:
    await drive_python(version, envd.url, envd.sandbox, envd.home, "files", "watching", "signed")


@pytest.mark.parametrize("version", PYTHON_VERSIONS)
async def test_the_asynchronous_python_sdk(envd: EnvdWorld, version: str) -> None:
    await drive_python(version, envd.url, envd.sandbox, envd.home, "asynchronous")


async def test_the_node_sdk(envd: EnvdWorld) -> None:
    await drive_node(envd.url, envd.sandbox, envd.home, "commands", "pty", "files", "watching", "signed")
