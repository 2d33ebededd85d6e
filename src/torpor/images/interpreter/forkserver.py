"""Makes Python kernels by forking: it has imported and exercised what they need.

    in (datagrams):  {"op": "fork", "id", "cwd", "env"} with three descriptors: control socket, stdout, stderr
    out:             {"event": "ready"}   {"event": "forked", "id", "pid"} or {..., "error"}   {"event": "ended", "pid", "status"}

One thread only: a fork copies no other.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import select
import signal
import socket
import sys
import traceback
from typing import Any

from .kernel import Kernel
from .rehearsal import rehearse
from .shell import Shell, make_shell

Json = dict[str, Any]
_LARGEST = 1 << 20


class ForkServer:
    """`socket_` is a SOCK_SEQPACKET to the server; when it ends, so do we."""

    def __init__(self, socket_: socket.socket, shell: Shell, generation: str) -> None:
        self._socket = socket_
        self._shell = shell
        self._generation = generation
        self._woken, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def serve(self) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        self._say({"event": "ready"})
        while True:
            readable, _, _ = select.select([self._socket.fileno(), self._woken], [], [])
            if self._woken in readable:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._woken, 4096)
                self._reap()
            if self._socket.fileno() in readable:
                message, descriptors, _, _ = socket.recv_fds(self._socket, _LARGEST, 3)
                if not message:
                    return
                self._fork(json.loads(message), descriptors)

    def _say(self, event: Json) -> None:
        self._socket.sendall(json.dumps(event).encode())

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                self._say({"event": "ended", "pid": pid, "status": os.waitstatus_to_exitcode(status)})

    def _fork(self, order: Json, descriptors: list[int]) -> None:
        try:
            pid = os.fork()
        except OSError as error:
            self._say({"event": "forked", "id": order["id"], "error": str(error)})
            pid = -1
        if pid == 0:
            self._become_kernel(order, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        if pid > 0:
            self._say({"event": "forked", "id": order["id"], "pid": pid})

    def _become_kernel(self, order: Json, descriptors: list[int]) -> None:
        """Does not return."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for descriptor in (self._socket.detach(), self._woken, self._waker):
                os.close(descriptor)
            os.setsid()
            control, out, err = descriptors
            null = os.open("/dev/null", os.O_RDONLY)
            for source, target in ((null, 0), (out, 1), (err, 2)):
                os.dup2(source, target, inheritable=True)
            for descriptor in (null, out, err):
                os.close(descriptor)
            os.environ.update(order["env"])
            os.chdir(order["cwd"])
            Kernel(self._shell, socket.socket(fileno=control), self._generation).serve()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(BaseException):
                atexit._run_exitfuncs()
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(BaseException):
                    stream.flush()
            os._exit(code)


def main(descriptor: int, generation: str) -> None:
    """The process's whole life. `descriptor` is its end of the socket."""
    path = sys.path.pop(0)  # the user's code must not find our modules; what we need is loaded or found by its package
    shell = make_shell()
    rehearse(shell)
    sys.path[:] = ["", *[entry for entry in sys.path if entry not in ("", path)]]
    gc.collect()
    gc.freeze()
    ForkServer(socket.socket(fileno=descriptor), shell, generation).serve()
