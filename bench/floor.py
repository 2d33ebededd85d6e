"""The floor: what a bare script needs for the same things, on the same machine. Prints JSON when run; `run.py` calls it beside the engine.

python bench/floor.py --images DIR --work DIR [-n 10]      DIR holds torpor's vmlinuz, initrd and minimal.ext4
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from bare import memory
from bare.image import overlay, prepare
from bare.vm import Parts, Vm

SHELL_TRUE = ["/bin/sh", "-c", "true"]
TRUE = ["/bin/true"]
PIECE = 1 << 20


class Clock:
    """Milliseconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def __call__(self) -> float:
        return (time.perf_counter() - self._start) * 1e3


class Floor:
    """Bare VMs of one size, as a context: none is left when it ends. Not for several threads."""

    def __init__(self, parts: Parts, work: Path) -> None:
        self.parts = parts
        self._work = work / f"vms-{parts.mib}-{os.getpid()}"
        self._made = 0
        self._vms: list[Vm] = []

    def __enter__(self) -> Floor:
        self._work.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.kill(*self._vms)
        shutil.rmtree(self._work, ignore_errors=True)

    def path(self, name: str) -> Path:
        return self._work / name

    def begin(self, parts: Parts | None = None, layer: memory.Layer | None = None) -> Vm:
        """Starts a restore; `vm.answered()` ends it."""
        parts = parts or self.parts
        self._made += 1
        disk = self.path(f"{self._made}.qcow2")
        shutil.copyfile(parts.overlay, disk)
        vm = Vm(parts, self.path(str(self._made)), disk, incoming=True)
        self._vms.append(vm)
        vm.load(layer, parts.state)
        return vm

    def start(self, parts: Parts | None = None, layer: memory.Layer | None = None) -> tuple[Vm, float]:
        """A running VM that has answered, and the milliseconds that took."""
        clock = Clock()
        vm = self.begin(parts, layer)
        vm.answered()
        return vm, clock()

    def start_many(self, count: int, parts: Parts | None = None) -> tuple[list[Vm], float]:
        """`count` at once; milliseconds until the last has answered."""
        clock = Clock()
        vms = [self.begin(parts) for _ in range(count)]
        for vm in vms:
            vm.answered()
        return vms, clock()

    def kill(self, *vms: Vm) -> None:
        for vm in vms:
            vm.kill()
            self._vms.remove(vm)

    def run(self, vm: Vm, argv: list[str]) -> float:
        """One command in the guest; milliseconds."""
        clock = Clock()
        answer = vm.ask(run=argv)
        assert answer["rc"] == 0, answer
        return clock()

    def spawn(self, vm: Vm, count: int) -> list[float]:
        """What the guest alone takes for /bin/true, milliseconds each: by its own clock, set right by ours."""
        clock = Clock()
        answer = vm.ask(spawn=count)
        rate = clock() / answer["total"]
        return [sample * rate for sample in answer["ms"]]

    def pause(self, vm: Vm) -> tuple[Parts, memory.Layer, float]:
        """A durable pause: (parts and layer to start it from again, milliseconds). The VM is gone afterwards; its end is not in the time."""
        out = self.path(f"pause-{self._made}")
        clock = Clock()
        layer = vm.pause(out)
        took = clock()
        frozen = out.with_suffix(".disk")
        disk = self.path(f"{vm.directory.name}.qcow2")
        vm.quit()
        self._vms.remove(vm)
        disk.rename(frozen)
        fresh = out.with_suffix(".overlay")
        overlay(frozen, "qcow2", fresh)
        base = vm.parts
        return Parts(base.kernel, base.initrd, base.mem, out.with_suffix(".state"), frozen, fresh, base.mib), layer, took

    def layer_start_many(self, vm: Vm, count: int) -> tuple[list[Vm], float]:
        """A bare fork of a VM that has written little: a layer saved, then `count` started with it. The VM stands still afterwards."""
        out = self.path(f"layer-{self._made}")
        clock = Clock()
        layer = vm.pause(out)
        base = vm.parts
        parts = Parts(base.kernel, base.initrd, base.mem, out.with_suffix(".state"), base.disk, base.overlay, base.mib)
        vms = [self.begin(parts, layer) for _ in range(count)]
        for child in vms:
            child.answered()
        return vms, clock()

    def flat_start_many(self, vm: Vm, count: int) -> tuple[list[Vm], float]:
        """The same for a VM that has written much: its memory is flattened into a file that all `count` map."""
        out = self.path(f"flat-{self._made}")
        clock = Clock()
        vm("stop")
        vm("xen-save-devices-state", filename=str(out.with_suffix(".state")))
        memory.flatten(vm.process.pid, vm.parts.mem, out.with_suffix(".mem"))
        base = vm.parts
        parts = Parts(base.kernel, base.initrd, out.with_suffix(".mem"), out.with_suffix(".state"), base.disk, base.overlay, base.mib)
        vms, _ = self.start_many(count, parts)
        return vms, clock()

    def write_rate(self, vm: Vm) -> tuple[memory.Layer, float]:
        """The bare loop over a VM's changed pages, fsync included: (layer, bytes per second). The VM stands still afterwards."""
        vm("stop")
        clock = Clock()
        layer = memory.save(vm.process.pid, vm.parts.mem, self.path("rate.layer"))
        return layer, layer.size / clock() * 1e3

    def put_back_rate(self, layer: memory.Layer) -> float:
        """The bare loop that puts a layer back into a fresh VM's memory; bytes per second."""
        self._made += 1
        vm = Vm(self.parts, self.path(str(self._made)), self.parts.overlay, incoming=True)
        self._vms.append(vm)
        vm("query-status")
        clock = Clock()
        memory.put_back(vm.process.pid, self.parts.mem, layer)
        rate = layer.size / clock() * 1e3
        self.kill(vm)
        return rate

    def throughput(self, vm: Vm, size: int, path: str = "") -> tuple[float, float]:
        """Raw virtio-serial: bytes per second (host to guest, guest to host); with a `path` into that file and out of it."""
        scratch = memoryview(bytearray(PIECE))
        vm.ask(up=size, path=path)
        clock = Clock()
        _send(vm.agent.socket, size, scratch)
        vm.agent.receive()
        up = size / clock() * 1e3
        vm.ask(down=size, path=path)
        clock = Clock()
        vm.agent.read(size, scratch)
        vm.agent.receive()
        return up, size / clock() * 1e3


