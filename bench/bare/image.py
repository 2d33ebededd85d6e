"""Builds what the floor restores from: torpor's kernel and a template, an initrd with the lean agent in it, one watched cold boot.

Cached in a work directory.
"""

from __future__ import annotations

import hashlib
import json
import select
import subprocess
from pathlib import Path

from bare import cpio
from bare.vm import Parts, Vm, sync

MODULES = ("virtio_ring", "virtio", "virtio_mmio", "virtio_blk", "virtio_console")
BOOT_SECONDS = 120
ATTEMPTS = 3
"""A cold boot takes 3 to 6 s, on a machine that is busy with other things ten times that. Some hang for ever: each is watched, and started again."""
EXERCISE = ["/bin/sh", "-c", "true"]
"""Run once before the machine is saved, as torpor does: start and first command are some 25 ms faster each for it."""
INIT = f"""#!/bin/busybox sh
B=/bin/busybox
$B mount -t devtmpfs dev /dev
for m in {" ".join(MODULES)}; do $B insmod /lib/$m.ko; done
$B mount -t ext4 -o rw,noatime,noinit_itable /dev/vda /root
$B mkdir -p /root/dev /root/proc /root/sys /root/run
$B mount -t tmpfs run /root/run
$B cp /agent.py /root/run/agent.py
$B mount --move /dev /root/dev
$B mount -t proc proc /root/proc
$B mount -t sysfs sys /root/sys
exec $B switch_root /root /usr/bin/python3 -I -S -B /run/agent.py
"""


def prepare(work: Path, kernel: Path, initrd: Path, template: Path, mib: int) -> Parts:
    """The parts for guests of `mib` MiB, booted now unless `work` holds them for just these inputs. `initrd`: torpor's own, for its modules and busybox;
    `template`: a raw ext4 disk with python3."""
    directory = work / f"floor-{mib}"
    directory.mkdir(parents=True, exist_ok=True)
    parts = Parts(
        kernel=kernel,
        initrd=directory / "initrd",
        mem=directory / "mem",
        state=directory / "state",
        disk=directory / "disk.qcow2",
        overlay=directory / "overlay.qcow2",
        mib=mib,
    )
    ingredients = _ingredients(kernel, initrd, template)
    stamp = directory / "made-of"
    if stamp.exists() and stamp.read_text() == ingredients:
        return parts
    stamp.unlink(missing_ok=True)
    parts.initrd.write_bytes(_initrd(initrd.read_bytes()))
    for attempt in range(1, ATTEMPTS + 1):
        if _boot(parts, template):
            break
        if attempt == ATTEMPTS:
            raise RuntimeError(f"the floor's guest did not answer in {ATTEMPTS} boots of {BOOT_SECONDS} s")
    overlay(parts.disk, "qcow2", parts.overlay)
    stamp.write_text(ingredients)
    return parts


def _ingredients(kernel: Path, initrd: Path, template: Path) -> str:
    here = Path(__file__).parent
    code = hashlib.sha256(b"".join((here / name).read_bytes() for name in ("guest.py", "vm.py", "image.py"))).hexdigest()
    files = {str(path.resolve()): [path.stat().st_size, path.stat().st_mtime] for path in (kernel, initrd, template)}
    version = subprocess.run(["qemu-system-x86_64", "--version"], check=True, capture_output=True, text=True).stdout.splitlines()[0]
    return json.dumps([code, files, version])


def _initrd(torpors: bytes) -> bytes:
    theirs = cpio.read(torpors)
    files = {"bin/busybox": theirs["bin/busybox"], "init": INIT.encode(), "agent.py": (Path(__file__).parent / "guest.py").read_bytes()}
    files |= {f"lib/{name}.ko": theirs[f"lib/{name}.ko"] for name in MODULES}
    return cpio.write(["bin", "dev", "lib", "root"], files)


def _boot(parts: Parts, template: Path) -> bool:
    """One cold boot. False when the guest did not answer in time."""
    for path in (parts.mem, parts.state, parts.disk):
        path.unlink(missing_ok=True)
    overlay(template, "raw", parts.disk)
    vm = Vm(parts, parts.mem.parent / "boot", parts.disk, incoming=False)
    try:
        ready, _, _ = select.select([vm.agent.socket], [], [], BOOT_SECONDS)
        if not ready:
            return False
        vm.agent.receive()
        vm.ask(run=EXERCISE)
        vm("stop")
        vm("xen-save-devices-state", filename=str(parts.state))
        vm("quit")
        vm.process.wait()
    finally:
        vm.kill()
    for path in (parts.mem, parts.disk):
        path.chmod(0o444)
    sync(parts.mem, parts.state, parts.disk)
    return True


def overlay(backing: Path, backing_format: str, out: Path) -> None:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(backing.resolve()), "-F", backing_format, str(out)], check=True)
