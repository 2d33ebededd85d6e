"""Finds guest RAM in a QEMU process and reads what the kernel says about the process."""

from __future__ import annotations

import os
from pathlib import Path

from torpor.model.errors import GuestLost, VmmError
from torpor.model.snapshots import MemoryRegion
from torpor.ports.vmm import Stats

_TICKS = os.sysconf("SC_CLK_TCK")


def find_region(pid: int, memory_file: Path, size: int) -> MemoryRegion:
    """The mapping of `memory_file`, recognised by its inode, because the path looks different from inside a jail. It may be several adjoining mappings.
    Raises GuestLost when the process is gone, VmmError when nothing of that size is mapped."""
    inode = str(memory_file.stat().st_ino)
    found: list[tuple[int, int]] = []
    try:
        with open(f"/proc/{pid}/maps") as maps:
            for line in maps:
                fields = line.split(maxsplit=5)
                if fields[4] != inode:
                    continue
                start, end = (int(x, 16) for x in fields[0].split("-"))
                if found and found[-1][1] == start:
                    found[-1] = (found[-1][0], end)
                elif int(fields[2], 16) == 0:
                    found.append((start, end))
    except (FileNotFoundError, ProcessLookupError) as error:
        raise GuestLost(f"The VMM process {pid} is gone.") from error
    for start, end in found:
        if end - start == size:
            return MemoryRegion(pid, start, size)
    raise VmmError(f"Process {pid} does not map {size} bytes of {memory_file.name}.")


def read_stats(pid: int) -> Stats:
    """Raises GuestLost when the process is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise GuestLost(f"The VMM process {pid} is gone.") from error
    sizes = {line.split(":")[0]: int(line.split()[1]) << 10 for line in rollup.splitlines()[1:]}
    cpu = (int(stat[11]) + int(stat[12])) / _TICKS
    return Stats(cpu, sizes["Rss"], sizes["Private_Dirty"] + sizes["Private_Clean"])
