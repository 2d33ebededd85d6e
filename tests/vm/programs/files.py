"""Runs in the guest: one step of the state machine in test_vm_exact_machine.py, then what every file holds. usage: files.py JSON"""

import json
import mmap
import os
import sys

ROOTS = {"disk": "/root/t1", "tmpfs": "/dev/shm/t1"}


def sync(directory):
    fd = os.open(directory, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def write(path, text, at=0):
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, text.encode(), at)
    os.fsync(fd)
    os.close(fd)


def truncate(path, size):
    fd = os.open(path, os.O_RDWR)
    os.ftruncate(fd, size)
    os.fsync(fd)
    os.close(fd)


def mapped(path, text, at):
    """Through a shared mapping, which may end beyond the file's first pages."""
    fd = os.open(path, os.O_RDWR)
    with mmap.mmap(fd, 0) as view:
        view[at : at + len(text)] = text.encode()
        view.flush()
    os.fsync(fd)
    os.close(fd)


STEPS = {"write": write, "truncate": truncate, "mapped": mapped, "rename": os.rename, "unlink": os.unlink}


def contents(root):
    found = {}
    for name in sorted(os.listdir(root)):
        with open(f"{root}/{name}", encoding="latin-1") as file:
            found[name] = file.read()
    return found


if __name__ == "__main__":
    for root in ROOTS.values():
        os.makedirs(root, exist_ok=True)
    for where, step, *arguments in json.loads(sys.argv[1]):
        names = 2 if step == "rename" else 1
        STEPS[step](*[f"{ROOTS[where]}/{name}" for name in arguments[:names]], *arguments[names:])
        sync(ROOTS[where])
    sync("/root")
    print(json.dumps({where: contents(root) for where, root in ROOTS.items()}))
