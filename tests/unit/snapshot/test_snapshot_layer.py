"""The memory layer: what is captured, what is left out, what a damaged one is told."""

import os
import struct
from array import array
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from snapshot_world import Guest

from torpor.durable.threads import Stop
from torpor.model.errors import Corrupt, GuestLost, Incompatible
from torpor.model.snapshots import PAGE, MemoryRegion, Run, RunKind
from torpor.snapshot.digest import digest_file
from torpor.snapshot.layer import Index, capture, decode_index, put_back
from torpor.snapshot.layerfile import read_index
from torpor.snapshot.memory import data_extents
from torpor.snapshot.scan import dirty_extents


def take(guest: Guest, memory_file: Path, layer: Path) -> Index:
    base = os.open(memory_file, os.O_RDONLY)
    target = os.open(layer, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    told: list[int] = []
    try:
        captured = capture(guest.region, dirty_extents(guest.region), data_extents(base, guest.region.size), target, told.append, Stop())
        assert told == sorted(told)
        index = captured.index
        assert read_index(target, index.data_bytes) == index
        assert captured.size == os.fstat(target).st_size
        assert captured.digest == digest_file(target, captured.size, Stop())
    finally:
        os.close(base)
        os.close(target)
    return index


def test_zeros_over_data_are_kept_and_zeros_over_holes_left_out(memory_file: Path, guests: Callable[[Path], Guest], tmp_path: Path) -> None:
    guest = guests(memory_file)  # data in the first 4 MiB, then a hole
    guest.tell("write", 0, 2 * PAGE, 5)
    guest.tell("write", 2 * PAGE, 3 * PAGE, 0)
    guest.tell("write", (4 << 20) - PAGE, 2 * PAGE, 0)
    guest.tell("write", 10 << 20, 4 * PAGE, 0)
    guest.tell("write", 20 << 20, PAGE, 6)
    index = take(guest, memory_file, tmp_path / "layer")
    assert list(index.runs()) == [
        Run(0, 2 * PAGE, RunKind.DATA, 0),
        Run(2 * PAGE, 3 * PAGE, RunKind.ZERO),
        Run((4 << 20) - PAGE, PAGE, RunKind.ZERO),
        Run(20 << 20, PAGE, RunKind.DATA, 2 * PAGE),
    ]
    assert (tmp_path / "layer").read_bytes()[: 3 * PAGE] == b"\5" * 2 * PAGE + b"\6" * PAGE


def test_put_back_makes_an_equal_process_and_the_next_layer_is_the_same(memory_file: Path, guests: Callable[[Path], Guest], tmp_path: Path) -> None:
    guest = guests(memory_file)
    guest.poke(PAGE, os.urandom(3 << 20))  # longer than a chunk
    guest.tell("write", 3 << 20, 2 << 20, 0)
    guest.poke(77 * (1 << 20), os.urandom(5 * PAGE))
    index = take(guest, memory_file, tmp_path / "layer")
    other = guests(memory_file)
    layer = os.open(tmp_path / "layer", os.O_RDONLY)
    put_back(index, layer, other.region, Stop())
    os.close(layer)
    assert other.digest() == guest.digest()
    assert take(other, memory_file, tmp_path / "again") == index
    assert (tmp_path / "again").read_bytes() == (tmp_path / "layer").read_bytes()


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5), st.booleans()), max_size=40))
def test_index_round_trip(gaps: list[tuple[int, int, bool]]) -> None:
    words, page, data = array("I"), 0, 0
    for gap, pages, zero in gaps:
        page += gap
        words.extend((page, pages | (1 << 31 if zero else 0)))
        page += pages
        data += 0 if zero else pages * PAGE
    index = Index(1 << 30, data, words)
    assert decode_index(index.encode(), data) == index


@given(st.integers(0, 8 * 5 + 39), st.integers(1, 255))
def test_any_flipped_byte_is_noticed(at: int, change: int) -> None:
    raw = bytearray(Index(1 << 30, 5 * PAGE, array("I", [value for run in range(5) for value in (run * 3, 1)])).encode())
    raw[at] ^= change
    with pytest.raises((Corrupt, Incompatible)):
        decode_index(bytes(raw), 5 * PAGE)


@pytest.mark.parametrize(
    ("words", "data"),
    [([0, 0], 0), ([5, 2, 6, 1], 3 * PAGE), ([5, 1, 4, 1], 2 * PAGE), ([1 << 30, 1], PAGE), ([0, 1], 2 * PAGE), ([0, 1 | 1 << 31], PAGE)],
)
def test_a_sound_checksum_does_not_excuse_unsound_runs(words: list[int], data: int) -> None:
    with pytest.raises(Corrupt):
        decode_index(Index(1 << 30, data, array("I", words)).encode(), data)


def test_truncation_and_another_version_are_told_apart() -> None:
    raw = Index(1 << 30, PAGE, array("I", [0, 1])).encode()
    for length in range(len(raw)):
        with pytest.raises(Corrupt):
            decode_index(raw[:length], PAGE)
    with pytest.raises(Incompatible, match="version 2"):
        decode_index(raw[:8] + struct.pack("<I", 2) + raw[12:], PAGE)


def test_another_memory_size_is_refused(memory_file: Path, guests: Callable[[Path], Guest]) -> None:
    guest = guests(memory_file)
    with pytest.raises(Incompatible):
        put_back(Index(guest.region.size * 2, 0, array("I")), -1, guest.region, Stop())


def test_a_dead_process_is_guest_lost(memory_file: Path, guests: Callable[[Path], Guest], tmp_path: Path) -> None:
    guest = guests(memory_file)
    guest.tell("write", 0, PAGE, 1)
    index = take(guest, memory_file, tmp_path / "layer")
    extents, region = dirty_extents(guest.region), guest.region
    guest.end()
    target = os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT)
    with pytest.raises(GuestLost):
        capture(region, extents, [], target, lambda _: None, Stop())
    with pytest.raises(GuestLost):
        put_back(index, target, region, Stop())
    os.close(target)


def test_an_unmapped_region_is_guest_lost(tmp_path: Path) -> None:
    target = os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT)
    with pytest.raises(GuestLost):
        capture(MemoryRegion(os.getpid(), PAGE, PAGE), [(0, PAGE)], [], target, lambda _: None, Stop())
    os.close(target)
