"""Runs in the guest: writes for ever, each piece told from the last, and counts in /dev/shm what the kernel has acknowledged.

usage: writer.py fsync|mmap|tmpfs|memory NAME
"""

import mmap
import os
import struct
import sys

DISK, SHARED = "/root/w", "/dev/shm/w"
PAGES, RECORDS, FILES = 128, 128, 32


def piece(kind, number, size):
    """`size` bytes that no other piece of any writer has, in every 24 of them."""
    return (b"%-8s%016x" % (kind.encode(), number) * (size // 24 + 1))[:size]


def counter(kind):
    """Eight mapped bytes: how many pieces are acknowledged."""
    fd = os.open(f"{SHARED}/count-{kind}", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, 4096)
    return mmap.mmap(fd, 4096)


def fsync_writer():
    log = os.open(f"{DISK}/fsync", os.O_WRONLY | os.O_CREAT)
    number = 0
    while True:
        os.pwrite(log, piece("fsync", number, 512), number % RECORDS * 512)
        os.fsync(log)
        number += 1
        yield number


def mmap_writer():
    fd = os.open(f"{DISK}/mmap", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, PAGES * 4096)
    view = mmap.mmap(fd, PAGES * 4096)
    number = 0
    while True:
        page = number % PAGES
        view[page * 4096 : (page + 1) * 4096] = piece("mmap", number, 4096)
        if page % 16 == 0:
            view.flush()
        number += 1
        yield number


def tmpfs_writer():
    number = 0
    while True:
        with open(f"{SHARED}/new", "wb") as file:
            file.write(piece("tmpfs", number, 3000))
        os.rename(f"{SHARED}/new", f"{SHARED}/file-{number % FILES}")
        number += 1
        yield number


def memory_writer():
    """Private memory: reads back what it wrote one lap ago before it writes anew."""
    memory = bytearray(PAGES * 4096)
    number = 0
    while True:
        at = number % PAGES * 4096
        if number >= PAGES and memory[at : at + 4096] != piece("memory", number - PAGES, 4096):
            sys.exit(f"memory at {at} is not what was written in step {number - PAGES}")
        memory[at : at + 4096] = piece("memory", number, 4096)
        number += 1
        yield number


WRITERS = {"fsync": fsync_writer, "mmap": mmap_writer, "tmpfs": tmpfs_writer, "memory": memory_writer}

if __name__ == "__main__":
    os.makedirs(DISK, exist_ok=True)
    os.makedirs(SHARED, exist_ok=True)
    count = counter(sys.argv[1])
    for done in WRITERS[sys.argv[1]]():
        count[:8] = struct.pack("<Q", done)
