"""What the agent asks of the guest's kernel around a pause: freeze, trim, drop caches, grow the root file system, read its metrics, end."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import socket
import stat
import struct
import time
from collections.abc import Callable
from typing import Any

from torpor.guest.cgroups import Cgroups, Group

_FITRIM, _EXT4_IOC_RESIZE_FS = 0xC0185879, 0x40086610
_NETLINK_KOBJECT_UEVENT = 15
RESIZE_SECONDS = 5.0
_MIB = 1 << 20
FREEZE_SECONDS = 0.1
TRIM_SECONDS = 0.2
_TRIM_WORTH = 4 * _MIB
_TRIM_STEP = 1 << 30
_CACHE_KEPT = 64 * _MIB
Json = dict[str, Any]


def _read(path: str) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 65536).decode()
    finally:
        os.close(fd)


def _root_device() -> str | None:
    """The block device under /, as a folder in sysfs; None when / is not on one (tests in containers)."""
    number = os.stat("/").st_dev
    path = f"/sys/dev/block/{os.major(number)}:{os.minor(number)}"
    return path if os.path.isdir(path) else None


def meminfo() -> dict[str, int]:
    """/proc/meminfo in bytes."""
    values = {}
    for line in _read("/proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        values[name] = int(rest.split()[0]) * 1024
    return values


def _page_cache() -> int:
    """Bytes that dropping caches could give back."""
    info = meminfo()
    return info["Cached"] + info["Buffers"] - info.get("Shmem", 0)


class Kernel:
    """Holds what must be remembered between calls: what was trimmed last, the last CPU reading, whether user processes are frozen. Outside a `machine` of
    its own it leaves disks and caches alone."""

    def __init__(self, groups: Cgroups, present: Callable[[], bool], *, machine: bool) -> None:
        """`present`: whether there may be user processes."""
        self._machine = machine
        self._groups = groups
        self._present = present
        self.frozen = False
        self._device = _root_device() if machine else None
        self._root = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._counter = self._open_counter()
        self._cache_mark = (_page_cache(), groups.memory())
        self._trim_mark = (0, 0)
        self._trim_from = 0
        self._cpu = (0.0, 0.0)

    # Freezing

    @property
    def peopled(self) -> bool:
        """Whether there are processes of the user's."""
        return self._present()

    def freeze_if_running(self) -> None:
        if not self.frozen:
            self._freeze()

    def _freeze(self) -> bool:
        self.frozen = True
        return not self._present() or self._groups.freeze(FREEZE_SECONDS)

    def quiesce(self) -> Json:
        """Blocks for at most the sum of the bounds: freeze 100 ms, and where they are due trim 200 ms and one step, and dropping caches."""
        begin = time.monotonic_ns()
        frozen = self._freeze()
        if self._machine:
            if self._trim_due():
                with contextlib.suppress(OSError):
                    self.trim()
            if self._cache_due():
                with contextlib.suppress(OSError):
                    self._drop_caches()
        return {"frozen": frozen, "milliseconds": (time.monotonic_ns() - begin) // 1_000_000}

    def thaw(self) -> None:
        self._groups.thaw()
        self.frozen = False

    def hook_group(self) -> Group | None:
        return self._groups.side_group("hooks")

    @staticmethod
    def kill_hook(group: Group | None, pid: int) -> None:
        if group is not None:
            group.kill()
        else:
            os.killpg(pid, signal.SIGKILL)

    # Disk and caches

    def _open_counter(self) -> int:
        """Where ext4 counts what was written to its device (Documentation/filesystems/ext4: session_write_kbytes); -1 without one."""
        if self._device is not None:
            with contextlib.suppress(OSError):
                name = os.path.basename(os.path.realpath(self._device))
                return os.open(f"/sys/fs/ext4/{name}/session_write_kbytes", os.O_RDONLY | os.O_CLOEXEC)
        return -1

    def _written(self) -> int:
        """Bytes written to the root device since boot."""
        return int(os.pread(self._counter, 32, 0)) * 1024 if self._counter >= 0 else 0

    def _free(self) -> int:
        status = os.fstatvfs(self._root)
        return status.f_bfree * status.f_frsize

    def _trim_due(self) -> bool:
        """Whether many blocks may have become free since the last time."""
        if self._device is None:
            return False
        before_written, before_free = self._trim_mark
        return self._trim_from > 0 or self._written() - before_written >= _TRIM_WORTH or self._free() - before_free >= _TRIM_WORTH

    def trim(self) -> None:
        """Tells the device which blocks are free, a gibibyte at a time until the bound is reached."""
        fd, status = self._root, os.fstatvfs(self._root)
        # Freed blocks count as free once the journal has committed; touching / puts it into the running transaction, fsync commits that.
        times = os.stat(fd)
        os.utime(fd, ns=(times.st_atime_ns, times.st_mtime_ns))
        os.fsync(fd)
        size, end = status.f_blocks * status.f_frsize, time.monotonic() + TRIM_SECONDS
        while self._trim_from <= size and time.monotonic() < end:
            fcntl.ioctl(fd, _FITRIM, struct.pack("<QQQ", self._trim_from, _TRIM_STEP, 65536))
            self._trim_from += _TRIM_STEP
        if self._trim_from > size:
            self._trim_from = 0
        self._trim_mark = (self._written(), status.f_bfree * status.f_frsize)

    def _cache_due(self) -> bool:
        """Whether the page cache may be worth dropping: what user processes read is charged to their cgroup, so that one number mostly shows it is not."""
        cache, charged = self._cache_mark
        return cache + self._groups.memory() - charged > _CACHE_KEPT

    def _drop_caches(self) -> None:
        cache = _page_cache()
        if cache > _CACHE_KEPT:
            with open("/proc/sys/vm/drop_caches", "w") as file:
                file.write("1")
            cache = _page_cache()
        self._cache_mark = (cache, self._groups.memory())

    def _blocks(self) -> tuple[int, int, int]:
        """(block size, the file system's blocks by its superblock, the device's blocks). ext4's superblock lies at byte 1024."""
        assert self._device is not None
        device = os.makedev(*map(int, _read(f"{self._device}/dev").split(":")))
        sectors = int(_read(f"{self._device}/size"))
        node = f"/run/torpor/root-device-{os.getpid()}"
        os.mknod(node, 0o400 | stat.S_IFBLK, device)
        try:
            fd = os.open(node, os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.unlink(node)
        try:
            block = os.pread(fd, 1024, 1024)
        finally:
            os.close(fd)
        low, log_size, magic = *struct.unpack_from("<I", block, 4), *struct.unpack_from("<I", block, 0x18), *struct.unpack_from("<H", block, 0x38)
        if magic != 0xEF53:
            raise OSError(95, "the root file system is not ext4")
        high = struct.unpack_from("<I", block, 0x150)[0] if struct.unpack_from("<I", block, 0x60)[0] & 0x80 else 0
        size = 1024 << log_size
        return size, low | high << 32, sectors * 512 // size

    def grow_to(self, size: int) -> None:
        """Grows the root file system to the device, if the sandbox's disk is `size` bytes and the file system is smaller."""
        if not size or not self._device:
            return
        status = os.statvfs("/")
        # statvfs leaves out what the file system keeps for itself: at most a sixteenth.
        if status.f_blocks * status.f_frsize < size - size // 16:
            self._await_size(size)
            self.grow()

    def _await_size(self, size: int) -> None:
        """Returns when the kernel knows that the device has `size` bytes: its driver learns of it in a thread of its own, which may run after us, and tells
        with an event. Raises OSError ETIMEDOUT."""
        end = time.monotonic() + RESIZE_SECONDS
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_KOBJECT_UEVENT) as events:
            events.bind((0, 1))
            while int(_read(f"{self._device}/size")) * 512 < size:
                if not select.select([events], [], [], max(0.0, end - time.monotonic()))[0]:
                    raise OSError(errno.ETIMEDOUT, "the disk did not get its new size")
                events.recv(65536)

    def grow(self) -> int:
        """Grows the root file system to its device, online. Returns its size in bytes."""
        if self._device is None:
            raise OSError(95, "the root file system has no device")
        size, now, there = self._blocks()
        if there > now:
            fd = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.ioctl(fd, _EXT4_IOC_RESIZE_FS, struct.pack("<Q", there))
            finally:
                os.close(fd)
        return size * max(now, there)

    # Metrics

    def metrics(self) -> Json:
        busy, now = self._busy(), time.monotonic()
        last_busy, last = self._cpu
        self._cpu = (busy, now)
        memory, status = meminfo(), os.statvfs("/")
        used = memory["MemTotal"] - memory["MemAvailable"]
        return {
            "vcpus": os.cpu_count() or 1,
            "cpu_percent": 100.0 * (busy - last_busy) / (now - last) if last and now > last else 0.0,
            "memory_total": memory["MemTotal"],
            "memory_used": used,
            "memory_cache": memory["Cached"] + memory["Buffers"],
            "disk_total": status.f_blocks * status.f_frsize,
            "disk_used": (status.f_blocks - status.f_bfree) * status.f_frsize,
            "processes": self._groups.count(),
            "oom_kills": self._groups.oom_kills(),
        }

    @staticmethod
    def _busy() -> float:
        """CPU seconds spent so far, idle and waiting for disks left out."""
        user, nice, system, _idle, _wait, irq, soft, steal = map(int, _read("/proc/stat").split(None, 9)[1:9])
        return (user + nice + system + irq + soft + steal) / float(os.sysconf("SC_CLK_TCK"))
