"""`torpor serve` on a home whose disk can be filled, whose microVMs can be killed and frozen; and what is really there, to compare with the records."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from cli_world import cgroups, left, mark, vmms
from serve_world import Client, Server, Unanswered, client_of, serving

from torpor.model.records import SandboxState

SHAPE = {"template": "minimal", "memory_mb": 256, "disk_size_mb": 1024}
SETTLED_SECONDS = 240.0
"""What anything may take to come to rest before it counts as stuck: no transient state lasts longer than its deadline."""
LIVE = ("running", "paused")
_EVERYTHING = "6g"


class Chaos:
    """One server, over all its deaths, and the levers of the nemesis."""

    def __init__(self, home: Path, server: Server, client: Client) -> None:
        self.home = home
        self.server = server
        self.client = client
        self.frozen: set[int] = set()

    # --- levers

    def pid_of(self, capsule: str) -> int | None:
        """The VMM of a running one, as the host's own record leads to it."""
        for record in (self.home / "sandboxes").glob("*/record.json"):
            try:
                found = json.loads(record.read_text())["sandbox"]
            except (OSError, ValueError):  # being written, or removed
                continue
            if found["sandbox_id"] == capsule.removeprefix("cl-"):
                return _process_of(self.home, found["id"])
        return None

    def kill_vmm(self, capsule: str) -> bool:
        pid = self.pid_of(capsule)
        if pid is None:
            return False
        self.frozen.discard(pid)
        os.kill(pid, signal.SIGKILL)
        return True

    def freeze(self, capsule: str) -> bool:
        pid = self.pid_of(capsule)
        if pid is None:
            return False
        os.kill(pid, signal.SIGSTOP)
        self.frozen.add(pid)
        return True

    def thaw(self) -> None:
        for pid in self.frozen:
            try:
                os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                continue
        self.frozen.clear()

    def fill_disk(self, spare_mib: int) -> None:
        """Leaves so much room. The file system shrinks to what is used: nothing has to be written for it."""
        for grown in range(8):  # what is written between the look and the change must fit as well
            used = os.statvfs(self.home)
            bytes_used = (used.f_blocks - used.f_bfree) * used.f_frsize
            if self._resize(f"{(bytes_used >> 20) + 1 + spare_mib + grown}m"):
                return
        raise AssertionError("the file system cannot be made that small")

    def empty_disk(self) -> None:
        assert self._resize(_EVERYTHING)

    def _resize(self, size: str) -> bool:
        return subprocess.run(["mount", "-o", f"remount,size={size}", self.home], check=False, capture_output=True).returncode == 0

    # --- looking

    async def get(self, capsule: str) -> dict[str, Any]:
        answer = await self.client.surely("GET", f"/v1/capsules/{capsule}")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def all(self) -> dict[str, dict[str, Any]]:
        """Everything on record, in any state."""
        states = "&".join(f"state={each.value}" for each in SandboxState)
        answer = await self.client.surely("GET", f"/v1/capsules?{states}&limit=1000")
        assert answer.status_code == 200, answer.text
        assert "x-next-cursor" not in answer.headers
        return {each["id"]: each for each in answer.json()}

    async def rest(self) -> dict[str, dict[str, Any]]:
        """What is on record when nothing is under way any more (T2). Raises AssertionError when something is stuck."""
        until = time.monotonic() + SETTLED_SECONDS
        while True:
            found = await self.all()
            under_way = {name: each for name, each in found.items() if "operation" in each or each["state"] not in ("running", "paused", "stopped", "error")}
            if not under_way:
                return found
            assert time.monotonic() < until, f"stuck: {under_way}"
            await asyncio.sleep(0.05)

    async def check(self) -> dict[str, dict[str, Any]]:
        """Records equal reality (T3): processes, cgroups, directories and disks are those of the records, no more and no fewer. What is found is compared
        until it agrees: the host clears up after an end that is on record already."""
        until = time.monotonic() + SETTLED_SECONDS
        while True:
            found = await self.rest()
            running = {name for name, each in found.items() if each["state"] == "running"}
            kept = {name for name, each in found.items() if each["state"] in LIVE}
            differs = self._differences(running, kept)
            if not differs:
                return found
            if time.monotonic() > until:
                raise AssertionError(f"records and reality differ: {differs}; on record { ({name: each['state'] for name, each in found.items()}) }")
            await asyncio.sleep(0.1)

    def _differences(self, running: set[str], kept: set[str]) -> dict[str, Any]:
        held = {}
        for record in (self.home / "sandboxes").glob("*/record.json"):
            try:
                one = json.loads(record.read_text())["sandbox"]
            except (OSError, ValueError):
                return {"record": str(record)}
            held[one["id"]] = f"cl-{one['sandbox_id']}"
        there = {"directories": sorted(path.name for path in (self.home / "sandboxes").iterdir())}
        real = left(self.home)
        wanted: dict[str, Any] = {
            "held": (sorted(held.values()), sorted(kept)),
            "directories": (there["directories"], sorted(held)),
            "processes": (len(vmms(self.home)), len(running)),
            "cgroups": (len(cgroups(self.home)), len(running)),
            "boots": (real.get("boots", []), []),
            "staging": (real.get("staging", []), []),
        }
        if not kept:
            wanted["store"] = (real.get("store", []), [])
        return {name: pair for name, pair in wanted.items() if pair[0] != pair[1]}

    # --- ends

    async def clear(self) -> None:
        """Nothing of ours is left, and nothing of it on this machine."""
        self.thaw()
        self.empty_disk()
        for name in (name for name, each in (await self.all()).items() if each["state"] not in ("stopped", "error")):
            answer = await self.client.surely("DELETE", f"/v1/capsules/{name}", headers={"Prefer": "wait=120"})
            assert answer.status_code == 204, answer.text
        for each in (await self.client.surely("GET", "/v1/snapshots?type=snapshot")).json():
            answer = await self.client.surely("DELETE", f"/v1/snapshots/{each['name']}")
            assert answer.status_code in (204, 404), answer.text
        await self.check()


def _process_of(home: Path, machine: str) -> int | None:
    for entry in Path("/proc").iterdir():
        try:
            name = (entry / "cmdline").read_bytes().split(b"\0")[0]
            cgroup = (entry / "cgroup").read_text()
        except (FileNotFoundError, ProcessLookupError, NotADirectoryError):
            continue
        if b"qemu-system" in name and f"/torpor/{mark(home)}{machine}" in cgroup:
            return int(entry.name)
    return None


@asynccontextmanager
async def chaos_on(home: Path) -> AsyncIterator[Chaos]:
    async with serving(home) as server, client_of(server) as client:
        chaos = Chaos(home, server, client)
        try:
            yield chaos
        finally:
            chaos.thaw()
            chaos.empty_disk()


def failed_honestly(answer: httpx.Response) -> str:
    """The reason of a typed refusal or failure; anything else is a bug."""
    error = answer.json()["error"]
    assert error["code"] and error["request_id"] and error["message"], answer.text
    assert answer.status_code != 500, answer.text
    if answer.status_code in (429, 503):
        assert int(answer.headers["retry-after"]) >= 1
    return str(error["reason"])


__all__ = ["LIVE", "SHAPE", "Chaos", "Unanswered", "chaos_on", "failed_honestly"]
