"""Whatever is done to the store in whatever order: every artefact restores exactly, nothing that is needed goes, nothing that is not stays."""

import asyncio
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from snapshot_world import Guest, Store, new_id

from torpor.durable.threads import Threads
from torpor.model.snapshots import PAGE, ArtefactKind
from torpor.ports.store import Artefact, DiskChain

PICK = st.integers(0, 99)
# (first page, pages, zeros?), around the base's data (pages 256 to 767) and the holes beside it
TOUCHES = st.lists(st.tuples(st.integers(150, 900), st.integers(1, 600), st.booleans()), max_size=4)


class Running:
    """A guest, and what it runs on."""

    def __init__(self, guest: Guest, memory_id: str, chain: DiskChain) -> None:
        self.guest, self.memory_id, self.chain, self.holder = guest, memory_id, chain, new_id()


class StoreMachine(RuleBasedStateMachine):
    """The model: for every artefact what its memory must be; for every guest what must be kept for it."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.home = Path(tempfile.mkdtemp(prefix="store-machine-"))
        self.threads = Threads(cores=2)
        self.store = Store(self.home, self.threads, Guest)
        self.content: dict[str, str] = {}
        self.disks: dict[str, DiskChain] = {}
        self.guests: list[Running] = []
        self.do(self.store.snapshots.open())

    def do(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    def teardown(self) -> None:
        for artefact_id in self.content:
            self.restores(artefact_id)
        for running in self.guests:
            running.guest.end()
        self.threads.close()
        self.loop.close()
        shutil.rmtree(self.home)

    def restores(self, artefact_id: str) -> None:
        guest = self.do(self.store.resume(self.store.snapshots.get(artefact_id)))
        assert guest.digest() == self.content[artefact_id]
        guest.end()

    def know(self, artefact: Artefact, content: str) -> None:
        self.content[artefact.id], self.disks[artefact.id] = content, artefact.disk

    @initialize()
    def first(self) -> None:
        self.warm(0)
        self.start(0)

    def artefact(self, pick: int) -> str:
        return sorted(self.content)[pick % len(self.content)]

    def guest(self, pick: int) -> Running:
        return self.guests[pick % len(self.guests)]

    @rule(seed=st.integers(0, 3))
    def warm(self, seed: int) -> None:
        artefact = self.do(self.store.warm(seed))
        guest = self.do(self.store.resume(artefact))
        self.know(artefact, guest.digest())
        guest.end()

    @precondition(lambda self: self.content and len(self.guests) < 4)
    @rule(pick=PICK)
    def start(self, pick: int) -> None:
        artefact = self.store.snapshots.get(self.artefact(pick))
        guest = self.do(self.store.resume(artefact))
        assert guest.digest() == self.content[artefact.id]
        running = Running(guest, artefact.memory_id, artefact.disk)
        self.store.snapshots.hold(running.holder, running.memory_id, running.chain)
        self.guests.append(running)

    @precondition(lambda self: self.guests)
    @rule(pick=PICK, touches=TOUCHES, kind=st.sampled_from([ArtefactKind.PAUSED, ArtefactKind.SNAPSHOT]), ends=st.booleans())
    def pause(self, pick: int, touches: list[tuple[int, int, bool]], kind: ArtefactKind, ends: bool) -> None:
        for page, pages, zero in touches:
            self.guest(pick).guest.poke(page * PAGE, bytes(pages * PAGE) if zero else os.urandom(pages * PAGE))
        running = self.guest(pick)
        chain = DiskChain(running.chain.base, (self.store.disk_layer(), *running.chain.layers), running.chain.size_bytes)
        artefact = self.do(self.store.pause(running.guest, running.memory_id, "owner", kind, chain))
        self.know(artefact, running.guest.digest())
        running.chain = chain
        self.store.snapshots.hold(running.holder, running.memory_id, chain)
        if ends:
            self.stop(running)
        self.restores(artefact.id)

    @precondition(lambda self: self.guests)
    @rule(pick=PICK)
    def kill(self, pick: int) -> None:
        self.stop(self.guest(pick))

    def stop(self, running: Running) -> None:
        running.guest.end()
        self.guests.remove(running)
        self.store.snapshots.unpin(running.holder)

    @precondition(lambda self: self.guests)
    @rule(pick=PICK)
    def give_up_a_pause(self, pick: int) -> None:
        running = self.guest(pick)
        draft = self.store.snapshots.draft(new_id())
        self.do(draft.capture(running.guest.region, running.memory_id))
        self.do(draft.abort())

    @precondition(lambda self: self.content)
    @rule(pick=PICK)
    def rebase(self, pick: int) -> None:
        artefact_id = self.artefact(pick)
        assert self.do(self.store.snapshots.rebase(artefact_id)).layer_bytes == 0
        self.restores(artefact_id)

    @precondition(lambda self: self.content)
    @rule(pick=PICK)
    def merge(self, pick: int) -> None:
        artefact_id = self.artefact(pick)
        chain = DiskChain("sha256:base", (self.store.disk_layer(),), 1 << 30)
        self.disks[artefact_id] = self.do(self.store.snapshots.replace_disk(artefact_id, chain)).disk

    @precondition(lambda self: self.content)
    @rule(pick=PICK)
    def delete(self, pick: int) -> None:
        artefact_id = self.artefact(pick)
        self.do(self.store.snapshots.delete(artefact_id))
        del self.content[artefact_id], self.disks[artefact_id]
        self.collect()

    @rule()
    def reopen(self) -> None:
        """The process ended; the next one adopts the guests that run."""
        before = self.store.snapshots.list()
        self.do(self.store.reopen())
        assert self.store.snapshots.list() == before
        for running in self.guests:
            self.store.snapshots.hold(running.holder, running.memory_id, running.chain)

    @rule()
    def collect(self) -> None:
        self.do(self.store.snapshots.collect(1 << 40))
        used = {self.store.snapshots.get(artefact_id).memory_id for artefact_id in self.content} | {running.memory_id for running in self.guests}
        assert set(os.listdir(self.home / "store/memory")) == {f"{memory_id}.mem" for memory_id in used}
        assert set(os.listdir(self.home / "store/artefacts")) == set(self.content)
        assert os.listdir(self.home / "staging") == []

    @invariant()
    def nothing_needed_is_missing(self) -> None:
        assert self.store.snapshots.damaged() == {}
        assert {artefact.id for artefact in self.store.snapshots.list()} == set(self.content)
        chains = set(self.store.snapshots.referenced_disks())
        assert chains >= set(self.disks.values()) | {running.chain for running in self.guests}
        memories = {self.store.snapshots.get(artefact_id).memory_id for artefact_id in self.content} | {running.memory_id for running in self.guests}
        assert {f"{memory_id}.mem" for memory_id in memories} <= set(os.listdir(self.home / "store/memory"))


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=int(os.environ.get("TORPOR_MACHINE_EXAMPLES", "10")), stateful_step_count=15, deadline=None)
