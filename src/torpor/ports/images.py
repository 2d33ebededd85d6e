"""The seam to images: kernel, initrd, agent disk, templates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Service:
    """What runs in every sandbox of a template from its start: it is in the warm image. Commands of the template's user.

    `start` is started once and runs on. `ready` is run again, at intervals, until it succeeds, for at most `ready_seconds`; the warm image is saved then.
    `exercise` is run in a sandbox made ahead for a pool, so that what a first use needs has run once there; it must leave nothing behind.
    Where its users come in through a TCP `port` of the guest, that is connected to then as well, and closed."""

    start: Sequence[str]
    ready: Sequence[str]
    ready_seconds: float
    exercise: Sequence[str] = ()
    port: int | None = None


@dataclass(frozen=True, slots=True)
class Template:
    """An immutable base disk. `digest` is the SHA-256 of its bytes, in hex. `user` and `home` are the defaults for commands. `aliases`: other names of it."""

    name: str
    digest: str
    disk: Path
    format: str
    size_bytes: int
    user: str
    home: str
    description: str = ""
    service: Service | None = None
    aliases: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class BootImages:
    """What every microVM boots with; `kernel_digest` and `agent_digest` are part of each artefact's fingerprint."""

    kernel: Path
    initrd: Path
    agent_disk: Path
    command_line: str
    kernel_digest: str
    agent_digest: str


Progress = Callable[[str, float], None]
"""Called with (what is being done, fraction 0..1)."""


class Images(Protocol):
    def boot(self) -> BootImages:
        """Raises NotFound, with the command that builds them."""
        ...

    def agent_disk(self, digest: str) -> Path:
        """An agent disk by digest, older ones included while artefacts refer to them. Raises NotFound."""
        ...

    def templates(self) -> Sequence[Template]:
        """Built templates, by name."""
        ...

    def template(self, name: str) -> Template:
        """By name or alias. Raises NotFound; the message lists what is there and how to build what is not."""
        ...

    def template_disk(self, digest: str) -> Path:
        """The disk of a template by digest, also of one that a newer build replaced, for the sandboxes that stand on it. Raises NotFound."""
        ...

    def buildable(self) -> Sequence[str]:
        """Names this version knows how to build, aliases included."""
        ...

    async def ensure(self, names: Sequence[str], progress: Progress) -> None:
        """Builds what is missing (boot images first). Safe when several processes ask at once: one builds, the others wait. Raises MissingTool,
        NoSpace, HostError (with the
        tool's last lines); a failed or killed build leaves nothing but a temporary directory that the next one removes."""
        ...
