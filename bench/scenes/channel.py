"""S8, the engine's part: files up and down against what the bare channel carries. The files lie in the guest's memory, so that no disk is measured."""

from __future__ import annotations

from floor import Clock
from setting import Bench

SIZE = 64 << 20
PATH = "/dev/shm/bench"
BARE_PATH = "/dev/bench"
"""In memory too: the bare guest mounts no more than it needs."""


async def measure(bench: Bench) -> None:
    for number in range(bench.counts.channel):
        bench.say(f"files up and down: round {number + 1} of {bench.counts.channel}")
        await bench.bare(lambda: _bare(bench))
        async with bench.attempt("upload"):
            await _engine(bench)


def _bare(bench: Bench) -> None:
    vm, _ = bench.small.start()
    for suffix, path in (("", ""), ("_bare", BARE_PATH)):
        up, down = bench.small.throughput(vm, SIZE, path)
        bench.samples.add(f"upload{suffix}", floor=up / 1e6)
        if not suffix:
            bench.samples.add("upload_again", floor=up / 1e6)
        bench.samples.add(f"download{suffix}", floor=down / 1e6)
    bench.small.kill(vm)


async def _engine(bench: Bench) -> None:
    async with bench.sandbox() as (sandbox, _):
        guest = await sandbox.guest()
        content = bytes(SIZE)
        clock = Clock()
        await guest.write_file(PATH, content)
        up = SIZE / clock() / 1e3
        clock = Clock()
        got = 0
        async for piece in guest.read_file(PATH):
            got += len(piece)
        down = got / clock() / 1e3
        assert got == SIZE, got
        clock = Clock()
        await guest.write_file(PATH, content)
        again = SIZE / clock() / 1e3
    bench.samples.add("upload_again", again)
    for suffix in ("", "_bare"):
        bench.samples.add(f"upload{suffix}", up)
        bench.samples.add(f"download{suffix}", down)
