"""The bash kernel: an interactive bash without a terminal, since only an interactive one comes back to its prompt, variables kept, from an interrupt and
from a syntax error.

Its standard input brings one line per cell, which evaluates the code with an empty standard input of its own. Before each prompt it writes the last status
and the number of the last cell to the control socket.
"""

from __future__ import annotations

import base64
import os
import shlex
from collections.abc import Mapping
from typing import Any

from .kernels import Json, Kernel, Sink, start_program

_ARGV = ("/bin/bash", "--noprofile", "--norc", "--noediting", "-i")
_PROMPT = 'printf "%d %d\\n" $? "$__torpor_cell" >&{control}'
_INTERRUPTED = 130


class Bash(Kernel):
    """Variables of one call are unset by the next."""

    def __init__(self, *wired: Any) -> None:
        super().__init__(*wired)
        self._cell = 0
        self._undo = ""

    def encode(self, request: Json) -> bytes:
        env: Mapping[str, str] = request.get("env") or {}
        self._cell += 1
        exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in env.items())
        code = base64.b64encode((self._undo + exports + str(request.get("code", ":"))).encode("utf-8", "surrogateescape")).decode()
        self._undo = "".join(f"unset {name}\n" for name in env)
        # From Python 3 on a number from the host's randomness: $RANDOM would be alike in all clones.
        seed = int.from_bytes(os.urandom(2), "little")
        return f"__torpor_cell={self._cell}; RANDOM={seed}; eval \"$(base64 -d <<< '{code}')\" </dev/null\n".encode()

    async def _write(self, request: Json) -> None:
        await self.type_in(self.encode(request))

    def decode(self, line: bytes) -> list[Json]:
        status, cell = (int(word) for word in line.split())
        if cell != self._cell:
            return []  # the prompt after an interrupt that came too late for its cell
        done: Json = {"event": "done", "ok": status == 0}
        if status == 0:
            return [done]
        if status == _INTERRUPTED:
            return [{"event": "error", "name": "KeyboardInterrupt", "value": "", "traceback": []}, done]
        return [{"event": "error", "name": "ExitError", "value": f"exit status {status}", "traceback": []}, done]


async def start_bash(cwd: str, env: Mapping[str, str], background: Sink) -> Kernel:
    """Raises KernelFailedError, Ended."""
    ours = {"PS1": "", "PS2": "", "PROMPT_COMMAND": _PROMPT, "__torpor_cell": "0"}
    kernel = await start_program(_ARGV, cwd, {**env, **ours}, background, Bash)
    await kernel.ask({"op": "run", "code": "export -n PS1 PS2 PROMPT_COMMAND __torpor_cell"}, None)
    return kernel
