"""Builds what a cold boot starts with: Debian's cloud kernel and our initrd."""

from __future__ import annotations

from pathlib import Path

from torpor.images import initrd, recipes, tree
from torpor.images.ext4 import Entry
from torpor.images.index import Built
from torpor.images.keys import kernel_key
from torpor.images.threads import Step, in_thread
from torpor.images.workshop import Workshop, combined
from torpor.model.errors import HostError

NAME = "kernel"
_EXPECTED_PACKAGES = 45


async def build(shop: Workshop) -> Built:
    """The files `vmlinuz` (a bzImage) and `initrd`. The digest covers both and the command line: what a cold boot would run."""
    archive = await shop.bootstrap(recipes.KERNEL_SUITE, recipes.KERNEL_PACKAGES, expected=_EXPECTED_PACKAGES, until=0.8, extract=True)
    wanted = {f"{name}.ko" for name in recipes.KERNEL_MODULES} | {"busybox"}

    def keep(path: str, directory: bool) -> bool:
        name = path.rpartition("/")[2]
        return not directory and (name in wanted or path.startswith("/boot/vmlinuz-"))

    def work(step: Step) -> tuple[bytes, bytes, str]:
        entries = tree.Staging(shop.work / "staged").unpack(archive, keep, step)
        release = _path(entries, "/boot/vmlinuz-").removeprefix("/boot/vmlinuz-")
        modules = {name: tree.content(entries, _path(entries, "/", f"/{name}.ko")) for name in recipes.KERNEL_MODULES}
        busybox = tree.content(entries, _path(entries, "/", "/bin/busybox"))
        return tree.content(entries, f"/boot/vmlinuz-{release}"), initrd.build(busybox, modules), release

    vmlinuz, ramdisk, release = await in_thread(work, shop.part("unpacking the kernel", 0.8, 1.0))
    result = shop.index.staging()
    (result / "vmlinuz").write_bytes(vmlinuz)
    (result / "initrd").write_bytes(ramdisk)
    digest = combined({"vmlinuz": vmlinuz, "initrd": ramdisk, "command_line": recipes.COMMAND_LINE.encode()})
    return await shop.commit(result, NAME, digest, kernel_key(), {"release": release, "command_line": recipes.COMMAND_LINE})


def _path(entries: list[Entry], start: str, end: str = "") -> str:
    """The one path among the entries that starts and ends so."""
    found = [entry.path for entry in entries if entry.path.startswith(start) and entry.path.endswith(end)]
    if len(found) != 1:
        raise HostError(f"The kernel's packages have {len(found)} files named {start}*{end}; expected one.", mend="Report this with the kernel's version.")
    return found[0]


def paths(built: Built) -> tuple[Path, Path]:
    """(kernel, initrd)."""
    return built.directory / "vmlinuz", built.directory / "initrd"