def _send(stream: socket.socket, size: int, piece: memoryview) -> None:
    while size:
        size -= stream.send(piece[: min(size, len(piece))])


def measure(floor: Floor, rounds: int) -> Iterator[tuple[str, float]]:
    """(figure, sample) pairs of the figures that shared/floor's script has too."""
    for _ in range(rounds):
        vm, took = floor.start()
        yield "start_ms", took
        yield "first_exec_ms", floor.run(vm, SHELL_TRUE)
        for _ in range(5):
            yield "exec_sh_true_ms", floor.run(vm, SHELL_TRUE)
        for _ in range(5):
            yield "exec_true_ms", floor.run(vm, TRUE)
        for took in floor.spawn(vm, 6)[1:]:
            yield "spawn_in_guest_ms", took
        parts, layer, took = floor.pause(vm)
        yield "pause_ms", took
        yield "pause_mb", layer.size / 1e6
        vm, took = floor.start(parts, layer)
        yield "resume_ms", took
        floor.kill(vm)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("-n", type=int, default=10)
    options = parser.parse_args()
    images: Path = options.images
    parts = prepare(options.work, images / "vmlinuz", images / "initrd", images / "minimal.ext4", options.mib)
    rows: dict[str, list[float]] = {}
    with Floor(parts, options.work) as floor:
        for name, sample in measure(floor, options.n):
            rows.setdefault(name, []).append(sample)
        vm, _ = floor.start()
        up, down = floor.throughput(vm, 64 << 20)
        _, ten = floor.start_many(10)
    figures = {name: {"p50": round(statistics.median(row), 1), "min": round(min(row), 1), "max": round(max(row), 1)} for name, row in rows.items()}
    print(json.dumps(figures | {"up_mb_s": round(up / 1e6), "down_mb_s": round(down / 1e6), "ten_ms": round(ten), "n": options.n, "mib": options.mib}))


if __name__ == "__main__":
    main()
