"""Overlays: what we write is what QEMU understands, and what a hostile VMM wrote is refused."""

import json
import os
import struct
import subprocess
from pathlib import Path

import pytest
from disk_world import DiskHome

from torpor.disk import qcow2
from torpor.model.errors import Corrupt, InvalidInput, NotFound, VmmError
from torpor.ports.store import DiskChain

GIB = 1 << 30


def check(path: Path) -> dict[str, object]:
    done = subprocess.run(["qemu-img", "check", "--output=json", "-f", "qcow2", str(path)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    report: dict[str, object] = json.loads(done.stdout)
    return report


@pytest.mark.parametrize("size", [GIB, 4 * GIB, GIB + 512, 1024 * GIB])
async def test_qemu_finds_a_fresh_overlay_sound(place: DiskHome, size: int) -> None:
    chain = DiskChain(place.chain.base, (), size)
    overlay = place.home / "overlay"
    await place.disks.create_overlay(overlay, chain)
    frozen = await place.disks.freeze(overlay, chain)
    path = place.path(frozen.layers[0])
    assert check(path)["check-errors"] == 0
    info = json.loads(subprocess.run(["qemu-img", "info", "--output=json", str(path)], check=True, capture_output=True).stdout)
    assert (info["virtual-size"], info["backing-filename"], info["backing-filename-format"]) == (size, "../../base.raw", "raw")
    assert path.stat().st_blocks * 512 <= 64 << 10


async def test_qemu_writes_into_it_and_finds_it_sound_afterwards(place: DiskHome) -> None:
    frozen = await place.grow(place.chain, "write -P 1 0 1M", "write -P 2 700M 3M", "discard 4M 1M", "write -z 5M 64k")
    assert check(place.path(frozen.layers[0])).get("leaks", 0) == 0


async def test_the_overlay_reads_as_its_base(place: DiskHome) -> None:
    frozen = await place.grow(place.chain)
    assert place.digest(frozen) == place.base_digest()


async def test_the_owner_gets_a_live_overlay_and_loses_it_frozen(place: DiskHome) -> None:
    overlay = place.home / "overlay"
    await place.disks.create_overlay(overlay, place.chain, owner_uid=12345)
    assert (overlay.stat().st_uid, overlay.stat().st_mode & 0o777) == (12345, 0o600)
    frozen = await place.disks.freeze(overlay, place.chain)
    status = place.path(frozen.layers[0]).stat()
    assert (status.st_uid, status.st_mode & 0o777) == (0, 0o444)


async def test_an_existing_file_is_never_overwritten(place: DiskHome) -> None:
    overlay = place.home / "overlay"
    overlay.write_bytes(b"precious")
    with pytest.raises(InvalidInput):
        await place.disks.create_overlay(overlay, place.chain)
    assert overlay.read_bytes() == b"precious"


async def test_missing_layers_and_bases_are_named(place: DiskHome) -> None:
    missing = "0" * 25
    with pytest.raises(NotFound, match=missing):
        await place.disks.create_overlay(place.home / "o", DiskChain(place.chain.base, (missing,), GIB))
    with pytest.raises(NotFound, match="sha256:none"):
        await place.disks.create_overlay(place.home / "o", DiskChain("sha256:none", (), GIB))
    with pytest.raises(InvalidInput):
        await place.disks.create_overlay(place.home / "o", DiskChain(place.chain.base, ("../../../etc/passwd",), GIB))
    with pytest.raises(NotFound):
        place.disks.spec(place.home / "o", place.chain)
    assert not (place.home / "o").exists()


@pytest.mark.parametrize("size", [0, 513, 1 << 50, 1 << 20])
async def test_impossible_sizes_leave_nothing(place: DiskHome, size: int) -> None:
    with pytest.raises(InvalidInput):
        await place.disks.create_overlay(place.home / "o", DiskChain(place.chain.base, (), size))
    assert not (place.home / "o").exists()


def test_a_base_must_be_there_and_read_only(place: DiskHome) -> None:
    with pytest.raises(Corrupt, match="cannot be read"):
        place.disks.register_base("sha256:x", place.home / "none", "raw")
    place.base.chmod(0o644)
    with pytest.raises(Corrupt, match="read-only"):
        place.disks.register_base("sha256:x", place.base, "raw")
    with pytest.raises(InvalidInput):
        place.disks.register_base("../x", place.base, "raw")


@pytest.mark.parametrize(
    ("offset", "content", "named"),
    [
        (0, b"XFI\xfb", "magic"),
        (4, struct.pack(">I", 2), "version"),
        (20, struct.pack(">I", 9), "cluster bits"),
        (24, struct.pack(">Q", GIB - 512), "claims"),
        (24, struct.pack(">Q", 2 * GIB), "L1 table"),
        (24, struct.pack(">Q", 1 << 60), "disk of"),
        (32, struct.pack(">I", 1), "encryption"),
        (36, struct.pack(">I", 0), "L1 table"),
        (40, struct.pack(">Q", 1 << 40), "L1 table"),
        (60, struct.pack(">I", 1), "internal snapshots"),
        (72, struct.pack(">Q", 4), "incompatible features"),
        (96, struct.pack(">I", 1), "refcount order"),
        (104, b"\x01", "compression"),
        (112, struct.pack(">II", 0x44415441, 8), "extension"),
        (16, struct.pack(">I", 5000), "backing file name"),
    ],
)
async def test_a_header_that_is_not_ours_is_refused(place: DiskHome, offset: int, content: bytes, named: str) -> None:
    overlay = place.home / "overlay"
    await place.disks.create_overlay(overlay, place.chain)
    with overlay.open("r+b") as file:
        file.seek(offset)
        file.write(content)
    with pytest.raises(Corrupt, match=named):
        await place.disks.freeze(overlay, place.chain)
    assert place.layer_files() == set()


async def test_another_backing_name_is_refused(place: DiskHome) -> None:
    overlay = place.home / "overlay"
    with overlay.open("w+b") as file:
        qcow2.write_empty(file.fileno(), place.chain.size_bytes, "/etc/shadow", "raw")
    with pytest.raises(Corrupt, match="/etc/shadow"):
        await place.disks.freeze(overlay, place.chain)


async def test_a_link_in_place_of_the_overlay_is_refused(place: DiskHome) -> None:
    overlay = place.home / "overlay"
    overlay.symlink_to(place.base)
    with pytest.raises(Corrupt, match="symbolic links"):
        await place.disks.freeze(overlay, place.chain)
    assert place.base.stat().st_nlink == 1


async def test_a_short_file_is_refused(place: DiskHome) -> None:
    overlay = place.home / "overlay"
    overlay.write_bytes(b"QFI\xfb")
    with pytest.raises(Corrupt, match="too short"):
        await place.disks.freeze(overlay, place.chain)


async def test_a_layer_survives_the_live_name(place: DiskHome) -> None:
    frozen = await place.grow(place.chain, "write -P 7 0 64k")
    before = place.path(frozen.layers[0]).read_bytes()
    other = await place.grow(frozen, "write -P 8 0 64k")
    assert place.path(frozen.layers[0]).read_bytes() == before
    assert other.layers == (other.layers[0], frozen.layers[0])


async def test_a_home_may_move(place: DiskHome, tmp_path_factory: pytest.TempPathFactory) -> None:
    first = await place.grow(place.chain, "write -P 7 0 64k")
    second = await place.grow(first, "write -P 8 1M 64k")
    digest = place.digest(second)
    moved = tmp_path_factory.mktemp("moved") / "home"
    os.rename(place.home, moved)
    place.home, place.base = moved, moved / "base.raw"
    place.reopen()
    assert place.digest(second) == digest
    info = subprocess.run(["qemu-img", "info", "--backing-chain", str(place.path(second.layers[0]))], check=False, capture_output=True)
    assert info.returncode == 0


async def test_nothing_stands_on_a_layer_that_somebody_can_still_write_to(place: DiskHome) -> None:
    """A VMM that a guest took over keeps its descriptor: a snapshot fails on it, and after a pause nothing starts before it is gone."""
    overlay = place.home / "overlay"
    await place.disks.create_overlay(overlay, place.chain)
    with overlay.open("r+b"):
        chain = place.disks.prepare(overlay, place.chain)
        with pytest.raises(VmmError, match=chain.layers[0]):
            await place.disks.seal(chain, closed=True)
        await place.disks.seal(chain, closed=False)
        with pytest.raises(VmmError, match="open for writing"):
            await place.disks.create_overlay(place.home / "next", chain)
        assert not (place.home / "next").exists()
        place.reopen()
        with pytest.raises(VmmError, match="open for writing"):
            await place.disks.create_overlay(place.home / "next", chain)
    await place.disks.create_overlay(place.home / "next", chain)
    await place.disks.seal(chain, closed=True)
