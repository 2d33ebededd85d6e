"""Images and networks that need nothing of the machine, for a host agent on testing.fake_vmm. What a fake network holds lies in files, so that
leaks over a crash show."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from torpor.model.domains import domains_of
from torpor.model.errors import NotFound
from torpor.model.sandbox import Egress, NetworkMode
from torpor.ports.images import BootImages, Progress, Template
from torpor.ports.network import NetworkSlot


class FakeImages:
    """One template, `tiny`, of 1 MiB."""

    def __init__(self, home: Path) -> None:
        self._root = home / "images"
        self._root.mkdir(parents=True, exist_ok=True)
        for name in ("disk", "kernel", "agent"):
            path = self._root / name
            if not path.exists():
                path.write_bytes(name.encode().ljust(1 << 20, b"."))
                path.chmod(0o444)
        self._digests = {name: hashlib.sha256((self._root / name).read_bytes()).hexdigest() for name in ("disk", "kernel", "agent")}

    def boot(self) -> BootImages:
        kernel = self._root / "kernel"
        return BootImages(kernel, kernel, self._root / "agent", "", self._digests["kernel"], self._digests["agent"])

    def agent_disk(self, digest: str) -> Path:
        if digest != self._digests["agent"]:
            raise NotFound(f"There is no agent disk {digest}.")
        return self._root / "agent"

    def templates(self) -> Sequence[Template]:
        return [Template("tiny", self._digests["disk"], self._root / "disk", "raw", 1 << 20, "root", "/root")]

    def template(self, name: str) -> Template:
        if name != "tiny":
            raise NotFound(f"There is no template {name}.")
        return self.templates()[0]

    def template_disk(self, digest: str) -> Path:
        if digest != self._digests["disk"]:
            raise NotFound(f"There is no template disk {digest}.")
        return self._root / "disk"

    def buildable(self) -> Sequence[str]:
        return ("tiny",)

    async def ensure(self, names: Sequence[str], progress: Progress) -> None: ...


class FakeNetworks:
    """A slot is a file in `home/slots`."""

    def __init__(self, home: Path) -> None:
        self._root = home / "slots"
        self._root.mkdir(exist_ok=True)

    def held(self) -> set[str]:
        return set(os.listdir(self._root))

    async def open(self, in_use: Sequence[str]) -> None:
        for name in self.held() - set(in_use):
            (self._root / name).unlink()

    def problems(self) -> Sequence[str]:
        return ()

    async def warnings(self) -> Sequence[str]:
        return ()

    async def acquire(self, mode: NetworkMode) -> NetworkSlot | None:
        if mode is NetworkMode.OFF:
            return None
        name = secrets.token_hex(4)
        (self._root / name).touch()
        return self.adopt(name)

    async def restrict(self, slot: NetworkSlot, egress: Egress) -> None:
        if slot.name not in self.held():
            raise NotFound(f"There is no slot {slot.name}.")
        domains_of(egress)
        (self._root / slot.name).write_text(f"{' '.join(egress.allow)}|{' '.join(egress.deny)}")

    def said(self) -> list[str]:
        """What each slot's guest may reach: `allow|deny`, '' for what was never restricted."""
        return sorted((self._root / name).read_text() for name in self.held())

    async def open_tap(self, slot: NetworkSlot) -> int:
        return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)

    async def release(self, slot: NetworkSlot) -> None:
        (self._root / slot.name).unlink(missing_ok=True)

    def adopt(self, name: str) -> NetworkSlot:
        if name not in self.held():
            raise NotFound(f"There is no slot {name}.")
        return NetworkSlot(name, self._root / name, "tap", {"address": "10.0.0.2"})

    async def close(self) -> None: ...
