"""The images of this machine: what is built, and building what is missing. Implements ports.images.Images.

ensure:  keys agree with the index? -> nothing to do
         else: lock -> look again -> sweep -> kernel, runtime -> agent, templates side by side -> index
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import shutil
from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import torpor
from torpor.images import agentdisk, kernel, recipes, templates
from torpor.images.buildlock import build_lock
from torpor.images.debian import find_source
from torpor.images.ext4 import TOOLS
from torpor.images.index import Built, Index
from torpor.images.keys import agent_key, kernel_key, runtime_key, template_key
from torpor.images.threads import in_thread
from torpor.images.tools import Tools
from torpor.images.workshop import Workshop
from torpor.model.errors import HostError, InternalError, NoPermission, NoSpace, NotFound, TorporError
from torpor.ports.images import BootImages, Progress, Template
from torpor.ports.processes import Processes

_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_NEEDED_BYTES = 2 << 30
_BUILD = "Build them: torpor build"


@dataclass(frozen=True, slots=True)
class _Step:
    """One build. `seconds` is about how long it takes, for progress alone; `room` the bytes it needs beyond the usual."""

    title: str
    seconds: float
    run: Callable[[Workshop], Awaitable[Built]]
    room: int = 0


class LocalImages:
    """`home`: $TORPOR_HOME. `debian_mirror` and `host_ca` are the settings of these names. `package`: where the agent's sources are taken from."""

    def __init__(self, home: Path, processes: Processes, *, debian_mirror: str = "", host_ca: bool = False, package: Path | None = None) -> None:
        self._root = home / "images"
        self._index = Index(self._root)
        self._tools = Tools(processes)
        self._mirror = debian_mirror
        self._host_ca = host_ca
        self._package = package or Path(torpor.__file__).parent
        self._keys: Mapping[str, str] = {}

    def _current(self) -> Mapping[str, Built]:
        """Of each image the build that this version of torpor would make, else the newest."""
        return self._index.current(self._keys or self._look())

    def _look(self) -> Mapping[str, str]:
        """What the images must be built from, as of now."""
        certificates = self._certificates()
        self._keys = {
            kernel.NAME: kernel_key(),
            agentdisk.RUNTIME: runtime_key(),
            agentdisk.NAME: agent_key(agentdisk.agent_sources(self._package)),
            **{f"{templates.KIND}/{name}": template_key(recipe, certificates) for name, recipe in recipes.TEMPLATES.items()},
        }
        return self._keys

    def _certificates(self) -> Mapping[str, bytes]:
        return templates.host_certificates() if self._host_ca else {}

    def boot(self) -> BootImages:
        current = self._current()
        if kernel.NAME not in current or agentdisk.NAME not in current:
            raise NotFound("The kernel and the agent disk are not built yet.", mend=_BUILD)
        vmlinuz, initrd = kernel.paths(current[kernel.NAME])
        agent = current[agentdisk.NAME]
        return BootImages(
            kernel=vmlinuz,
            initrd=initrd,
            agent_disk=agent.directory / agentdisk.FILE,
            command_line=current[kernel.NAME].fields["command_line"],
            kernel_digest=current[kernel.NAME].digest,
            agent_digest=agent.digest,
        )

    def agent_disk(self, digest: str) -> Path:
        return self._by_digest(agentdisk.NAME, agentdisk.FILE, digest)

    def template_disk(self, digest: str) -> Path:
        return self._by_digest(templates.KIND, templates.FILE, digest)

    def _by_digest(self, kind: str, file: str, digest: str) -> Path:
        path = self._index.directory(kind, digest) / file
        if not _DIGEST.match(digest) or not path.is_file():
            raise NotFound(f"There is no {kind} image {digest[:80]!r} in {self._root}.")
        return path

    def templates(self) -> Sequence[Template]:
        current = self._current()
        return [_template(built) for name, built in sorted(current.items()) if name.startswith(f"{templates.KIND}/")]

    def template(self, name: str) -> Template:
        name = recipes.named(name)
        built = self._current().get(f"{templates.KIND}/{name}")
        if built is not None:
            return _template(built)
        there = ", ".join(template.name for template in self.templates()) or "none"
        mend = f"Build it: torpor build {name}" if name in recipes.TEMPLATES else f"Known names: {', '.join(self.buildable())}."
        raise NotFound(f"There is no template {name[:80]!r}; built are: {there}.", mend=mend)

    def buildable(self) -> Sequence[str]:
        return sorted((*recipes.TEMPLATES, *(alias for recipe in recipes.TEMPLATES.values() for alias in recipe.aliases)))

    def standard(self) -> Sequence[str]:
        """What is built when no name is given."""
        return recipes.STANDARD

    async def ensure(self, names: Sequence[str], progress: Progress, *, refresh: bool = False) -> None:
        """ports.images. With `refresh`, everything the names need is built anew, from the packages of today; what runs keeps what it has."""
        names = [recipes.named(name) for name in names]
        for name in names:
            if name not in recipes.TEMPLATES:
                raise NotFound(f"There is no template {name[:80]!r} to build.", mend=f"Known names: {', '.join(self.buildable())}.")
        try:
            if self._missing(names, refresh):
                self._root.mkdir(parents=True, exist_ok=True)
                async with build_lock(self._root / "build.lock", lambda: progress("waiting for another process that builds", 0.0)):
                    await self._build(names, progress, refresh)
                progress("images are ready", 1.0)
        except OSError as error:
            raise _host_error(error, self._root) from error

    async def collect(self, needed: Set[str]) -> int:
        """Removes images that neither the index nor any of the digests `needed` names; returns the bytes freed. The caller sees to it that nobody starts
        from one of them meanwhile. Raises HostError, NoPermission."""
        if not self._root.is_dir() or self._root.is_symlink():  # another home's: only its owner knows what is needed
            return 0
        try:
            async with build_lock(self._root / "build.lock", lambda: None):
                return await in_thread(lambda _: self._index.collect(needed), lambda _: None)
        except OSError as error:
            raise _host_error(error, self._root) from error

    async def _build(self, names: Sequence[str], progress: Progress, refresh: bool) -> None:
        """Needs the lock. What another builder made while we waited is not made again."""
        self._index.sweep()
        groups = self._missing(names, refresh)
        if not groups:
            return
        needed = _NEEDED_BYTES + sum(step.room for group in groups for step in group)
        if (free := shutil.disk_usage(self._root).free) < needed:
            raise NoSpace(f"{self._root} has {free >> 20} MiB free; building needs {needed >> 20}.", mend="Free some space, or choose another home.")
        self._demand_tools({step.title for group in groups for step in group})
        meter = _Meter(progress, sum(step.seconds for group in groups for step in group))
        abreast = asyncio.Semaphore(max(1, min(4, os.cpu_count() or 1)))

        async def chain(steps: Sequence[_Step]) -> None:
            for step in steps:
                async with abreast:
                    await self._step(step, meter)

        try:
            async with asyncio.TaskGroup() as tasks:
                for group in groups:
                    tasks.create_task(chain(group))
        except ExceptionGroup as failures:  # not except*: Python 3.11.2 would wrap again what is raised there
            raise _first(failures) from None
        self._index.sweep()

    def _demand_tools(self, steps: Set[str]) -> None:
        """Before anything is fetched. Raises MissingTool."""
        for tool in (*(("mmdebstrap",) if steps != {"agent"} else ()), *TOOLS):
            self._tools.find(tool)

    async def _step(self, step: _Step, meter: _Meter) -> None:
        work = self._index.staging()
        work.chmod(0o755)  # apt downloads as a user of its own
        async with AsyncExitStack() as stack:
            stack.callback(shutil.rmtree, work, ignore_errors=True)  # what cannot be removed now, the sweep names
            shop = Workshop(self._index, self._tools, find_source(self._mirror), work, meter.part(step))
            await step.run(shop)
        meter.part(step)("done", 1.0)

    def _missing(self, names: Sequence[str], refresh: bool) -> list[list[_Step]]:
        """Chains of steps that wait for each other; the chains do not."""
        keys = self._look()
        current = self._current()
        sources = agentdisk.agent_sources(self._package)
        certificates = self._certificates()

        def stale(name: str) -> bool:
            return refresh or name not in current or current[name].key != keys[name]

        async def agent(shop: Workshop) -> Built:
            return await agentdisk.build_agent(shop, self._current()[agentdisk.RUNTIME], sources)

        chains: list[list[_Step]] = [[_Step("kernel", 8, kernel.build)]] if stale(kernel.NAME) else []
        runtime = [_Step("interpreter", 8, agentdisk.build_runtime)] if stale(agentdisk.RUNTIME) else []
        if runtime or stale(agentdisk.NAME):
            chains.append([*runtime, _Step("agent", 2, agent)])
        for name in dict.fromkeys(names):
            recipe = recipes.TEMPLATES[name]
            if stale(f"{templates.KIND}/{name}"):
                seconds = recipe.expected / 4 + (recipe.extras.seconds if recipe.extras else 0)
                room = 2 * (recipe.disk_size - recipes.TEMPLATE_SIZE)  # as a tree and as a disk
                chains.append([_Step(f"template {name}", seconds, _build_template(recipe, certificates), room)])
        return chains


