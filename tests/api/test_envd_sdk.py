"""The published E2B SDKs, unmodified, on the data plane: the real use cases, with a fake host whose guests are the real agent."""

from __future__ import annotations

import pytest
from envd_sdk_world import drive_node, drive_python
from envd_world import EnvdWorld

PYTHON = ["2.45.1", "2.63.0"]
NODE = "2.51.0"


@pytest.mark.parametrize("version", PYTHON)
async def test_the_python_sdk_runs_commands(envd: EnvdWorld, version: str) -> None:
    await drive_python(version, envd.url, envd.sandbox, envd.home, "commands", "background", "pty")


@pytest.mark.parametrize("version", PYTHON)
async def test_the_python_sdk_keeps_files(envd: EnvdWorld, version: str) -> None:
    await drive_python(version, envd.url, envd.sandbox, envd.home, "files", "watching", "signed")


@pytest.mark.parametrize("version", PYTHON)
async def test_the_asynchronous_python_sdk(envd: EnvdWorld, version: str) -> None:
    await drive_python(version, envd.url, envd.sandbox, envd.home, "asynchronous")


async def test_the_node_sdk(envd: EnvdWorld) -> None:
    await drive_node(NODE, envd.url, envd.sandbox, envd.home, "commands", "pty", "files", "watching", "signed")
