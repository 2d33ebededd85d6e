"""The OpenAPI file drives requests of its own, with and without a key: no crash, no status, type or shape that it does not name."""

from __future__ import annotations

import os
import subprocess
import sys
from asyncio import to_thread
from pathlib import Path

import pytest
from people_world import login
from plane_world import Plane

from patience import PATIENCE

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")
UNBOUNDED = ("/v1/events/stream", "/v1/capsules/{capsule_id}/files/watch")
"""Streams without end, which other tests follow."""
ENDS_IT = ("/v1/auth/logout",)
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,response_headers_conformance,unsupported_method"


@pytest.mark.timeout(PATIENCE * 9)
@pytest.mark.parametrize("who", ["nobody", "a key", "an administrator"])
async def test_every_operation_keeps_to_the_document(plane: Plane, who: str, tmp_path: Path) -> None:
    (tmp_path / "schemathesis.toml").write_text("")
    credential = {"a key": f"X-API-Key: {plane.key}", "an administrator": f"Authorization: Bearer {(await login(plane)).token}"}.get(who)
    options = ["--header", credential, "--checks", CHECKS] if credential else ["--checks", f"{CHECKS},ignored_auth"]
    excluded = [word for path in (*UNBOUNDED, *ENDS_IT) for word in ("--exclude-path", path)]
    phases = "examples,coverage,fuzzing" if credential else "examples,coverage"  # without a key chance meets nothing but 401
    bounds = ["--phases", phases, "--max-examples", "5", "--generation-deterministic", "--request-timeout", str(PATIENCE), "--suppress-health-check", "all"]
    ran = await to_thread(
        subprocess.run,
        [str(SCHEMATHESIS), "run", f"{plane.url}/openapi.json", *bounds, *excluded, *options, "--no-color"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=PATIENCE * 8,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout.decode()[-20_000:]
