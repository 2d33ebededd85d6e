"""`torpor doctor`: what this machine can do for sandboxes, what is missing, and how to mend it. Looks, but changes nothing except the remembered
verdict on KVM."""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

from torpor.apps.engine import Engine
from torpor.apps.settings import Settings
from torpor.model.errors import HomeBusy, NotFound, TorporError
from torpor.ports.vmm import Accelerator

LOW_SPACE = 8 << 30
"""Bytes: images, warm images of the common shapes and some sandboxes."""

TOOLS = {
    "qemu-system-x86_64": ("qemu-system-x86", True),
    "qemu-img": ("qemu-utils", True),
    "mmdebstrap": ("mmdebstrap", False),
    "mke2fs": ("e2fsprogs", False),
    "busybox": ("busybox-static", False),
    "nft": ("nftables", False),
}
"""Program -> (Debian package, needed to run what is built already)."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line. `needed`: without it no sandbox runs here at all."""

    name: str
    holds: bool
    detail: str
    mend: str = ""
    needed: bool = False


def main(settings: Settings) -> list[Finding]:
    return asyncio.run(examine(settings))


async def examine(settings: Settings) -> list[Finding]:
    """All findings, in the order a person would mend them."""
    engine = Engine(settings)
    try:
        settings.home.mkdir(mode=0o711, parents=True, exist_ok=True)
        await engine.processes.open()
        return [*_machine(), *_tools(), *await _vmm(engine), *_confinement(engine), *_network(engine), *_space(settings), *_images(engine), *_owner(engine)]
    finally:
        engine.unlock()


def _machine() -> Iterator[Finding]:
    arch = platform.machine()
    yield Finding("processor", arch == "x86_64", f"{arch}, {os.cpu_count()} cores", "torpor runs on x86-64 only.", needed=True)
    scan = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2]) >= (6, 7)
    yield Finding(
        "kernel", True, f"{platform.release()}, {'finds changed pages in one call' if scan else 'finds changed pages by reading the page map (slower)'}"
    )
    root = os.geteuid() == 0
    mend = "As root, each VMM gets its own user id and cgroup limits, and sandboxes can have a network."
    yield Finding("root", root, "yes" if root else f"no, user id {os.geteuid()}", mend)


def _tools() -> Iterator[Finding]:
    for program, (package, needed) in TOOLS.items():
        where = shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
        yield Finding(program, where is not None, where or "not found", f"Install it: apt-get install {package}", needed=needed)


async def _vmm(engine: Engine) -> list[Finding]:
    try:
        probe = await engine.vmm.probe()
    except TorporError as error:
        return [Finding("vmm", False, error.message, error.mend, needed=True)]
    kvm = probe.accelerator is Accelerator.KVM
    detail = "usable: a probe booted under it" if kvm else " ".join(probe.problems) or "not usable here"
    mend = "Everything works without it, under QEMU's software emulation (TCG), more slowly. On a virtual machine, ask for nested virtualisation."
    return [Finding("vmm", True, f"{probe.kind} {probe.version}", needed=True), Finding("kvm", kvm, detail, mend)]


def _confinement(engine: Engine) -> Iterator[Finding]:
    for check in engine.processes.confinement():
        yield Finding(f"confinement: {check.name}", check.holds, check.detail, check.mend)


def _network(engine: Engine) -> Iterator[Finding]:
    problems = engine.networks.problems()
    yield Finding("network", not problems, "sandboxes can have one" if not problems else problems[0], "Sandboxes run with --net off.")


def _space(settings: Settings) -> Iterator[Finding]:
    place = settings.home
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    yield Finding("space", free >= LOW_SPACE, f"{free >> 30} GiB free for {settings.home}", f"Make room: {LOW_SPACE >> 30} GiB or more.")
    yield Finding("data directory", os.access(place, os.W_OK), f"{settings.home}", "Choose another with TORPOR_HOME or --data.", needed=True)


def _images(engine: Engine) -> Iterator[Finding]:
    try:
        engine.images.boot()
        built = ", ".join(template.name for template in engine.images.templates()) or "no template"
        yield Finding("images", True, built)
    except NotFound as error:
        yield Finding("images", False, error.message, "The first start builds them; or run: torpor build")


def _owner(engine: Engine) -> Iterator[Finding]:
    try:
        engine.lock()
        yield Finding("host agent", True, "none runs; the next command becomes it")
    except HomeBusy as error:
        yield Finding("host agent", True, error.message)
    except TorporError as error:
        yield Finding("host agent", False, error.message, error.mend, needed=True)
