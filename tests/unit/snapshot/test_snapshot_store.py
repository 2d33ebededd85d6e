"""The store's life: warm image, pause, resume, re-base, delete, collect, damage, reopening."""

import asyncio
import os

import pytest
from snapshot_world import Store

from torpor.model.errors import Corrupt, GuestLost, Incompatible, InternalError, InvalidInput, NotFound
from torpor.model.snapshots import PAGE, ArtefactKind
from torpor.ports.store import DiskChain

MEMORY = 256 << 20


async def test_pause_and_resume_twice_is_exact(store: Store) -> None:
    warm = await store.warm()
    guest = await store.resume(warm)
    guest.poke(3 << 20, os.urandom(100 * PAGE))
    guest.tell("write", 1 << 20, 50 * PAGE, 0)
    paused = await store.pause(guest, warm.memory_id)
    assert paused.layer_bytes == 100 * PAGE
    for _ in range(2):
        assert (await store.resume(paused)).digest() == guest.digest()
    again = await store.pause(await store.resume(paused), paused.memory_id)
    assert again.layer_bytes == paused.layer_bytes
    assert (await store.resume(again)).digest() == guest.digest()
    await store.snapshots.verify(again.id)


async def test_a_large_layer_goes_through_threads_and_is_exact(store: Store) -> None:
    warm = await store.warm()
    guest = await store.resume(warm)
    guest.poke(16 << 20, os.urandom(21 << 20))
    paused = await store.pause(guest, warm.memory_id)
    assert (await store.resume(paused)).digest() == guest.digest()
    await store.reopen()
    assert store.snapshots.get(paused.id) == paused
    os.removexattr(store.home / "store/artefacts" / paused.id / "layer", "user.torpor.verified")
    await store.snapshots.verify(paused.id)


async def test_everything_committed_is_read_only_and_survives_reopening(store: Store) -> None:
    warm = await store.warm()
    paused = await store.pause(await store.resume(warm), warm.memory_id, disk=DiskChain("sha256:base", (store.disk_layer(),), 1 << 30))
    await store.reopen()
    assert store.snapshots.list() == [paused, warm]
    assert store.snapshots.list(ArtefactKind.PAUSED, "sandbox") == [paused]
    assert store.snapshots.list(owner="nobody") == []
    for path in (store.home / "store").rglob("*"):
        if path.is_file() and path.suffix != ".qcow2":
            assert path.stat().st_mode & 0o777 == 0o444, path
    assert os.listdir(store.home / "staging") == []


async def test_rebase_is_exact_and_disturbs_nobody(store: Store) -> None:
    warm = await store.warm()
    guest = await store.resume(warm)
    guest.poke(0, os.urandom(30 * PAGE))
    guest.tell("write", 1 << 20, 1 << 20, 0)
    paused = await store.pause(guest, warm.memory_id)
    parts = store.parts(paused.id)
    early = store.start(parts.memory)
    flat = await store.snapshots.rebase(paused.id)
    assert (flat.memory_id, flat.layer_bytes) == (paused.id, 0)
    assert parts.fill is not None
    await parts.fill(early.region)  # a restore that began before the re-base
    assert early.digest() == guest.digest()
    assert (await store.resume(flat)).digest() == guest.digest()
    assert store.parts(paused.id).fill is None
    assert await store.snapshots.rebase(paused.id) == flat
    await store.reopen()
    assert store.snapshots.get(paused.id) == flat
    await store.snapshots.verify(paused.id)
    assert (store.home / "store/memory" / f"{paused.id}.mem").stat().st_blocks * 512 < 4 << 20


async def test_two_rebases_at_once_and_a_cancelled_one(store: Store) -> None:
    warm = await store.warm()
    guest = await store.resume(warm)
    guest.poke(0, os.urandom(30 * PAGE))
    paused = await store.pause(guest, warm.memory_id)
    task = asyncio.create_task(store.snapshots.rebase(paused.id))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await store.resume(store.snapshots.get(paused.id))).digest() == guest.digest()
    first, second = await asyncio.gather(store.snapshots.rebase(paused.id), store.snapshots.rebase(paused.id))
    assert first == second
    assert (await store.resume(first)).digest() == guest.digest()


async def test_delete_is_idempotent_and_spares_what_others_need(store: Store) -> None:
    warm = await store.warm()
    guest = await store.resume(warm)
    guest.poke(0, b"x")
    paused = await store.pause(guest, warm.memory_id)
    await store.snapshots.delete(warm.id)
    await store.snapshots.delete(warm.id)
    with pytest.raises(NotFound):
        store.snapshots.get(warm.id)
    assert await store.snapshots.collect(0) == 0
    assert (await store.resume(paused)).digest() == guest.digest()
    await store.snapshots.delete(paused.id)
    assert await store.snapshots.collect(0) >= 2 << 20
    assert store.files() == set()