class _Meter:
    """Adds the fractions of all steps up to one that only rises."""

    def __init__(self, progress: Progress, seconds: float) -> None:
        self._progress = progress
        self._seconds = seconds
        self._done: dict[str, float] = {}

    def part(self, step: _Step) -> Callable[[str, float], None]:
        def report(what: str, fraction: float) -> None:
            self._done[step.title] = max(self._done.get(step.title, 0.0), step.seconds * min(1.0, fraction))
            self._progress(f"{step.title}: {what}", min(1.0, sum(self._done.values()) / self._seconds))

        return report


def _build_template(recipe: recipes.TemplateRecipe, certificates: Mapping[str, bytes]) -> Callable[[Workshop], Awaitable[Built]]:
    return lambda shop: templates.build_template(shop, recipe, certificates)


def _template(built: Built) -> Template:
    recipe = recipes.TEMPLATES.get(built.fields["name"])
    return Template(
        name=built.fields["name"],
        digest=built.digest,
        disk=built.directory / templates.FILE,
        format="raw",
        size_bytes=int(built.fields["size"]),
        user=built.fields["user"],
        home=built.fields["home"],
        description=built.fields["description"],
        service=recipe.service if recipe else None,
        aliases=recipe.aliases if recipe else (),
    )


def _first(failures: ExceptionGroup[TorporError | OSError]) -> TorporError | OSError:
    """The error that came first: it cancelled the rest."""
    error: BaseException = failures
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, (TorporError, OSError)):
        return error
    raise InternalError(f"An unexpected error ended the build: {error!r}")


def _host_error(error: OSError, root: Path) -> HostError:
    where = error.filename or root
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(f"The disk is full: {where}.", mend="Free some space; building needs about 2 GiB in the home.")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return NoPermission(f"{where} cannot be written: {error.strerror}.", mend="Choose a home that you own: --data DIR or TORPOR_HOME.")
    return HostError(f"{where}: {error.strerror or error}.")
