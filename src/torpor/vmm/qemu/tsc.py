"""The host's time stamp counter. A TCG guest reads the host's counter, so the host can tell its kernel the frequency and spare it the calibration.

That calibration (against the emulated PIT) is what made about one cold boot in twenty hang: on a busy machine it fails, the kernel then waits in its delay loop
for a timer tick, and a machine with reduced ACPI hardware has no ticking timer at that point.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path

_RDTSC = bytes.fromhex("0f31 48c1e220 4809d0 c3")  # rdtsc; shl rdx, 32; or rax, rdx; ret
_SPAN = 0.1
_TRIES = 9
_SAME_PPM = 500
_KVM_CREATE_VM, _KVM_CREATE_VCPU, _KVM_GET_TSC_KHZ = 0xAE01, 0xAE41, 0xAEA3  # include/uapi/linux/kvm.h


async def measure_khz() -> int:
    """Counts against CLOCK_MONOTONIC_RAW for a tenth of a second; good to about 100 ppm."""
    with mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as page:
        page.write(_RDTSC)
        code = ctypes.c_char.from_buffer(page)
        counter = ctypes.PYFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(code))
        try:
            time_1, ticks_1 = _reading(counter)
            await asyncio.sleep(_SPAN)
            time_2, ticks_2 = _reading(counter)
        finally:
            del code  # else the page cannot be closed
    return (ticks_2 - ticks_1) * 1_000_000 // (time_2 - time_1)


def _reading(counter: Callable[[], int]) -> tuple[int, int]:
    """(nanoseconds, ticks), the pair of several that was read closest together."""
    readings = []
    for _ in range(_TRIES):
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        ticks = counter()
        after = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        readings.append((after - before, (before + after) // 2, ticks))
    _, moment, ticks = min(readings)
    return moment, ticks


def settle_khz(measured: int, earlier: int) -> int:
    """The earlier figure if the new one differs by no more than measuring does: a machine keeps its figure, and its snapshots, over upgrades."""
    return earlier if abs(measured - earlier) * 1_000_000 <= earlier * _SAME_PPM else measured


def kvm_khz(device: Path) -> int:
    """The frequency KVM gives its guests' counters, in kHz. Raises OSError without a usable KVM."""
    opened = [os.open(device, os.O_RDWR | os.O_CLOEXEC)]
    try:
        opened.append(fcntl.ioctl(opened[0], _KVM_CREATE_VM, 0))
        opened.append(fcntl.ioctl(opened[1], _KVM_CREATE_VCPU, 0))
        return fcntl.ioctl(opened[2], _KVM_GET_TSC_KHZ, 0)
    finally:
        for fd in reversed(opened):
            os.close(fd)
