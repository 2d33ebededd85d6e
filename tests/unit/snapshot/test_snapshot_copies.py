"""Memory captured for many starts: a file of its own, and copies that start before anything of it is durable."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from snapshot_world import MEMORY, Guest, Store, new_id

import torpor.snapshot.source as source_module
from torpor.model.errors import InternalError, NotFound
from torpor.model.snapshots import PAGE, ArtefactKind, MemoryRegion
from torpor.snapshot.memory import without
from torpor.snapshot.places import noted_digest
from torpor.snapshot.scan import Extent
from torpor.snapshot.source import Source, batches, spans


def scribble(guest: Guest) -> None:
    """Over data of the base, over its holes, zeros over both, and some pages far above."""
    guest.poke(PAGE, os.urandom(3 * PAGE))
    guest.poke((1 << 20) - PAGE, os.urandom(2 * PAGE))
    guest.tell("write", (2 << 20) - 2 * PAGE, 5 * PAGE, 0)
    guest.tell("write", 9 << 20, PAGE, 0)
    guest.poke(77 << 20, os.urandom((5 << 20) + PAGE))


def content(guest: Guest) -> bytes:
    """Of the whole memory, wherever its pages come from."""
    return hashlib.sha256(guest.peek(0, MEMORY)).digest()


async def test_a_capture_for_many_starts_makes_memory_of_its_own(store: Store) -> None:
    warm = await store.warm()
    guest = await store.resume(warm)
    scribble(guest)
    flat = await store.pause(guest, warm.memory_id, kind=ArtefactKind.SNAPSHOT, starts=100)
    assert (flat.memory_id, flat.layer_bytes) == (flat.id, 0)
    await store.snapshots.verify(flat.id)
    assert content(await store.resume(flat)) == content(guest)
    layered = await store.pause(guest, warm.memory_id)
    assert (layered.memory_id, layered.layer_bytes > 0) == (warm.id, True)
    rebased = await store.snapshots.rebase(layered.id)
    assert store.snapshots.places.memory(rebased.id).read_bytes() == store.snapshots.places.memory(flat.id).read_bytes()
    await store.snapshots.delete(warm.id)
    await store.snapshots.delete(layered.id)
    await store.snapshots.collect(0)
    assert content(await store.resume(flat)) == content(guest)


async def test_few_starts_and_little_memory_make_a_layer(store: Store) -> None:
    warm = await store.warm()  # 2 MiB of data
    guest = await store.resume(warm)
    guest.poke(40 << 20, os.urandom(1 << 20))
    assert (await store.pause(guest, warm.memory_id, starts=1)).layer_bytes == 1 << 20
    assert (await store.pause(guest, warm.memory_id, starts=3)).layer_bytes == 0


@pytest.mark.parametrize("starts", [1, 100])
async def test_machines_start_from_what_was_offered_and_outlive_it(store: Store, starts: int) -> None:
    warm = await store.warm()
    guest = await store.resume(warm)
    if starts == 1:
        guest.poke(40 << 20, os.urandom(1 << 20))
    else:
        scribble(guest)
    draft = store.snapshots.draft(new_id())
    await draft.capture(guest.region, warm.memory_id, starts=starts)
    draft.state_path.write_bytes(b"state")
    offered = await draft.offer(store.terms(ArtefactKind.SNAPSHOT))
    assert store.snapshots.list() == [warm]
    with pytest.raises(NotFound):
        store.snapshots.get(offered.id)
    with pytest.raises(InternalError):
        await draft.commit(store.terms(ArtefactKind.SNAPSHOT))
    copy = await store.resume(offered)
    store.snapshots.hold("copy", offered.memory_id, offered.disk)
    assert content(copy) == content(guest)
    await draft.keep()
    await draft.abort()
    await draft.abort()
    with pytest.raises(NotFound):
        store.parts(offered.id)
    await store.snapshots.collect(1 << 40)
    copy.poke(60 << 20, os.urandom(PAGE))
    paused = await store.pause(copy, offered.memory_id)
    store.snapshots.unpin("copy")
    await store.reopen()
    await store.snapshots.collect(1 << 40)
    await store.snapshots.verify(paused.id)
    assert content(await store.resume(paused)) == content(copy)
    await store.snapshots.delete(paused.id)
    await store.snapshots.collect(1 << 40)
    assert {path.name for path in (store.home / "store/memory").iterdir()} == {f"{warm.id}.mem"}
    assert os.listdir(store.home / "staging") == []


async def test_the_digest_of_kept_memory_is_not_taken_again_by_the_next_process(store: Store) -> None:
    warm = await store.warm()
    guest = await store.resume(warm)
    scribble(guest)
    draft = store.snapshots.draft(new_id())
    await draft.capture(guest.region, warm.memory_id, starts=100)
    draft.state_path.write_bytes(b"state")
    offered = await draft.offer(store.terms(ArtefactKind.SNAPSHOT))
    await draft.keep()
    path = store.snapshots.places.memory(offered.memory_id)
    known = noted_digest(path)
    assert known is not None
    await store.reopen()
    assert (await store.snapshots.memory_part(offered.memory_id)).digest == known
    os.utime(path)
    assert noted_digest(path) is None
    await store.reopen()
    assert (await store.snapshots.memory_part(offered.memory_id)).digest == known


def _cut(bits: list[bool]) -> list[Extent]:
    extents: list[Extent] = []
    for page, inside in enumerate(bits):
        if inside and extents and extents[-1][1] == page:
            extents[-1] = (extents[-1][0], page + 1)
        elif inside:
            extents.append((page, page + 1))
    return extents


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=30))
def test_without(pages: list[tuple[bool, bool]]) -> None:
    assert without(_cut([one for one, _ in pages]), _cut([other for _, other in pages])) == _cut([one and not other for one, other in pages])


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 3)), max_size=20), st.data())
def test_spans_are_the_pages_that_are_not_zero(shape: list[tuple[int, int]], data: st.DataObject) -> None:
    pieces, page, filled = [], 0, 0
    for length, gap in shape:
        pieces.append((page * PAGE, (page + length) * PAGE))
        page, filled = page + length + gap, filled + length
    full = data.draw(st.lists(st.booleans(), min_size=filled, max_size=filled))
    buffer = bytearray(b"".join((b"\7" if one else b"\0") * PAGE for one in full))
    found, empty = spans(pieces, buffer, len(buffer))
    places = [at for start, end in pieces for at in range(start, end, PAGE)]
    data_pages = {start + at - begin: at for start, begin, end in found for at in range(begin, end, PAGE)}
    assert data_pages == {place: number * PAGE for number, (place, one) in enumerate(zip(places, full, strict=True)) if one}
    assert [at for start, end in empty for at in range(start, end, PAGE)] == [place for place, one in zip(places, full, strict=True) if not one]


def test_where_the_direct_call_is_forbidden_the_file_is_read(memory_file: Path, guests: Callable[[Path], Guest], monkeypatch: pytest.MonkeyPatch) -> None:
    guest = guests(memory_file)
    guest.poke(5 * PAGE, os.urandom(20 * PAGE))
    pieces = [(0, 2 * PAGE), (6 * PAGE, 9 * PAGE), (24 * PAGE, 27 * PAGE)]

    def read() -> bytes:
        with Source(guest.region) as source:
            return bytes(source.buffer[: source.read(pieces)])

    direct = read()
    assert direct == b"".join(guest.peek(start, end - start) for start, end in pieces)
    forbidden: list[int] = []

    def refuse(*_: object) -> int:
        forbidden.append(1)
        source_module.ctypes.set_errno(source_module.errno.EPERM)
        return -1

    monkeypatch.setattr(source_module._libc, "process_vm_readv", refuse)
    assert read() == direct
    assert forbidden == [1]


def test_batches_hold_a_chunk_and_no_more_pieces_than_one_call_takes() -> None:
    scattered = [(page * PAGE, (page + 1) * PAGE) for page in range(0, 4000, 2)]
    for extents in ([(0, 5 << 20)], scattered):
        cut = list(batches(extents))
        assert all(len(batch) <= 1024 and sum(end - start for start, end in batch) <= 1 << 20 for batch in cut)
        assert [page for batch in cut for start, end in batch for page in range(start, end, PAGE)] == [p for a, b in extents for p in range(a, b, PAGE)]


def test_the_region_may_be_a_part_of_a_process(tmp_path: Path, memory_file: Path, guests: Callable[[Path], Guest]) -> None:
    guest = guests(memory_file)
    inner = MemoryRegion(guest.region.pid, guest.region.address + PAGE, MEMORY - PAGE)
    with Source(inner) as source:
        assert bytes(source.buffer[: source.read([(0, PAGE)])]) == guest.peek(PAGE, PAGE)
