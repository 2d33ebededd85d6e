"""What this machine lacks for networked sandboxes, as errors with the way to mend them. Reads only; decided anew at each call."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from torpor.model.errors import HostError, MissingTool, NoPermission

CAP_NET_ADMIN, CAP_SYS_ADMIN = 12, 21  # linux/capability.h
_SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


def find_tool(name: str) -> str | None:
    """Absolute path of a program, also where PATH lacks the system directories."""
    return shutil.which(name) or shutil.which(name, path=_SYSTEM_PATH)


def faults(tun: Path = Path("/dev/net/tun")) -> Iterator[HostError]:
    """Each reason why mode `on` is not to be had, the gravest first."""
    missing = _missing_capabilities()
    if missing:
        yield NoPermission(f"Sandboxes with a network need root (this process lacks {' and '.join(missing)}).", mend="Run torpor as root, or use --net off.")
    if find_tool("nft") is None:
        yield MissingTool("Sandboxes with a network need nft, which is not installed.", mend="Install it with: apt install nftables")
    if find_tool("nsenter") is None:
        yield MissingTool("Sandboxes with a network need nsenter, which is not installed.", mend="Install it with: apt install util-linux")
    if not tun.exists():
        yield MissingTool(f"Sandboxes with a network need {tun}, which is not there.", mend="Load the kernel module: modprobe tun")
    elif not missing and not os.access("/proc/sys/net/ipv4/ip_forward", os.W_OK):
        yield NoPermission(
            "Sandboxes with a network need a writable /proc/sys/net.",
            mend="In a container, start it with --privileged or mount /proc/sys writable.",
        )


def _missing_capabilities() -> list[str]:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            held = int(line.split()[1], 16)
            return [name for name, bit in (("CAP_NET_ADMIN", CAP_NET_ADMIN), ("CAP_SYS_ADMIN", CAP_SYS_ADMIN)) if not held >> bit & 1]
    return []
