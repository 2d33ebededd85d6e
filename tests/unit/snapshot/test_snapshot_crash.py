"""SIGKILL at every step of a commit, a re-base and a rewrite: after reopening an artefact is whole or absent, and nothing else is lost or left."""

import os
import subprocess
import sys

import pytest
from snapshot_world import Store

_VICTIM = """
import asyncio, ctypes, mmap, os, signal, sys
from pathlib import Path
from torpor.durable.threads import Threads
from torpor.model.shapes import Shape
from torpor.model.snapshots import ArtefactKind, Fingerprint, MemoryRegion
from torpor.ports.store import Commit, DiskChain
from torpor.snapshot.store import LocalSnapshots

home, verb, artefact_id, base, fatal = Path(sys.argv[1]), *sys.argv[2:6]

def step(name):
    print(name, flush=True)
    if name == fatal:
        os.kill(os.getpid(), signal.SIGKILL)

async def main():
    snapshots = LocalSnapshots(home, Threads(2), step)
    await snapshots.open()
    terms = Commit(ArtefactKind.PAUSED, "s", 5.0, "t", Shape(1, 256, 1024), Fingerprint({}), DiskChain("b", (), 1 << 30), 1)
    if verb == "rebase":
        await snapshots.rebase(artefact_id)
        return
    draft = snapshots.draft(artefact_id)
    if verb == "warm":
        with (await draft.prepare_memory(256 << 20)).open("r+b") as file:
            file.write(b"new" * 1000)
    else:
        file = os.open(home / "store/memory" / f"{base}.mem", os.O_RDONLY)
        memory = mmap.mmap(file, 256 << 20, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        memory[:9000] = b"changed!!" * 1000
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        await draft.capture(MemoryRegion(os.getpid(), address, 256 << 20), base)
    draft.state_path.write_bytes(b"state")
    await draft.commit(terms)

asyncio.run(main())
"""


def die_at(store: Store, verb: str, artefact_id: str, base: str, step: str) -> list[str]:
    """Runs the verb in a process of its own until it kills itself at `step`; the steps it passed."""
    argv = [sys.executable, "-c", _VICTIM, str(store.home), verb, artefact_id, base, step]
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    assert done.returncode == (-9 if step else 0), done.stderr
    return done.stdout.split("\n")[:-1]


COMMIT = ["manifest written", "draft durable", "artefact renamed", "artefact durable"]
WARM = ["manifest written", "draft durable", "memory renamed", "artefact renamed", "artefact durable"]
REBASE = ["copy durable", "copy renamed", "manifest replaced"]


@pytest.mark.parametrize(("verb", "step"), [*(("pause", step) for step in COMMIT), *(("warm", step) for step in WARM)])
async def test_killed_in_a_commit(store: Store, verb: str, step: str) -> None:
    warm = await store.warm()
    before = store.files()
    passed = die_at(store, verb, "n" * 25, warm.id, step)
    assert passed == (COMMIT if verb == "pause" else WARM)[: len(passed)]
    assert passed[-1] == step
    await store.reopen()
    assert store.snapshots.damaged() == {}
    await store.snapshots.verify(warm.id)
    known = {artefact.id for artefact in store.snapshots.list()}
    assert known == ({warm.id, "n" * 25} if step in ("artefact renamed", "artefact durable") else {warm.id})
    await store.snapshots.collect(1 << 40)
    if "n" * 25 in known:
        await store.snapshots.verify("n" * 25)
        guest = await store.resume(store.snapshots.get("n" * 25))
        assert guest.peek(0, 9) == (b"changed!!" if verb == "pause" else b"newnewnew")
        await store.snapshots.delete("n" * 25)
        await store.snapshots.collect(1 << 40)
    assert store.files() == before
    assert os.listdir(store.home / "staging") == []


def test_the_steps_are_all_there_are(store: Store) -> None:
    assert die_at(store, "warm", "n" * 25, "", "") == WARM
    assert die_at(store, "pause", "p" * 25, "n" * 25, "") == COMMIT
    assert die_at(store, "rebase", "p" * 25, "", "") == REBASE


@pytest.mark.parametrize("step", REBASE)
async def test_killed_in_a_rebase(store: Store, step: str) -> None:
    warm = await store.warm()
    guest = await store.resume(warm)
    guest.poke(0, os.urandom(50000))
    paused = await store.pause(guest, warm.memory_id)
    die_at(store, "rebase", paused.id, "", step)
    await store.reopen()
    assert store.snapshots.damaged() == {}
    now = store.snapshots.get(paused.id)
    assert now.memory_id == (paused.id if step == "manifest replaced" else warm.id)
    await store.snapshots.collect(1 << 40)
    await store.snapshots.verify(paused.id)
    assert (await store.resume(now)).digest() == guest.digest()
    flat = await store.snapshots.rebase(paused.id)
    assert (await store.resume(flat)).digest() == guest.digest()
    assert sorted(os.listdir(store.home / "store/artefacts" / paused.id)) == ["manifest.json", "state"]
