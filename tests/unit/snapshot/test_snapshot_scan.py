"""The dirty scan against a real process: both ways of asking the kernel give the same, right answer."""

import itertools
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from snapshot_world import Guest

from torpor.model.errors import GuestLost
from torpor.model.snapshots import PAGE
from torpor.snapshot import scan
from torpor.snapshot.scan import Extent, dirty_extents, scan_by_ioctl, scan_by_words


def both(guest: Guest) -> list[Extent]:
    fd = os.open(f"/proc/{guest.region.pid}/pagemap", os.O_RDONLY)
    try:
        by_ioctl, by_words = scan_by_ioctl(fd, guest.region), scan_by_words(fd, guest.region)
    finally:
        os.close(fd)
    assert by_ioctl == by_words == dirty_extents(guest.region)
    return by_ioctl


def test_untouched_and_read_pages_are_the_files(memory_file: Path, guests: Callable[[Path], Guest]) -> None:
    guest = guests(memory_file)
    assert both(guest) == []
    guest.tell("read", 0, 64 * PAGE)
    assert both(guest) == []


def test_written_pages_count_whatever_was_written(memory_file: Path, guests: Callable[[Path], Guest]) -> None:
    guest = guests(memory_file)
    guest.tell("write", 5 * PAGE, PAGE, 1)
    guest.tell("write", 6 * PAGE + 100, 1, 1)
    guest.tell("write", 9 * PAGE, PAGE, 0)  # zeros over data
    guest.tell("write", 100 << 20, PAGE, 0)  # zeros over the hole
    content = memory_file.read_bytes()[20 * PAGE : 21 * PAGE]
    guest.poke(20 * PAGE, content)  # the very same bytes, from outside
    last = guest.region.size - PAGE
    guest.tell("write", last, PAGE, 3)
    expected = [(5 * PAGE, 7 * PAGE), (9 * PAGE, 10 * PAGE), (20 * PAGE, 21 * PAGE), (100 << 20, (100 << 20) + PAGE), (last, last + PAGE)]
    assert both(guest) == expected


def test_a_dropped_page_is_the_files_again(memory_file: Path, guests: Callable[[Path], Guest]) -> None:
    guest = guests(memory_file)
    guest.tell("write", 0, 8 * PAGE, 9)
    guest.tell("drop", 2 * PAGE, 3 * PAGE)
    assert both(guest) == [(0, 2 * PAGE), (5 * PAGE, 8 * PAGE)]


@pytest.mark.parametrize("room", [1, 7, 8192])
def test_more_runs_than_one_call_can_report(memory_file: Path, guests: Callable[[Path], Guest], monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """Also covers the kernel's stale walk_end: with some 1,700 scattered pages its own buffer overflows more than once."""
    guest = guests(memory_file)
    pages = sorted(random.Random(5).sample(range(guest.region.size // PAGE), 1800))
    for page in pages:
        guest.poke(page * PAGE, b"x")
    monkeypatch.setattr(scan, "_REGIONS", room)
    found = both(guest)
    assert [page for start, end in found for page in range(start // PAGE, end // PAGE)] == pages
    assert all(before[1] < after[0] for before, after in itertools.pairwise(found))


def test_an_old_kernel_is_asked_the_other_way(memory_file: Path, guests: Callable[[Path], Guest], monkeypatch: pytest.MonkeyPatch) -> None:
    guest = guests(memory_file)
    guest.tell("write", PAGE, PAGE, 1)

    def no_such_ioctl(fd: int, request: int, *rest: object) -> int:
        raise OSError(25, "Inappropriate ioctl for device")

    monkeypatch.setattr(scan.fcntl, "ioctl", no_such_ioctl)
    assert dirty_extents(guest.region) == [(PAGE, 2 * PAGE)]


def test_a_dead_process_is_guest_lost(memory_file: Path, guests: Callable[[Path], Guest]) -> None:
    guest = guests(memory_file)
    region = guest.region
    guest.process.kill()
    os.waitid(os.P_PID, guest.process.pid, os.WEXITED | os.WNOWAIT)  # a zombie: its /proc entry stands, its memory is gone
    with pytest.raises(GuestLost):
        dirty_extents(region)
    guest.end()
    with pytest.raises(GuestLost):
        dirty_extents(region)
