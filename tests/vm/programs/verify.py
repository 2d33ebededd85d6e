"""Runs in the guest. `verify.py PID...` waits for progress of every writer, stops them, compares all they wrote with what was acknowledged, first in the
page cache, then on the disk itself, lets them run on, and prints the counts. `verify.py --frozen` prints a digest of everything, for a wake hook."""

import hashlib
import json
import mmap
import os
import signal
import struct
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from writer import DISK, FILES, PAGES, RECORDS, SHARED, WRITERS, piece


def counts():
    found = {}
    for kind in WRITERS:
        try:
            with open(f"{SHARED}/count-{kind}", "rb") as file:
                found[kind] = struct.unpack("<Q", file.read(8))[0]
        except (FileNotFoundError, struct.error):
            found[kind] = 0
    return found


def progress(steps):
    before = counts()
    while any(now - before[kind] < steps for kind, now in counts().items()):
        os.sched_yield()


def state(pid):
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


def stop(pids):
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
        while state(pid) != "T":
            os.sched_yield()


def read(path):
    with open(path, "rb") as file:
        return file.read()


def read_disk(path):
    """Past the page cache."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    size, buffer, got = os.fstat(fd).st_size, mmap.mmap(-1, 1 << 20), b""
    while len(got) < size:
        count = os.preadv(fd, [buffer], len(got))
        got += buffer[:count]
    os.close(fd)
    return got


def check(kind, what, good):
    if not good:
        sys.exit(f"{kind}: {what} is not what was written; counts {counts()}")


def check_slots(kind, done, slots, size, content):
    """Slot n holds the last piece whose number is n modulo `slots`; the one that is not acknowledged yet may be old, new, or (mapped memory) in between."""
    for slot in range(min(slots, done)):
        last = done - 1 - (done - 1 - slot) % slots
        found = content(slot)
        early = slot == done % slots and (kind == "mmap" or found == piece(kind, done, size))
        check(kind, f"piece {last} in slot {slot}", early or found == piece(kind, last, size))


def check_file(kind, done, slots, size):
    for whole in (read(f"{DISK}/{kind}"), read_disk(f"{DISK}/{kind}")):
        check_slots(kind, done, slots, size, lambda slot, whole=whole: whole[slot * size : (slot + 1) * size])


def verify(pids, steps):
    progress(steps)
    stop(pids)
    done = counts()
    check_file("fsync", done["fsync"], RECORDS, 512)
    fd = os.open(f"{DISK}/mmap", os.O_RDWR)
    os.fsync(fd)
    os.close(fd)
    check_file("mmap", done["mmap"], PAGES, 4096)
    check_slots("tmpfs", done["tmpfs"], FILES, 3000, lambda slot: read(f"{SHARED}/file-{slot}"))
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    print(json.dumps(done))


def frozen():
    whole = hashlib.sha256(json.dumps(counts()).encode())
    for path in [f"{DISK}/fsync", f"{DISK}/mmap", *sorted(f"{SHARED}/{name}" for name in os.listdir(SHARED))]:
        whole.update(path.encode() + read(path))
    print(json.dumps(counts()), whole.hexdigest())


if __name__ == "__main__":
    if sys.argv[1] == "--frozen":
        frozen()
    else:
        verify([int(pid) for pid in sys.argv[2:]], int(sys.argv[1]))
