"""What has been built, on disk.

    $home/images/index.json                  {"version": 1, "current": {"kernel": {"digest", "key", "fields"}, "template/base": ...},
                                              "others": {"agent": [{"digest", "key", "fields"}, ...], ...}}
    $home/images/<kind>/<digest>/            files of one image, 0444; complete once the directory bears this name, never changed
    $home/images/tmp/                        builds in progress, removals in progress; whatever lies there when a builder takes the lock is a dead builder's

The index names the newest builds of each image, one for each key: `current` is the last one made, `others` are those before it, newest first. So two versions
of torpor on one home find each its own. Builds that it no longer names stay while sandboxes stand on their disks or snapshots hold their agents running.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torpor.model.errors import Corrupt, HostError

_VERSION = 1
KEPT = 3
"""How many builds of one image the index names, each of another key."""
KINDS = ("kernel", "runtime", "agent", "template")


@dataclass(frozen=True, slots=True)
class Built:
    """One image. `name` is a kind (kernel, runtime, agent) or template/NAME; `key` says what it was built from; `directory` holds its files."""

    name: str
    digest: str
    key: str
    directory: Path
    fields: Mapping[str, str]


class Index:
    """Looks at the file at every call, for another process may have built meanwhile, and reads it when it is another one. Writing needs the build lock."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._file = root / "index.json"
        self._committing = threading.Lock()
        self._read: tuple[tuple[int, int, int], Mapping[str, Sequence[Built]]] = ((0, 0, 0), {})

    def builds(self) -> Mapping[str, Sequence[Built]]:
        """The builds of each image whose directories are there, the newest first. Raises Corrupt for an index that is not ours."""
        try:
            about = os.stat(self._file)
        except FileNotFoundError:
            return {}
        which = (about.st_ino, about.st_mtime_ns, about.st_size)
        if which != self._read[0]:
            self._read = (which, self._named())
        there = {name: [built for built in builds if os.path.isdir(built.directory)] for name, builds in self._read[1].items()}
        return {name: builds for name, builds in there.items() if builds}

    def _named(self) -> Mapping[str, Sequence[Built]]:
        try:
            document = json.loads(self._file.read_text(encoding="utf-8"))
            if document["version"] != _VERSION:
                raise Corrupt(f"{self._file} has version {document['version']}; this torpor reads {_VERSION}.")
            others = document.get("others", {})
            return {name: [self._built(name, item) for item in (newest, *others.get(name, ()))] for name, newest in document["current"].items()}
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Corrupt(f"{self._file} is damaged: {error}.", mend="Remove it; the images are then built again.") from error

    def _built(self, name: str, item: Mapping[str, Any]) -> Built:
        return Built(name, item["digest"], item["key"], self.directory(name, item["digest"]), item["fields"])

    def current(self, keys: Mapping[str, str] | None = None) -> Mapping[str, Built]:
        """One build of each image: that of the wanted key, else the newest. Raises Corrupt."""
        wanted = keys or {}
        return {name: next((built for built in builds if built.key == wanted.get(name)), builds[0]) for name, builds in self.builds().items()}

    def directory(self, name: str, digest: str) -> Path:
        return self.root / name.partition("/")[0] / digest

    def staging(self) -> Path:
        """A new empty directory for a build."""
        parent = self.root / "tmp"
        parent.mkdir(exist_ok=True)
        return Path(tempfile.mkdtemp(dir=parent))

    def sweep(self) -> None:
        """Removes what dead builders left. Raises HostError when something is mounted in there: removing would reach through the mount."""
        leftover = self.root / "tmp"
        if leftover.exists():
            refuse_mounts(leftover)
            shutil.rmtree(leftover)

    def commit(self, staged: Path, name: str, digest: str, key: str, fields: Mapping[str, str]) -> Built:
        """Makes the staged directory real and current, durably; an earlier build of the same key is no longer named then. An image of this
        digest that is there already stays, and `staged` is removed. Blocks for as long as the disk takes; several threads of the builder may call it."""
        with self._committing:
            return self._commit(staged, name, digest, key, fields)

    def _commit(self, staged: Path, name: str, digest: str, key: str, fields: Mapping[str, str]) -> Built:
        final = self.directory(name, digest)
        final.parent.mkdir(exist_ok=True)
        if final.is_dir():
            shutil.rmtree(staged)
        else:
            _seal(staged)
            staged.chmod(0o755)
            staged.rename(final)
            _sync(final.parent)
        made = Built(name, digest, key, final, dict(fields))
        builds = dict(self.builds())
        builds[name] = [made, *(built for built in builds.get(name, ()) if built.key != key)][:KEPT]
        self._write(builds)
        return made

    def _write(self, builds: Mapping[str, Sequence[Built]]) -> None:
        current = {name: _entry(named[0]) for name, named in builds.items()}
        others = {name: [_entry(built) for built in named[1:]] for name, named in builds.items() if named[1:]}
        draft = self._file.with_suffix(".new")
        with draft.open("w", encoding="utf-8") as file:
            json.dump({"version": _VERSION, "current": current, "others": others}, file, indent=1, sort_keys=True)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(self._file)
        _sync(self.root)

    def collect(self, needed: Set[str]) -> int:
        """Removes the images that the index does not name and whose digests are not in `needed`. Returns the bytes that their files took. Needs the build lock;
        a removal cut short is finished by the next sweep."""
        named = {built.digest for builds in self.builds().values() for built in builds} | needed
        unneeded = [path for kind in KINDS for path in (self.root / kind).glob("*") if path.name not in named]
        if unneeded:
            refuse_mounts(self.root)
        freed = 0
        for directory in unneeded:
            freed += sum(path.lstat().st_blocks * 512 for path in directory.rglob("*"))
            directory.rename(self.staging() / directory.name)
        self.sweep()
        return freed


def _entry(built: Built) -> Mapping[str, object]:
    return {"digest": built.digest, "key": built.key, "fields": dict(built.fields)}


def refuse_mounts(directory: Path, mountinfo: Path = Path("/proc/self/mountinfo")) -> None:
    """Raises HostError if a file system is mounted at or below `directory` (mountinfo's fifth field, proc(5); spaces stand as \\040)."""
    here = str(directory.resolve())
    for line in mountinfo.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        point = line.split()[4].replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
        if point == here or point.startswith(here + "/"):
            raise HostError(f"{point} is still mounted, left by a build that was killed.", mend=f"Unmount it: umount {point}")


def _seal(directory: Path) -> None:
    """Takes the write bits from every file below and brings everything to the disk."""
    for parent, _, names in os.walk(directory):
        for name in names:
            path = Path(parent, name)
            path.chmod(path.stat().st_mode & 0o555)
            _sync(path)
        _sync(Path(parent))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
