"""A store in a directory, and a real process that maps a memory file privately as a VMM does."""

import hashlib
import os
import random
import re
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

from torpor.durable.threads import Threads
from torpor.model.sandbox import base36
from torpor.model.shapes import Shape
from torpor.model.snapshots import PAGE, ArtefactKind, Fingerprint, MemoryRegion
from torpor.ports.store import Artefact, Commit, DiskChain, Parts
from torpor.snapshot.scan import dirty_extents
from torpor.snapshot.store import LocalSnapshots

MEMORY = 256 << 20
LOW = 24 << 20
SHAPE = Shape(1, 256, 1024)
_CHILD = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
m = mmap.mmap(fd, int(sys.argv[2]), flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
print("mapped", flush=True)
for line in sys.stdin:
    verb, start, length, value = line.split()
    start, length = int(start), int(length)
    if verb == "write":
        m[start:start + length] = bytes([int(value)]) * length
    elif verb == "read":
        sum(m[start:start + length:4096])
    elif verb == "drop":
        m.madvise(mmap.MADV_DONTNEED, start, length)
    print("done", flush=True)
"""


class Guest:
    """A process that maps `path` privately. `region` is what the store is given; `tell` makes the process itself touch its memory."""

    def __init__(self, path: Path, size: int = MEMORY) -> None:
        argv = [sys.executable, "-S", "-c", _CHILD, str(path), str(size)]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"mapped\n"
        maps = Path(f"/proc/{self.process.pid}/maps").read_text()
        found = re.search(rf"^([0-9a-f]+)-\S+ .*{re.escape(str(path))}$", maps, re.MULTILINE)
        assert found is not None
        self.region = MemoryRegion(self.process.pid, int(found[1], 16), size)
        self.memory = os.open(f"/proc/{self.process.pid}/mem", os.O_RDWR)

    def tell(self, verb: str, start: int, length: int = PAGE, value: int = 0) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{verb} {start} {length} {value}\n".encode())
        self.process.stdin.flush()
        assert self.process.stdout.readline() == b"done\n"

    def poke(self, start: int, content: bytes) -> None:
        os.pwrite(self.memory, content, self.region.address + start)

    def digest(self) -> str:
        """Of the whole memory: the low 24 MiB as they are, and every page above that was touched and is not zero (no test's base file has data there)."""
        whole = hashlib.sha256(self.peek(0, LOW))
        for start, end in dirty_extents(self.region):
            for page in range(max(start, LOW), end, PAGE):
                content = self.peek(page, PAGE)
                if content != bytes(PAGE):
                    whole.update(page.to_bytes(8, "little") + content)
        return whole.hexdigest()

    def peek(self, start: int, length: int) -> bytes:
        return os.pread(self.memory, length, self.region.address + start)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        if self.memory >= 0:
            os.close(self.memory)
            self.memory = -1


def new_id() -> str:
    return base36(uuid.uuid4().int)


class Store:
    """A LocalSnapshots and short ways to make artefacts with it."""

    def __init__(self, home: Path, threads: Threads, guests: Callable[[Path], Guest]) -> None:
        self.home, self.threads, self.start = home, threads, guests
        self.clock = 1000.0
        self.snapshots = LocalSnapshots(home, threads)

    async def reopen(self) -> None:
        self.snapshots = LocalSnapshots(self.home, self.threads)
        await self.snapshots.open()

    def terms(self, kind: ArtefactKind, owner: str = "", disk: DiskChain | None = None) -> Commit:
        self.clock += 1
        chain = disk or DiskChain("sha256:base", (), SHAPE.disk_bytes)
        return Commit(kind, owner, self.clock, "minimal", SHAPE, Fingerprint({"profile": "1"}, {"qemu": "10.0.2"}), chain, 7, extra={"note": "käse"})

    def disk_layer(self, content: bytes = b"layer") -> str:
        layer = new_id()
        (self.home / "store" / "disks" / f"{layer}.qcow2").write_bytes(content)
        return layer

    async def warm(self, seed: int = 0) -> Artefact:
        """A base: some noise, some written zeros, the rest a hole."""
        draft = self.snapshots.draft(new_id())
        path = await draft.prepare_memory(MEMORY)
        with path.open("r+b") as file:
            file.seek(1 << 20)
            file.write(random.Random(seed).randbytes(2 << 20))
            file.seek(8 << 20)
            file.write(bytes(1 << 20))
        draft.state_path.write_bytes(b"state of a warm image")
        return await draft.commit(self.terms(ArtefactKind.WARM))

    async def pause(
        self,
        guest: Guest,
        memory_id: str,
        owner: str = "sandbox",
        kind: ArtefactKind = ArtefactKind.PAUSED,
        disk: DiskChain | None = None,
        starts: int = 0,
    ) -> Artefact:
        draft = self.snapshots.draft(new_id())
        await draft.capture(guest.region, memory_id, starts=starts)
        draft.state_path.write_bytes(os.urandom(13000))
        return await draft.commit(self.terms(kind, owner, disk))

    async def resume(self, artefact: Artefact) -> Guest:
        parts = self.parts(artefact.id)
        assert parts.state.stat().st_size > 0
        guest = self.start(parts.memory)
        if parts.fill is not None:
            await parts.fill(guest.region)
        return guest

    def parts(self, artefact_id: str) -> Parts:
        """Taken, and no longer held."""
        parts = self.snapshots.take("starter", artefact_id)
        self.snapshots.unpin("starter")
        return parts

    def files(self) -> set[str]:
        return {str(path.relative_to(self.home)) for path in self.home.rglob("*") if path.is_file()}
