"""A home with a base image, and QEMU's own tools to judge what we write."""

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from torpor.disk.store import LocalDisks
from torpor.durable.threads import Stop, Threads
from torpor.ports.store import DiskChain
from torpor.snapshot.digest import digest_file

BASE_SIZE = 8 << 20
DISK_SIZE = 1 << 30


class DiskHome:
    """Disks in a directory, their raw base image, and a model of what each chain's disk should hold."""

    def __init__(self, home: Path, threads: Threads) -> None:
        self.home, self.threads = home, threads
        self.base = home / "base.raw"
        self.base.write_bytes(os.urandom(BASE_SIZE))
        self.base.chmod(0o444)
        self.chain = DiskChain("sha256:base", (), DISK_SIZE)
        self.made = 0
        self.reopen()

    def reopen(self) -> None:
        self.disks = LocalDisks(self.home, self.threads)
        self.disks.register_base("sha256:base", self.base, "raw")

    def base_digest(self) -> str:
        copy = self.home / "copy"
        copy.write_bytes(self.base.read_bytes())
        return consume(copy, self.chain.size_bytes)

    def layer_files(self) -> set[str]:
        return set(os.listdir(self.home / "store" / "disks"))

    def path(self, layer: str) -> Path:
        return self.home / "store" / "disks" / f"{layer}.qcow2"

    async def grow(self, chain: DiskChain, *commands: str) -> DiskChain:
        """Freezes a new overlay on `chain` in which qemu-io ran `commands`."""
        self.made += 1
        overlay = self.home / f"overlay-{self.made}"
        spec = await self.disks.create_overlay(overlay, chain)
        qemu_io(node(overlay, spec.chain, spec.base_format), *commands)
        frozen = await self.disks.freeze(overlay, chain)
        self.disks.release(frozen)
        overlay.unlink()
        return frozen

    def digest(self, chain: DiskChain) -> str:
        """Of QEMU's reading of the whole disk behind `chain`."""
        paths = [self.path(layer) for layer in chain.layers]
        tree = "json:" + json.dumps(node(paths[0], [*paths[1:], self.base], "raw"))
        flat = self.home / "flat"
        out = subprocess.run(["qemu-img", "convert", "-O", "raw", tree, str(flat)], check=False, capture_output=True, text=True)
        assert out.returncode == 0, out.stderr
        return consume(flat, chain.size_bytes)


def consume(path: Path, size: int) -> str:
    """Digest of the file grown to `size`; the file is removed."""
    os.truncate(path, size)
    with path.open("rb") as file:
        digest = digest_file(file.fileno(), size, Stop())
    path.unlink()
    return digest


def node(top: Path, below: Sequence[Path], base_format: str) -> dict[str, object]:
    """A -blockdev style tree with every format explicit."""
    made: dict[str, object] = {"driver": "qcow2" if below else base_format, "file": {"driver": "file", "filename": str(top), "locking": "off"}}
    if below:
        made["backing"] = node(below[0], below[1:], base_format)
    return made


def qemu_io(image: dict[str, object], *commands: str) -> None:
    argv = ["qemu-io", *(part for command in commands for part in ("-c", command)), "-d", "unmap", "json:" + json.dumps(image)]
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "error" not in done.stdout.lower(), done.stdout
