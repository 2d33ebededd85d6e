"""What the daemon and the keeper say to each other: JSON objects, one per packet of a SOCK_SEQPACKET Unix socket, descriptors beside them.

    daemon -> keeper   {"op": "hello"}
                       {"op": "spawn", "id": N, "name", "argv", "env", "exit_file", "output", "output_limit", "fds": [number in the child, ...],
                        "jail": {...} | null, "leash": pid | null}        + that many descriptors, plus one of the network namespace if jail.netns
                       {"op": "find", "id": N, "name", "pid", "start_time"}
                       {"op": "within", "id": N, "directory"}
    keeper -> daemon   {"op": "hello", "version", "mode": "root" | "user" | "none", "problems": [..], "cgroups": {kind: directory}}
                       {"op": "spawned", "id": N, "pid", "start_time"}    + a pidfd
                       {"op": "failed", "id": N, "step", "errno"}
                       {"op": "found", "id": N, "alive": bool}
                       {"op": "inside", "id": N, "children": [{"name", "pid", "start_time", "exit_file"}, ...]}     whose exit files lie in the directory
                       {"op": "exit", "name", "pid", "start_time", "record": {"code", "signal", "oom"}}     to every connected daemon

VERSION names the socket: a keeper of another version is left to its children. `hello`, `find`, `within` and `exit` never change, so that its
children can be adopted.
"""

from __future__ import annotations

import json
import os
from typing import Any

VERSION = 1
PACKET = 1 << 18
MAX_FDS = 32


def socket_name(version: int = VERSION) -> str:
    return f"keeper-{version}.sock"


def encode(message: dict[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode("utf-8", "surrogateescape")


def decode(packet: bytes) -> dict[str, Any]:
    message = json.loads(packet.decode("utf-8", "surrogateescape"))
    if not isinstance(message, dict):
        raise ValueError("not an object")
    return message


def start_time(pid: int) -> int:
    """Field 22 of /proc/PID/stat: clock ticks from boot to the process's start. Raises FileNotFoundError or ProcessLookupError when it is gone."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[19])


def cgroup_name(home: str, name: str) -> str:
    """Children of several homes share one parent cgroup; the home's identity keeps their names apart."""
    status = os.stat(home)
    return f"{status.st_dev:x}-{status.st_ino:x}-{name}"
