"""Programs that write in a guest while it is paused, resumed, forked: an fsync writer, an mmap writer, a tmpfs writer, one in private memory. What they wrote
is verified from inside."""

from __future__ import annotations

import json
from pathlib import Path

from vm_world import python, read, run, start

from torpor.ports.guest import Guest

PROGRAMS = Path(__file__).parent / "programs"
KINDS = ("fsync", "mmap", "tmpfs", "memory")
HOOK = """#!/bin/sh
mkdir -p /run/exact && exec python3 /root/verify.py --frozen > /run/exact/$TORPOR_GENERATION
"""


async def install(guest: Guest, *, hook: bool = False) -> None:
    """`hook`: a digest of everything is taken at each wake, before any user process runs on."""
    for name in ("writer.py", "verify.py"):
        await guest.write_file(f"/root/{name}", (PROGRAMS / name).read_bytes(), user="root", sync=True)
    if hook:
        await guest.write_file("/etc/torpor/wake.d/exact", HOOK.encode(), mode=0o755, user="root")
        await python(guest, "import sys; sys.path.insert(0, '/root'); import writer; import verify")


async def start_writers(guest: Guest) -> None:
    for kind in KINDS:
        await start(guest, ["python3", "/root/writer.py", kind], user="root", tag=f"writer {kind}")


async def verify(guest: Guest, steps: int = 20) -> dict[str, int]:
    """Waits until each writer has made `steps` more, then checks everything. Returns how much each has acknowledged in all."""
    writers = [process for process in await guest.processes() if process.tag.startswith("writer ")]
    assert [process.exited for process in writers] == [None] * len(KINDS), writers
    result = await run(guest, "python3", "/root/verify.py", str(steps), *(str(process.pid) for process in writers), user="root")
    assert result.ok, result
    return dict(json.loads(result.out))


async def state_at_wake(guest: Guest) -> str:
    """What the hook saw when this life began: counts and a digest of disk, page cache and tmpfs."""
    return (await read(guest, f"/run/exact/{guest.generation}")).decode()
