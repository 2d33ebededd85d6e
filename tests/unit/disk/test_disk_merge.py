"""Merging: the content stays, the depth falls, nothing that is needed goes, and a kill loses nothing."""

import asyncio
import json
import os
import random
import struct
import subprocess

import pytest
from disk_world import DiskHome

from torpor.disk import qcow2
from torpor.model.errors import Corrupt
from torpor.ports.store import DiskChain


async def deep(place: DiskHome, count: int, seed: int = 1) -> list[DiskChain]:
    """Chains of depth 1..count; each layer writes, discards and zeroes at random, also over the base and over earlier layers."""
    chance = random.Random(seed)
    chains = [place.chain]
    for number in range(1, count + 1):
        commands = []
        for _ in range(6):
            at, length = chance.randrange(0, 160) * 65536, chance.randrange(1, 12) * 65536
            verb = chance.choice([f"write -P {number}", f"write -P {number}", "discard", "write -z"])
            commands.append(f"{verb} {at} {length}")
        commands.append(f"write -P {number} {520 + number}M 12k")
        chains.append(await place.grow(chains[-1], *commands))
    return chains[1:]


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_a_merge_keeps_the_content_and_leaves_three_layers(place: DiskHome, seed: int) -> None:
    chain = (await deep(place, 6, seed))[-1]
    before = place.digest(chain)
    assert place.disks.shorten(chain) == chain
    await place.disks.merge(chain, [])
    short = place.disks.shorten(chain)
    assert len(short.layers) == 3
    assert place.digest(short) == before
    for layer in short.layers:
        assert place.path(layer).stat().st_mode & 0o777 == 0o444
    merged = next(layer for layer in short.layers if layer not in chain.layers)
    below = short.layers[short.layers.index(merged) + 1 :]
    assert qcow2.read_header(os.open(place.path(merged), os.O_RDONLY), place.path(merged)).backing == (f"{below[0]}.qcow2" if below else "../../base.raw")
    report = subprocess.run(["qemu-img", "check", "-f", "qcow2", str(place.path(merged))], check=False, capture_output=True, text=True)
    assert report.returncode == 0, report.stdout + report.stderr


async def test_shared_layers_are_left_alone(place: DiskHome) -> None:
    chain = (await deep(place, 8))[-1]
    shared = chain.layers[4:]
    before = place.digest(chain)
    await place.disks.merge(chain, shared)
    short = place.disks.shorten(chain)
    assert short.layers[-4:] == shared
    assert len(short.layers) == 7
    assert place.digest(short) == before


async def test_a_lone_own_layer_between_shared_ones_ends_the_work(place: DiskHome) -> None:
    chain = (await deep(place, 8))[-1]
    await place.disks.merge(chain, chain.layers[1::2])
    assert place.disks.shorten(chain) == chain


async def test_the_record_survives_a_restart_and_collect_takes_the_replaced_layers(place: DiskHome) -> None:
    chain = (await deep(place, 5))[-1]
    before = place.digest(chain)
    await place.disks.merge(chain, [])
    short = place.disks.shorten(chain)
    place.reopen()
    assert place.disks.shorten(chain) == short
    assert await place.disks.collect([chain]) == 0  # the old chain is still in use, and so is what will replace it
    assert place.disks.shorten(chain) == short
    freed = await place.disks.collect([short])
    assert freed > 0
    assert place.layer_files() == {f"{layer}.qcow2" for layer in short.layers}
    assert place.digest(short) == before
    assert await place.disks.collect([]) > 0
    assert place.layer_files() == set()


async def test_merges_of_merges(place: DiskHome) -> None:
    chain = (await deep(place, 5))[-1]
    await place.disks.merge(chain, [])
    longer = await place.grow(place.disks.shorten(chain), "write -P 99 0 1M")
    longest = await place.grow(longer, "write -P 98 512k 1M")
    before = place.digest(longest)
    await place.disks.merge(longest, [])
    short = place.disks.shorten(longest)
    assert len(short.layers) == 3
    assert place.digest(short) == before
    await place.disks.collect([short])
    assert place.digest(short) == before


async def test_an_overlay_made_before_a_merge_can_be_frozen_after(place: DiskHome) -> None:
    chain = (await deep(place, 5))[-1]
    overlay = place.home / "live"
    await place.disks.create_overlay(overlay, chain)
    await place.disks.merge(chain, [])
    short = place.disks.shorten(chain)
    assert short != chain
    frozen = await place.disks.freeze(overlay, short)
    assert place.digest(frozen) == place.digest(chain)


async def test_a_frozen_layer_is_held_until_released_or_seen(place: DiskHome) -> None:
    overlay = place.home / "live"
    await place.disks.create_overlay(overlay, place.chain)
    frozen = await place.disks.freeze(overlay, place.chain)
    overlay.unlink()
    assert await place.disks.collect([]) == 0
    assert place.path(frozen.layers[0]).exists()
    place.disks.release(frozen)
    await place.disks.collect([])
    assert place.layer_files() == set()


async def test_remains_of_a_killed_merge_are_collected(place: DiskHome) -> None:
    chain = (await deep(place, 2))[-1]
    directory = place.home / "store" / "disks"
    (directory / f"{'a' * 25}.part").write_bytes(b"half")
    (directory / f"{'b' * 25}.merged").write_text(json.dumps({"format": 1, "replaces": chain.layers}))
    (directory / f"{'c' * 25}.merged.new").write_text("half")
    place.reopen()
    assert place.disks.shorten(chain) == chain
    await place.disks.collect([chain])
    assert place.layer_files() == {f"{layer}.qcow2" for layer in chain.layers}


async def test_a_cancelled_merge_leaves_no_file(place: DiskHome) -> None:
    chain = (await deep(place, 5))[-1]
    files = place.layer_files()
    task = asyncio.create_task(place.disks.merge(chain, []))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await place.disks.collect([chain])
    assert place.layer_files() in (files, files | {name for name in place.layer_files() if name.split(".")[0] in place.disks.shorten(chain).layers})


@pytest.mark.parametrize("entry", [1 << 62, 0x1000, (1 << 63) | (1 << 50), (1 << 63) | 0x20000 | (1 << 57)])
async def test_hostile_tables_are_refused(place: DiskHome, entry: int) -> None:
    chain = (await deep(place, 5))[-1]
    victim = place.path(chain.layers[2])
    victim.chmod(0o600)
    with victim.open("r+b") as file:
        header = qcow2.read_header(file.fileno(), victim)
        l1 = qcow2.read_table(file.fileno(), header.l1_offset, 1, victim)
        file.seek(l1[0] & qcow2.OFFSET_MASK)
        file.write(struct.pack(">Q", entry))
    files = place.layer_files()
    with pytest.raises(Corrupt):
        await place.disks.merge(chain, [])
    assert place.layer_files() == files
