"""The initial RAM disk: a static busybox, the virtio modules and one script that mounts and hands over to the agent.

Format: cpio "newc" (Linux, Documentation/driver-api/early-userspace/buffer-format.rst), not compressed: the boot loader copies it in host time, while
unpacking a compressed one would run in the guest. The bytes depend on the contents alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

AGENT = "/run/torpor/agent"
"""Where the agent disk is mounted."""

AGENT_COMMAND = (
    f"{AGENT}/lib/ld-linux-x86-64.so.2",
    "--library-path",
    f"{AGENT}/lib",
    f"{AGENT}/bin/python3",
    "-I",
    "-S",
    "-B",
    f"{AGENT}/app/__main__.py",
)
"""The agent's own loader, libraries and interpreter: nothing of the sandbox's file system is needed to start it."""

_SCRIPT = """#!/bin/busybox sh
# Mounts the root file system and the agent disk, then becomes the agent. Whatever fails is named on the console and ends the machine.
B=/bin/busybox
fail() {{ $B echo "torpor init: $*" >/dev/console; $B reboot -f; }}
$B mount -t devtmpfs dev /dev || $B reboot -f
$B mount -t proc proc /proc || fail "cannot mount /proc"
$B mount -t sysfs sys /sys || fail "cannot mount /sys"
for m in {modules}; do
  $B insmod /lib/$m.ko || fail "cannot load the module $m"
done
$B mount -t ext4 -o rw,noatime,noinit_itable /dev/vda /root || fail "cannot mount the root file system on /dev/vda"
for d in dev proc sys run; do
  $B test -d /root/$d || $B mkdir /root/$d || fail "the root file system has no /$d and refuses one"
done
$B mount -t tmpfs -o mode=755,nosuid run /root/run || fail "cannot mount /run"
$B mkdir -p /root{agent} || fail "cannot make {agent}"
$B mount -t ext4 -o ro {disk} /root{agent} || fail "cannot mount the agent disk on {disk}"
for d in dev proc sys; do
  $B mount --move /$d /root/$d || fail "cannot move /$d into the root file system"
done
exec $B switch_root /root {command}
"""


def init_script(modules: Sequence[str]) -> str:
    """PID 1 until the agent is. Loading a virtio driver probes its devices before insmod returns, so nothing here waits. `noinit_itable`: a thread that
    writes inode tables in the background would dirty every sandbox's disk. /run allows device nodes: the agent makes one for the disk below the root
    file system there."""
    return _SCRIPT.format(modules=" ".join(modules), agent=AGENT, disk="/dev/vdb", command=" ".join(AGENT_COMMAND))


def build(busybox: bytes, modules: Mapping[str, bytes]) -> bytes:
    """The archive. `modules`: name -> contents of the .ko, in the order of loading."""
    entries: list[tuple[str, int, bytes]] = [(name, 0o040755, b"") for name in ("bin", "dev", "lib", "proc", "root", "sys")]
    entries.append(("bin/busybox", 0o100755, busybox))
    entries.append(("init", 0o100755, init_script(list(modules)).encode()))
    entries.extend((f"lib/{name}.ko", 0o100644, content) for name, content in modules.items())
    return b"".join(_record(number, *entry) for number, entry in enumerate(entries, 1)) + _record(0, "TRAILER!!!", 0, b"")


def _record(inode: int, name: str, mode: int, content: bytes) -> bytes:
    raw = name.encode() + b"\0"
    links = 2 if mode & 0o040000 and not mode & 0o100000 else 1
    # magic, ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
    numbers = (inode, mode, 0, 0, links, 0, len(content), 0, 0, 0, 0, len(raw), 0)
    header = b"070701" + b"".join(b"%08X" % number for number in numbers)
    return _pad(header + raw) + _pad(content)


def _pad(content: bytes) -> bytes:
    return content + bytes(-len(content) % 4)