async def test_a_hold_keeps_memory_and_disk_of_a_deleted_artefact(store: Store) -> None:
    warm = await store.warm()
    chain = DiskChain("sha256:base", (store.disk_layer(),), 1 << 30)
    paused = await store.pause(await store.resume(warm), warm.memory_id, disk=chain)
    store.snapshots.hold("machine", paused.memory_id, paused.disk)
    await store.snapshots.delete(paused.id)
    await store.snapshots.delete(warm.id)
    await store.snapshots.collect(0)
    assert (store.home / "store/memory" / f"{warm.id}.mem").exists()
    assert list(store.snapshots.referenced_disks()) == [chain]
    again = await store.pause(store.start(store.home / "store/memory" / f"{warm.id}.mem"), warm.memory_id)
    store.snapshots.unpin("machine")
    store.snapshots.unpin("machine")
    await store.snapshots.delete(again.id)
    await store.snapshots.collect(0)
    assert not (store.home / "store/memory" / f"{warm.id}.mem").exists()


async def test_a_hold_keeps_parts_by_name(store: Store) -> None:
    warm = await store.warm()
    chain = DiskChain("sha256:base", (store.disk_layer(),), 1 << 30)
    store.snapshots.hold("machine", warm.memory_id, chain)
    await store.snapshots.delete(warm.id)
    await store.snapshots.collect(0)
    assert (store.home / "store/memory" / f"{warm.id}.mem").exists()
    assert chain in store.snapshots.referenced_disks()
    with pytest.raises(NotFound):
        store.snapshots.hold("machine", "a" * 25, chain)


async def test_warm_images_leave_by_last_use_within_a_budget(store: Store) -> None:
    images = [await store.warm(seed) for seed in range(3)]
    size = store.snapshots.usage()[ArtefactKind.WARM] // 3
    for number, image in enumerate(images):  # the last use decides: second, first, third
        os.utime(store.home / "store/artefacts" / image.id, ns=(0, [2, 1, 3][number]))
    assert await store.snapshots.collect(3 * size + PAGE) == 0
    freed = await store.snapshots.collect(2 * size + PAGE)
    assert freed >= 2 << 20
    assert {image.id for image in store.snapshots.list()} == {images[0].id, images[2].id}
    store.snapshots.hold("machine", images[0].memory_id, images[0].disk)
    await store.snapshots.collect(0)
    assert [image.id for image in store.snapshots.list()] == [images[0].id]
    store.parts(images[0].id)
    assert (store.home / "store/artefacts" / images[0].id).stat().st_mtime_ns > 3


async def test_usage_counts_shared_files_once(store: Store) -> None:
    warm = await store.warm()
    guest = await store.resume(warm)
    guest.poke(0, os.urandom(PAGE))
    before = store.snapshots.usage()
    await store.pause(guest, warm.memory_id)
    after = store.snapshots.usage()
    assert after[ArtefactKind.WARM] == before[ArtefactKind.WARM] > 2 << 20
    assert 0 < after[ArtefactKind.PAUSED] < 64 << 10


async def test_written_zeros_of_a_warm_image_cost_nothing(store: Store) -> None:
    warm = await store.warm()
    path = store.home / "store/memory" / f"{warm.id}.mem"
    assert path.stat().st_blocks * 512 == 2 << 20  # the written mebibyte of zeros was dug out
    assert warm.stored_bytes < (2 << 20) + PAGE


async def test_a_guest_booted_on_private_memory_is_captured_against_zeros(store: Store) -> None:
    zero = await store.snapshots.zero_memory(MEMORY)
    assert await store.snapshots.zero_memory(MEMORY) == zero
    guest = store.start(store.home / "store/memory" / f"{zero}.mem")
    guest.poke(0, os.urandom(PAGE))
    paused = await store.pause(guest, zero)
    assert (await store.resume(paused)).digest() == guest.digest()
    await store.reopen()
    await store.snapshots.collect(0)
    assert (await store.resume(store.snapshots.get(paused.id))).digest() == guest.digest()


async def test_replace_disk_is_durable_and_checked(store: Store) -> None:
    warm = await store.warm()
    chain = DiskChain("sha256:base", (store.disk_layer(),), 1 << 30)
    assert (await store.snapshots.replace_disk(warm.id, chain)).disk == chain
    await store.reopen()
    assert store.snapshots.get(warm.id).disk == chain
    with pytest.raises(NotFound):
        await store.snapshots.replace_disk(warm.id, DiskChain("sha256:base", ("b" * 25,), 1 << 30))


