"""Runs the tools that make images, and turns their failures into errors that say what to do."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torpor.model.errors import HostError, MissingTool, NoSpace
from torpor.ports.processes import Completed, Processes

_PACKAGES = {"mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs", "debugfs": "e2fsprogs", "e2fsck": "e2fsprogs"}
_KEPT = ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "HOME", "TMPDIR")
_PATH = os.pathsep.join((os.defpath, "/usr/local/sbin", "/usr/sbin", "/sbin"))
_LAST_LINES = 8


class Tools:
    """The Processes port with an environment that holds what the tools need: a path with the system directories, the C locale, proxies."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes

    @property
    def root(self) -> bool:
        """Whether the tools run as root."""
        return os.geteuid() == 0

    def find(self, name: str) -> str:
        """The tool's path. Raises MissingTool with the package to install."""
        found = shutil.which(name, path=f"{os.environ.get('PATH', '')}{os.pathsep}{_PATH}")
        if found is None:
            raise MissingTool(f"{name} is not installed.", mend=f"Install it: apt-get install {_PACKAGES.get(name, name)}")
        return found

    async def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float,
        env: Mapping[str, str] | None = None,
        on_line: Callable[[bytes], None] | None = None,
        mend: str = "",
        name: str = "",
    ) -> Completed:
        """Runs `argv` to its end. A non-zero exit raises NoSpace if a full disk is why, else HostError with the tool's last lines; `mend` goes with it, and
        `name` names the tool where argv begins with another.
        Raises TimedOut, MissingTool, NoPermission as the port does; when cancelled, the tool is gone."""
        environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
        environment |= {"PATH": f"{os.environ.get('PATH', '')}{os.pathsep}{_PATH}", "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
        done = await self._processes.run(argv, timeout=timeout, env=environment | dict(env or {}), on_line=on_line)
        if done.code != 0:
            raise failure(name or Path(argv[0]).name, done, mend)
        return done


def failure(name: str, done: Completed, mend: str = "") -> HostError:
    """The error for a tool that failed."""
    lines = [line for line in (done.stderr or done.stdout).decode(errors="replace").splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith(("E: ", "W: ", "Err:"))]
    last = "\n".join(dict.fromkeys([*telling[-_LAST_LINES:], *lines[-_LAST_LINES:]]))
    if any("No space left on device" in line or "not enough free space" in line for line in lines):
        return NoSpace(f"The disk was full while {name} ran:\n{last}", mend="Free some space; building needs about 2 GiB in the home.")
    return HostError(f"{name} failed with exit code {done.code}:\n{last}", mend=mend)
