"""Makes an ext4 image from a list of entries, without root and without mounting.

    entries (paths, modes, owners, times; contents as staged files) -> mke2fs makes it empty -> debugfs fills it -> e2fsck finds it clean

The same entries and contents give the same bytes, whoever runs it, in whatever order the staging directory lists: `mke2fs -d` would take owners, change
times and order from the host. Tools: e2fsprogs 1.46 or later (E2FSPROGS_FAKE_TIME fixes all times that the image has of its own).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from torpor.images.tools import Tools
from torpor.model.errors import HostError, InternalError

TOOLS = ("mke2fs", "debugfs", "e2fsck")
FAKE_TIME = 1735689600
_HASH_SEED = "5b1f8a52-6c9e-4d0b-9a3e-746f72706f72"
_MKFS_TIMEOUT = 300.0
_LARGEST_DISK_BLOCKS = (1 << 40) // 4096


class Kind(Enum):
    DIR = "dir"
    FILE = "file"
    SYMLINK = "symlink"
    LINK = "link"


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in the image. `path` is absolute; `mode` has permission bits only; `mtime` in seconds since the epoch. FILE takes bytes and permissions
    from `source`, a staged file. SYMLINK points to `target`; LINK is another name of the FILE at `target`."""

    path: str
    kind: Kind
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    mtime: int = FAKE_TIME
    source: Path | None = None
    target: str = ""


@dataclass(frozen=True, slots=True)
class Layout:
    """`journal` and `grows` (up to 1 TiB, online, by reserved descriptor blocks) for a disk that is written; neither for a read-only one. `size` in bytes,
    a multiple of 4096. `inodes` 0 takes one per 16 KiB. `uuid` of the file system."""

    size: int
    uuid: str
    journal: bool = False
    grows: bool = False
    inodes: int = 0

    def argv(self, mke2fs: str, image: Path) -> list[str]:
        # Named one by one: the defaults differ between releases of e2fsprogs, and the guest's kernel must know them all.
        features = ["ext_attr", "dir_index", "filetype", "extent", "64bit", "flex_bg", "sparse_super", "large_file", "huge_file", "dir_nlink", "extra_isize"]
        features += ["metadata_csum", *(["has_journal"] if self.journal else []), *(["resize_inode"] if self.grows else [])]
        extended = ["nodiscard", "lazy_itable_init=1", "lazy_journal_init=1", f"hash_seed={_HASH_SEED}", "root_owner=0:0"]
        if self.grows:
            extended.append(f"resize={_LARGEST_DISK_BLOCKS}")
        inodes = ["-N", str(self.inodes)] if self.inodes else ["-i", "16384"]
        options = ["-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", *inodes, "-m", "0", "-U", self.uuid]
        return [mke2fs, *options, "-O", ",".join(["none", *features]), "-E", ",".join(extended), str(image), str(self.size // 4096)]


def with_parents(entries: Iterable[Entry]) -> list[Entry]:
    """Sorted so that directories come before what they hold and links after their files; directories nobody listed are added (0755, root). Of two entries
    with one path the later wins."""
    by_path = {entry.path: entry for entry in entries}
    for path in list(by_path):
        parent = os.path.dirname(path)
        while parent != "/" and parent not in by_path:
            by_path[parent] = Entry(parent, Kind.DIR)
            parent = os.path.dirname(parent)
    return sorted(by_path.values(), key=lambda entry: (entry.kind is Kind.LINK, entry.path.split("/")))


def script(entries: Iterable[Entry]) -> bytes:
    """debugfs commands that make the entries (from `with_parents`) in an empty file system."""
    ordered = list(entries)
    names = Counter(entry.target for entry in ordered if entry.kind is Kind.LINK)
    lines = [line for entry in ordered for line in _commands(entry, names[entry.path])]
    return b"".join(os.fsencode(line) + b"\n" for line in lines)


def _commands(entry: Entry, other_names: int) -> Iterator[str]:
    path = _quote(entry.path)
    if entry.kind is Kind.LINK:
        yield f"ln {_quote(entry.target)} {path}"  # does not count: the file's own entry does
        return
    if entry.kind is Kind.DIR:
        yield f"mkdir {path}"
        if entry.mode != 0o755:
            yield f"sif {path} mode 0{0o040000 | entry.mode:o}"
    elif entry.kind is Kind.SYMLINK:
        yield f"symlink {path} {_quote(entry.target)}"
    else:
        if entry.source is None:
            raise InternalError(f"{entry.path} has no contents.")
        yield f"write {_quote(str(entry.source))} {path}"
        yield f"sif {path} mode 0{0o100000 | entry.mode:o}"
        if other_names:
            yield f"sif {path} links_count {1 + other_names}"
    if entry.uid:
        yield f"sif {path} uid {entry.uid}"
    if entry.gid:
        yield f"sif {path} gid {entry.gid}"
    if entry.mtime != FAKE_TIME:
        yield f"sif {path} mtime @{entry.mtime}"


def _quote(text: str) -> str:
    if "\n" in text or '"' in text:
        raise HostError(f"The name {text!r} cannot be put into an image.")
    return f'"{text}"'


async def build(tools: Tools, image: Path, entries: Iterable[Entry], layout: Layout) -> None:
    """Writes the new file `image`, sparse, and checks it. Raises HostError (with the tool's words), NoSpace, MissingTool; when it fails or is cancelled,
    `image` may be left behind half made."""
    environment = {"E2FSPROGS_FAKE_TIME": str(FAKE_TIME), "MKE2FS_CONFIG": "/dev/null"}
    with image.open("xb") as file:
        file.truncate(layout.size)
    await tools.run(layout.argv(tools.find("mke2fs"), image), timeout=_MKFS_TIMEOUT, env=environment)
    commands = image.with_name(image.name + ".commands")
    commands.write_bytes(script(entries))
    filled = await tools.run([tools.find("debugfs"), "-w", "-f", str(commands), str(image)], timeout=_MKFS_TIMEOUT, env=environment)
    commands.unlink()
    # debugfs ends with 0 whatever happens; its complaints stand in stderr, after the line with its version.
    if complaints := [line for line in filled.stderr.decode(errors="replace").splitlines() if line and not line.startswith("debugfs ")]:
        raise HostError("debugfs could not fill the image: " + "; ".join(complaints[:5]))
    await tools.run([tools.find("e2fsck"), "-f", "-n", str(image)], timeout=_MKFS_TIMEOUT, env=environment)


def owned_by(entries: Iterable[Entry], path: str, uid: int, gid: int) -> list[Entry]:
    """The entries, with all that lies at or below `path` given to uid and gid."""
    return [replace(entry, uid=uid, gid=gid) if entry.path == path or entry.path.startswith(path + "/") else entry for entry in entries]