@pytest.mark.parametrize("part", ["state", "layer", "memory"])
async def test_a_flipped_bit_is_found_once_and_kept_in_mind(store: Store, part: str) -> None:
    warm = await store.warm()
    guest = await store.resume(warm)
    guest.poke(0, os.urandom(PAGE))
    paused = await store.pause(guest, warm.memory_id)
    path = store.home / "store/memory" / f"{warm.id}.mem" if part == "memory" else store.home / "store/artefacts" / paused.id / part
    at = 1 << 20 if part == "memory" else 100
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(Corrupt, match="digest"):
        await store.snapshots.verify(paused.id)
    with pytest.raises(Corrupt, match="damaged"):
        store.snapshots.get(paused.id)
    assert "digest" in store.snapshots.damaged()[paused.id]
    assert store.snapshots.salvage(paused.id) == paused


async def test_a_verdict_is_kept_over_reopening(store: Store) -> None:
    warm = await store.warm()
    await store.reopen()
    path = store.home / "store/memory" / f"{warm.id}.mem"
    status = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(1 << 20)
        file.write(b"?")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # as if it had never been touched
    await store.snapshots.verify(warm.id)
    os.utime(path)
    with pytest.raises(Corrupt):
        await store.snapshots.verify(warm.id)


@pytest.mark.parametrize(
    ("name", "damage"),
    [("manifest.json", None), ("manifest.json", b""), ("manifest.json", b"{}"), ("state", None), ("state", b"short"), ("layer", None), ("layer", b"short")],
)
async def test_damage_is_set_aside_and_nothing_it_needs_is_collected(store: Store, name: str, damage: bytes | None) -> None:
    warm = await store.warm()
    layer = store.disk_layer()
    paused = await store.pause(await store.resume(warm), warm.memory_id, disk=DiskChain("sha256:base", (layer,), 1 << 30))
    victim = store.home / "store/artefacts" / paused.id / name
    victim.chmod(0o644)
    if damage is None:
        victim.unlink()
    else:
        victim.write_bytes(damage)
    await store.reopen()
    assert set(store.snapshots.damaged()) == {paused.id}
    with pytest.raises(Corrupt):
        store.snapshots.get(paused.id)
    await store.snapshots.delete(warm.id)
    await store.snapshots.collect(0)
    assert (store.home / "store/memory" / f"{warm.id}.mem").exists()
    assert any(layer in chain.layers for chain in store.snapshots.referenced_disks())
    if name != "manifest.json":
        assert store.snapshots.salvage(paused.id).disk.layers == (layer,)
    else:
        with pytest.raises(Corrupt):
            store.snapshots.salvage(paused.id)
    await store.snapshots.delete(paused.id)
    await store.snapshots.collect(0)
    assert store.snapshots.damaged() == {}
    assert not list((store.home / "store/memory").iterdir())


async def test_a_half_readable_manifest_still_keeps_its_files(store: Store) -> None:
    warm = await store.warm()
    other = await store.warm(1)
    paused = await store.pause(await store.resume(warm), warm.memory_id)
    path = store.home / "store/artefacts" / paused.id / "manifest.json"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-30])
    await store.reopen()
    for image in (warm, other):
        await store.snapshots.delete(image.id)
    await store.snapshots.collect(0)
    assert os.listdir(store.home / "store/memory") == [f"{warm.id}.mem"]


async def test_a_foreign_directory_is_damage_not_a_crash(store: Store) -> None:
    (store.home / "store/artefacts/notes").mkdir()
    (store.home / "store/artefacts/notes/manifest.json").write_text("{}")
    await store.reopen()
    assert "not an id" in store.snapshots.damaged()["notes"]


async def test_another_format_is_set_aside_unharmed(store: Store) -> None:
    warm = await store.warm()
    path = store.home / "store/artefacts" / warm.id / "manifest.json"
    newer = path.read_bytes().replace(b'"format": 2', b'"format": 3')
    path.chmod(0o644)
    path.write_bytes(newer)
    await store.reopen()
    assert "format 3" in store.snapshots.damaged()[warm.id]
    await store.snapshots.collect(0)
    assert path.read_bytes() == newer
    assert (store.home / "store/memory" / f"{warm.id}.mem").exists()


async def test_stale_drafts_are_gone_after_opening(store: Store) -> None:
    draft = store.snapshots.draft("d" * 25)
    await draft.prepare_memory(MEMORY)
    await store.reopen()
    assert os.listdir(store.home / "staging") == []
    store.snapshots.draft("d" * 25)


async def test_an_id_is_used_once(store: Store) -> None:
    warm = await store.warm()
    with pytest.raises(InvalidInput):
        store.snapshots.draft(warm.id)
    with pytest.raises(InvalidInput):
        store.snapshots.draft("../../x")
    draft = store.snapshots.draft("d" * 25)
    with pytest.raises(InvalidInput):
        store.snapshots.draft("d" * 25)
    await draft.abort()
    await draft.abort()
    await store.snapshots.draft("d" * 25).abort()


