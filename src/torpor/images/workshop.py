"""What every build step is given, and the digest of what it made."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torpor.images.debian import CONTAINED, Bootstrap, BootstrapProgress, PackageSource
from torpor.images.index import Built, Index
from torpor.images.threads import Step, in_thread
from torpor.images.tools import Tools
from torpor.model.errors import HostError

_BOOTSTRAP_TIMEOUT = 1800.0
_TRIAL_TIMEOUT = 30.0
_PHASES = ((b"Get:", "fetching packages"), (b"Unpacking ", "unpacking packages"), (b"Setting up ", "setting up packages"))


@dataclass(frozen=True, slots=True)
class Workshop:
    """`work` is the step's own directory, removed after it. `report` takes what is being done and the fraction of this step."""

    index: Index
    tools: Tools
    source: PackageSource
    work: Path
    report: Callable[[str, float], None]

    def part(self, what: str, start: float, end: float) -> Step:
        """A Step whose 0 to 1 are `start` to `end` of this step."""
        return lambda fraction: self.report(what, start + (end - start) * fraction)

    async def bootstrap(
        self, suite: str, packages: Sequence[str], *, expected: int, until: float, extract: bool = False, dpkg: Sequence[str] = (), hooks: Sequence[str] = ()
    ) -> Path:
        """The tar of a tree with these packages. Reports fractions up to `until`. Raises HostError, NoSpace, MissingTool, TimedOut."""
        sources, keyrings = self._trust(suite)
        call = Bootstrap(suite, packages, sources, self.work / "tree.tar", extract, dpkg, hooks, keyrings)
        progress = BootstrapProgress(expected, extract=extract)

        def follow(line: bytes) -> None:
            fraction = progress.feed(line)
            for start, what in _PHASES:
                if line.startswith(start):
                    self.report(what, until * fraction)

        mend = "Is the archive reachable? Another one can be set with TORPOR_DEBIAN_MIRROR."
        argv = call.argv(self.tools.find("mmdebstrap"), contained=await self._can_contain())
        await self.tools.run(argv, timeout=_BOOTSTRAP_TIMEOUT, on_line=follow, mend=mend, env=self._scratch(), name="mmdebstrap")
        return call.target

    def _trust(self, suite: str) -> tuple[Path | None, Sequence[Path]]:
        """The sources for mmdebstrap, if any, and the keyrings for those it brings itself: Debian's, and an empty directory so that no other key of the
        host counts."""
        if listed := self.source.sources_list(suite):
            sources = self.work / "debian.list"
            sources.write_text(listed, encoding="utf-8")
            return sources, ()
        no_keys = self.work / "no-keys"
        no_keys.mkdir(exist_ok=True)
        return None, (no_keys, self.source.keyring)

    async def _can_contain(self) -> bool:
        """Root may lack the right to make namespaces, as in a container; mmdebstrap copes with that, and mounts nothing then."""
        if not self.tools.root:
            return False
        try:
            await self.tools.run([*CONTAINED, "true"], timeout=_TRIAL_TIMEOUT)
        except HostError:
            return False
        return True

    async def commit(self, staged: Path, name: str, digest: str, key: str, fields: Mapping[str, str]) -> Built:
        """Index.commit, off the event loop. When cancelled, the image is committed or it is not; the index knows."""
        return await in_thread(lambda _: self.index.commit(staged, name, digest, key, fields), lambda _: None)

    def _scratch(self) -> Mapping[str, str]:
        """Where mmdebstrap works. As root it is our directory, which the next builder sweeps. In a user namespace it must be one that other uids may
        enter, as the system's is and ours need not be."""
        return {"TMPDIR": str(self.work)} if self.tools.root else {}


def sha256(path: Path, step: Step) -> str:
    """The digest of a file, in hex."""
    digest = hashlib.sha256()
    size = max(1, path.stat().st_size)
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
            step(file.tell() / size)
    return digest.hexdigest()


def combined(parts: Mapping[str, bytes]) -> str:
    """One digest over several named contents."""
    lines = (f"{hashlib.sha256(content).hexdigest()} {name}\n" for name, content in sorted(parts.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
