"""A full disk at every point: NoSpace that says what to do, nothing left, nothing lost."""

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from snapshot_world import Guest, Store

from torpor.durable.threads import Threads
from torpor.model.errors import NoSpace
from torpor.model.snapshots import ArtefactKind

pytestmark = pytest.mark.root


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 96 MiB: a guest that reads a hole of a file on tmpfs fills it, so there is room for that."""
    home = tmp_path / "small"
    home.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "torpor-test", str(home)], check=True)
    yield home
    subprocess.run(["umount", str(home)], check=True)


@pytest.fixture
async def tight(small: Path, store: Store, threads: Threads, guests: Callable[[Path], Guest]) -> Store:
    made = type(store)(small, threads, guests)
    await made.snapshots.open()
    return made


def fill(home: Path, leave: int) -> Path:
    """Leaves `leave` bytes free."""
    filler = home / "filler"
    status = os.statvfs(home)
    filler.write_bytes(bytes(status.f_bavail * status.f_frsize - leave))
    return filler


@pytest.mark.parametrize("size", [7, 20])  # below and above what is captured inline
async def test_a_capture_into_a_full_disk(tight: Store, size: int) -> None:
    warm = await tight.warm()
    guest = await tight.resume(warm)
    guest.poke(32 << 20, os.urandom(size << 20))
    content = guest.digest()
    filler = fill(tight.home, 1 << 20)
    before = tight.files()
    draft = tight.snapshots.draft("d" * 25)
    with pytest.raises(NoSpace, match="memory layer") as caught:
        await draft.capture(guest.region, warm.memory_id)
    assert "Free space" in caught.value.mend
    await draft.abort()
    assert tight.files() == before
    assert guest.digest() == content  # the sandbox runs on
    filler.unlink()
    paused = await tight.pause(guest, warm.memory_id)
    assert paused.layer_bytes == size << 20
    await tight.snapshots.verify(paused.id)


@pytest.mark.parametrize("left", [0, 65536])
async def test_a_commit_into_a_full_disk(tight: Store, left: int) -> None:
    warm = await tight.warm()
    guest = await tight.resume(warm)
    guest.poke(0, b"x")
    draft = tight.snapshots.draft("d" * 25)
    await draft.capture(guest.region, warm.memory_id)
    draft.state_path.write_bytes(b"state")
    filler = fill(tight.home, left)
    if not left:
        with pytest.raises(NoSpace, match="committing artefact"):
            await draft.commit(tight.terms(ArtefactKind.PAUSED))
        await draft.abort()
        assert [artefact.id for artefact in tight.snapshots.list()] == [warm.id]
        filler.unlink()
        await tight.reopen()
        assert [artefact.id for artefact in tight.snapshots.list()] == [warm.id]
    else:
        assert (await tight.resume(await draft.commit(tight.terms(ArtefactKind.PAUSED)))).digest() == guest.digest()
    for one in tight.snapshots.list():
        await tight.snapshots.verify(one.id)


async def test_a_rebase_into_a_full_disk_leaves_the_artefact(tight: Store) -> None:
    warm = await tight.warm()
    guest = await tight.resume(warm)
    guest.poke(0, os.urandom(1 << 20))
    paused = await tight.pause(guest, warm.memory_id)
    fill(tight.home, 1 << 20)
    before = tight.files()
    with pytest.raises(NoSpace, match="flattening"):
        await tight.snapshots.rebase(paused.id)
    assert tight.files() == before
    assert (await tight.resume(tight.snapshots.get(paused.id))).digest() == guest.digest()


@pytest.mark.parametrize("step", ["manifest written", "draft durable", "memory renamed", "artefact renamed", "artefact durable"])
@pytest.mark.parametrize("kind", [ArtefactKind.WARM, ArtefactKind.PAUSED])
async def test_an_error_at_any_step_of_a_commit_takes_it_back(store: Store, step: str, kind: ArtefactKind) -> None:
    if kind is ArtefactKind.PAUSED and step == "memory renamed":
        kind = ArtefactKind.SNAPSHOT  # has no memory of its own: the step is passed over and the commit holds
    warm = await store.warm()
    guest = await store.resume(warm)
    before = store.files()
    draft = store.snapshots.draft("d" * 25)
    if kind is ArtefactKind.WARM:
        await draft.prepare_memory(256 << 20)
    else:
        await draft.capture(guest.region, warm.memory_id)
    draft.state_path.write_bytes(b"state")

    def fail(name: str) -> None:
        if name == step:
            raise OSError(errno.ENOSPC, "No space left on device")

    store.snapshots.step = fail
    if kind is ArtefactKind.SNAPSHOT:
        assert (await draft.commit(store.terms(kind))).id == "d" * 25
        return
    with pytest.raises(NoSpace):
        await draft.commit(store.terms(kind))
    await draft.abort()
    assert store.files() == before
    await store.reopen()
    assert [artefact.id for artefact in store.snapshots.list()] == [warm.id]