async def test_a_commit_needs_its_parts(store: Store) -> None:
    warm = await store.warm()
    guest = await store.resume(warm)
    draft = store.snapshots.draft("d" * 25)
    with pytest.raises(InternalError):
        await draft.commit(store.terms(ArtefactKind.PAUSED))
    await draft.capture(guest.region, warm.memory_id)
    with pytest.raises(InternalError):
        await draft.commit(store.terms(ArtefactKind.PAUSED))
    draft.state_path.write_bytes(b"x")
    with pytest.raises(NotFound, match="c" * 25):
        await draft.commit(store.terms(ArtefactKind.PAUSED, disk=DiskChain("sha256:base", ("c" * 25,), 1 << 30)))
    artefact = await draft.commit(store.terms(ArtefactKind.PAUSED))
    await draft.abort()
    assert store.snapshots.get("d" * 25) == artefact
    with pytest.raises(InternalError):
        await draft.commit(store.terms(ArtefactKind.PAUSED))


async def test_a_capture_of_a_dead_guest_leaves_nothing_after_abort(store: Store) -> None:
    warm = await store.warm()
    guest = await store.resume(warm)
    guest.end()
    before = store.files()
    draft = store.snapshots.draft("d" * 25)
    with pytest.raises(GuestLost):
        await draft.capture(guest.region, warm.memory_id)
    await draft.abort()
    assert store.files() == before


async def test_a_capture_against_a_missing_base_is_refused(store: Store) -> None:
    warm = await store.warm()
    guest = await store.resume(warm)
    draft = store.snapshots.draft("d" * 25)
    with pytest.raises(NotFound):
        await draft.capture(guest.region, "e" * 25)
    with pytest.raises(InvalidInput):
        await draft.capture(guest.region, "../../../etc/shadow")
    await draft.abort()


async def test_a_base_that_a_draft_needs_is_not_collected(store: Store) -> None:
    warm = await store.warm()
    guest = await store.resume(warm)
    guest.poke(0, b"x")
    draft = store.snapshots.draft("d" * 25)
    await draft.capture(guest.region, warm.memory_id)
    await store.snapshots.delete(warm.id)
    await store.snapshots.collect(0)
    draft.state_path.write_bytes(b"x")
    paused = await draft.commit(store.terms(ArtefactKind.PAUSED))
    assert (await store.resume(paused)).digest() == guest.digest()


async def test_a_cancelled_commit_is_known_one_way_or_the_other(store: Store) -> None:
    warm = await store.warm()
    guest = await store.resume(warm)
    guest.poke(16 << 20, os.urandom(9 << 20))
    for turns in range(12):
        draft = store.snapshots.draft(f"{turns:025d}")
        await draft.capture(guest.region, warm.memory_id)
        draft.state_path.write_bytes(b"x")
        task = asyncio.create_task(draft.commit(store.terms(ArtefactKind.PAUSED)))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await draft.abort()
    known = {artefact.id for artefact in store.snapshots.list()}
    await store.reopen()
    assert {artefact.id for artefact in store.snapshots.list()} == known
    assert store.snapshots.damaged() == {}
    assert os.listdir(store.home / "staging") == []


async def test_incompatible_layers_say_so(store: Store) -> None:
    warm = await store.warm()
    paused = await store.pause(await store.resume(warm), warm.memory_id)
    fill = store.parts(paused.id).fill
    guest = await store.resume(warm)
    assert fill is not None
    with pytest.raises(Incompatible):
        await fill(type(guest.region)(guest.region.pid, guest.region.address, 128 << 20))


async def test_what_is_taken_is_of_one_piece_whatever_was_read_before(store: Store) -> None:
    """An artefact is read, re-based, and its old memory collected, before somebody starts from it: memory and layer taken then fit each other, and stay."""
    warm = await store.warm()
    guest = await store.resume(warm)
    guest.poke(0, os.urandom(30 * PAGE))
    read = await store.pause(guest, warm.memory_id)
    await store.snapshots.rebase(read.id)
    await store.snapshots.delete(warm.id)
    await store.snapshots.collect(0)
    with pytest.raises(NotFound):
        store.snapshots.hold("machine", read.memory_id, read.disk)
    parts = store.snapshots.take("machine", read.id)
    assert (parts.artefact.memory_id, parts.memory.stem, parts.fill) == (read.id, read.id, None)
    await store.snapshots.delete(read.id)
    await store.snapshots.collect(0)
    assert store.start(parts.memory).digest() == guest.digest()
    with pytest.raises(NotFound):
        store.snapshots.take("another", read.id)
    store.snapshots.unpin("machine")
    await store.snapshots.collect(0)
    assert not parts.memory.exists()
