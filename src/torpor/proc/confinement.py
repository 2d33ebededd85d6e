"""What confinement holds here, in words."""

from __future__ import annotations

from collections.abc import Sequence

from torpor.ports.processes import ConfinementCheck

_ROOT = "Run torpor as root."


def checks(mode: str, cgroup_problems: Sequence[str]) -> tuple[ConfinementCheck, ...]:
    """`mode` as the keeper found it: 'root', 'user' (user namespaces) or 'none'."""
    own_uid = mode == "root"
    namespaces = mode != "none"
    return (
        ConfinementCheck(
            "own uid",
            own_uid,
            "each microVM runs under a user id of its own" if own_uid else "microVMs share this user's id",
            "" if own_uid else _ROOT,
        ),
        ConfinementCheck("no new privileges", True, "no_new_privs is set and all capabilities are dropped"),
        ConfinementCheck(
            "namespaces",
            namespaces,
            {"root": "mount, network, pid, ipc, uts", "user": "user, mount, network, pid, ipc, uts"}.get(mode, "this kernel refuses them to this user"),
            "" if namespaces else f"{_ROOT} Or allow unprivileged user namespaces.",
        ),
        ConfinementCheck(
            "cgroup limits",
            not cgroup_problems,
            "memory, cpu and pids are limited" if not cgroup_problems else "; ".join(cgroup_problems),
            "" if not cgroup_problems else f"{_ROOT} Or delegate a cgroup with memory, cpu and pids.",
        ),
    )
