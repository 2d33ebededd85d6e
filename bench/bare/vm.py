"""Bare QEMU by QMP: boot, restore, pause. As lean as it gets; nothing of torpor is imported.

A restore has no round trip in it: both sockets listen before QEMU starts, so the commands and the first ping are written at once and the only thing waited for
is the guest's answer.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bare import memory

COMMAND_LINE = "console=ttyS0 quiet reboot=t panic=-1 mitigations=off tsc=reliable init_on_free=1"


def command_line() -> str:
    """With the frequency of the time stamp counter: on a busy machine the guest's own calibration against the emulated PIT fails, and the kernel then waits for
    ever in its delay loop. A frequency read off by some per cent only makes the guest's clock run so much wrong."""
    with open("/proc/cpuinfo") as cpuinfo:
        mhz = next(float(line.split(":")[1]) for line in cpuinfo if line.startswith("cpu MHz"))
    return f"{COMMAND_LINE} tsc_early_khz={mhz * 1000:.0f}"


@dataclass(frozen=True)
class Parts:
    """What VMs are made of. `mem`, `state` and `disk` are the saved machine; `overlay` an empty overlay on `disk`, copied for each VM."""

    kernel: Path
    initrd: Path
    mem: Path
    state: Path
    disk: Path
    overlay: Path
    mib: int


class Lines:
    """JSON lines over a socket."""

    def __init__(self, stream: socket.socket) -> None:
        self.socket = stream
        self._file = stream.makefile("rb")

    def send(self, *messages: dict[str, Any]) -> None:
        self.socket.sendall(b"".join(json.dumps(message).encode() + b"\n" for message in messages))

    def receive(self) -> dict[str, Any]:
        line = self._file.readline()
        if not line:
            raise EOFError("the other end is gone")
        return json.loads(line)  # type: ignore[no-any-return]

    def read(self, count: int, into: memoryview) -> None:
        """Takes `count` raw bytes; `into` is scratch space."""
        while count:
            count -= self._file.readinto(into[: min(count, len(into))])


def command(name: str, **arguments: Any) -> dict[str, Any]:
    return {"execute": name, "arguments": arguments} if arguments else {"execute": name}


class Vm:
    """One QEMU. Made running or, with `incoming`, waiting for `load`. `share`: guest memory is written to the file itself."""

    def __init__(self, parts: Parts, directory: Path, disk: Path, *, incoming: bool) -> None:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        self.directory, self.parts, self._disk = directory, parts, disk
        (monitor, monitor_fd), (agent, agent_fd) = _listen(directory / "qmp"), _listen(directory / "agent")
        arguments = _arguments(parts, disk, directory / "console", incoming, monitor_fd.fileno(), agent_fd.fileno())
        with monitor_fd, agent_fd:
            self.process = subprocess.Popen(
                arguments, stdin=subprocess.DEVNULL, stderr=(directory / "stderr").open("wb"), pass_fds=(monitor_fd.fileno(), agent_fd.fileno())
            )
        self.qmp, self.agent = Lines(monitor), Lines(agent)
        self.qmp.send(command("qmp_capabilities"))
        self._answers = 1

    def __call__(self, name: str, **arguments: Any) -> Any:
        """A QMP command and its answer; answers to what was sent before are passed over."""
        self.qmp.send(command(name, **arguments))
        self._answers += 1
        return self._settle()

    def _settle(self) -> Any:
        answer = None
        while self._answers:
            message = self.qmp.receive()
            if "error" in message:
                raise RuntimeError(f"QMP: {message['error']}")
            if "return" in message:
                self._answers -= 1
                answer = message["return"]
        return answer

    def ask(self, **request: Any) -> dict[str, Any]:
        """A request to the guest agent and its answer."""
        self.agent.send(request)
        return self.agent.receive()

    def load(self, layer: memory.Layer | None, state: Path) -> None:
        """Sends everything that makes the guest run and answer; `answered` waits for it."""
        if layer is not None:
            self._settle()
            memory.put_back(self.process.pid, self.parts.mem, layer)
        self.qmp.send(command("migrate-incoming", uri=f"file:{state}"), command("cont"))
        self._answers += 2
        self.agent.send({"ping": 1})

    def answered(self) -> None:
        assert self.agent.receive() == {"pong": 1}

    def pause(self, out: Path) -> memory.Layer:
        """Device state to `out`.state and what the guest wrote to `out`.layer, durable when it returns; the VM stands still and is the caller's to end."""
        state = out.with_suffix(".state")
        self("stop")
        self("xen-save-devices-state", filename=str(state))
        layer = memory.save(self.process.pid, self.parts.mem, out.with_suffix(".layer"))
        sync(state, self._disk, out.parent)
        return layer

    def quit(self) -> None:
        """Asks QEMU to end and waits for it."""
        self("quit")
        self.process.wait()
        self._close()

    def kill(self) -> None:
        """Ends QEMU, also when it ended already."""
        self.process.kill()
        self.process.wait()
        self._close()

    def _close(self) -> None:
        self.qmp.socket.close()
        self.agent.socket.close()
        shutil.rmtree(self.directory, ignore_errors=True)


def sync(*paths: Path) -> None:
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


def _listen(path: Path) -> tuple[socket.socket, socket.socket]:
    """(connected client, listening socket for QEMU): the connection waits in the backlog until QEMU accepts."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen(1)
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(path))
    return client, server


def _arguments(parts: Parts, disk: Path, console: Path, incoming: bool, monitor: int, agent: int) -> list[str]:
    access = "share=off,readonly=on,rom=off" if incoming else "share=on"
    boot = ["-incoming", "defer"] if incoming else ["-kernel", str(parts.kernel), "-initrd", str(parts.initrd), "-append", command_line()]
    return [
        "qemu-system-x86_64",
        *("-M", "microvm,memory-backend=m0,ioapic2=off", "-accel", "tcg,tb-size=128", "-cpu", "max", "-m", str(parts.mib)),
        *("-nodefaults", "-no-user-config", "-nographic", "-no-reboot", "-global", "migration.send-configuration=off"),
        *("-object", f"memory-backend-file,id=m0,size={parts.mib}M,mem-path={parts.mem},{access}", "-serial", f"file:{console}"),
        *("-drive", f"if=none,id=d0,file={disk},format=qcow2,cache=unsafe", "-device", "virtio-blk-device,drive=d0"),
        *("-device", "virtio-serial-device", "-chardev", f"socket,id=c0,fd={agent},server=on,wait=off"),
        *("-device", "virtserialport,chardev=c0,name=agent"),
        *("-chardev", f"socket,id=q0,fd={monitor},server=on,wait=off", "-mon", "chardev=q0,mode=control"),
        *boot,
    ]
