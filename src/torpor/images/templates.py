"""Builds templates: an ext4 disk with a Debian userland, ready to be started from and never changed again."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from torpor.images import keys, recipes, tree
from torpor.images.debian import guest_sources
from torpor.images.ext4 import FAKE_TIME, Entry, Kind, Layout, build, with_parents
from torpor.images.index import Built
from torpor.images.keys import template_key
from torpor.images.recipes import TemplateRecipe
from torpor.images.threads import in_thread
from torpor.images.tree import Staging
from torpor.images.wheels import download, install_hooks
from torpor.images.workshop import Workshop, sha256

KIND = "template"
FILE = "disk.ext4"
_UUID = "746f7270-6f72-4469-8273-000000000001"
_CERTIFICATES = "/usr/local/share/ca-certificates"
_MADE_BY_THE_BUILD = re.compile(
    # Directories stay; these files are the host's, the build's, or must differ from sandbox to sandbox.
    r"/(dev|run|tmp|boot|var/tmp|var/log|var/cache/apt|var/lib/apt/lists)/"
    r"|/etc/(passwd|group|shadow|gshadow|subuid|subgid)-\Z|/etc/\.pwd\.lock\Z|/etc/ssh/ssh_host_"
    r"|/etc/apt/sources\.list(\Z|\.d/)|/var/cache/debconf/.*-old\Z|/var/lib/dpkg/.*-old\Z|/var/cache/ldconfig/"
)


def keep(path: str, directory: bool) -> bool:
    """Whether a path of the bootstrapped tree belongs in a template."""
    return (directory and not path.startswith(("/dev/", "/run/"))) or not _MADE_BY_THE_BUILD.match(path)


def own_files(recipe: TemplateRecipe, sources: str) -> Mapping[str, tuple[int, str]]:
    """Files that we write over Debian's: path -> (mode, text). `sources`: apt's."""
    defaults = {"name": recipe.name, "user": recipe.user, "home": recipe.home}
    files = {
        "/etc/apt/sources.list.d/debian.sources": (0o644, sources),
        "/etc/default/locale": (0o644, "LANG=C.UTF-8\n"),
        "/etc/fstab": (0o644, ""),
        "/etc/hostname": (0o644, "sandbox\n"),
        "/etc/hosts": (0o644, "127.0.0.1\tlocalhost\n127.0.1.1\tsandbox\n::1\tlocalhost ip6-localhost ip6-loopback\n"),
        "/etc/machine-id": (0o644, ""),
        "/etc/resolv.conf": (0o644, ""),
        "/etc/torpor/template.json": (0o644, json.dumps(defaults) + "\n"),
    }
    if recipe.user != "root":
        files["/etc/sudoers.d/90-torpor"] = (0o440, f"{recipe.user} ALL=(ALL:ALL) NOPASSWD: ALL\n")
    return files | dict(recipe.files)


def hooks(recipe: TemplateRecipe, certificates: Sequence[Path]) -> list[str]:
    """Shell lines that mmdebstrap runs before it packs the tree, as the tree's root."""
    lines = []
    if recipe.user != "root":
        words = ["useradd", "--create-home", "--home-dir", recipe.home, "--shell", "/bin/bash", "--uid", "1000", recipe.user]
        lines.append(f'chroot "$1" {shlex.join(words)}')
    if certificates:
        lines.append(f"copy-in {shlex.join(map(str, certificates))} {_CERTIFICATES}")
        lines.append('chroot "$1" update-ca-certificates')
    return lines


def host_certificates(directory: Path = Path(_CERTIFICATES)) -> Mapping[str, bytes]:
    """The extra CA certificates of this host: a file name fit for the template -> contents. An unreadable directory counts as empty."""
    found = sorted(directory.rglob("*.crt"))
    return {re.sub(r"[^A-Za-z0-9._-]", "_", str(path.relative_to(directory))): path.read_bytes() for path in found if path.is_file()}


async def build_template(shop: Workshop, recipe: TemplateRecipe, certificates: Mapping[str, bytes]) -> Built:
    """The file disk.ext4: of the recipe's size, sparse, with a journal (a killed VMM leaves a clean file system) and room to grow online to 1 TiB. Its digest
    is that of the whole file."""
    carried = _stage_certificates(shop.work / "certificates", certificates)
    lines = hooks(recipe, carried)
    if recipe.extras is not None:
        wheels = await download(shop, keys.wheels(recipe.extras))
        lines += install_hooks(wheels, recipe.extras.left_out)
    archive = await shop.bootstrap(recipes.USERLAND_SUITE, recipe.packages, expected=recipe.expected, until=0.75, dpkg=recipes.NO_DOCS, hooks=lines)
    staging = Staging(shop.work / "staged")
    unpacked = await in_thread(lambda step: staging.unpack(archive, keep, step), shop.part("unpacking the tree", 0.75, 0.82))
    archive.unlink()
    sources = guest_sources(tree.content(unpacked, recipes.EXAMPLE_SOURCES).decode(), recipes.USERLAND_SUITE)
    result = shop.index.staging()
    image = result / FILE
    shop.report("writing the disk", 0.82)
    entries = with_parents([*unpacked, *_own_entries(staging, own_files(recipe, sources)), *_extra_entries(recipe)])
    await build(shop.tools, image, entries, Layout(recipe.disk_size, _UUID, journal=True, grows=True))
    digest = await in_thread(lambda step: sha256(image, step), shop.part("computing the digest", 0.93, 1.0))
    fields = {"name": recipe.name, "user": recipe.user, "home": recipe.home, "description": recipe.description, "size": str(recipe.disk_size)}
    return await shop.commit(result, f"{KIND}/{recipe.name}", digest, template_key(recipe, certificates), fields)


def _own_entries(staging: Staging, files: Mapping[str, tuple[int, str]]) -> list[Entry]:
    written = [Entry(path, Kind.FILE, mode, mtime=FAKE_TIME, source=staging.file(text.encode())) for path, (mode, text) in files.items()]
    # Packages that install manual pages expect these to exist even where pages are left out.
    manuals = [Entry(f"/usr/share/man/man{section}", Kind.DIR) for section in range(1, 9)]
    return [*written, *manuals, Entry("/etc/torpor/wake.d", Kind.DIR)]


def _extra_entries(recipe: TemplateRecipe) -> list[Entry]:
    if recipe.extras is None:
        return []
    files = keys.program(recipe.extras)
    program = [Entry(f"{recipe.extras.program_at}/{name}", Kind.FILE, 0o644, mtime=FAKE_TIME, source=path) for name, path in files.items()]
    return [*program, *(Entry(path, Kind.SYMLINK, 0o777, target=target) for path, target in recipe.extras.links.items())]


def _stage_certificates(directory: Path, certificates: Mapping[str, bytes]) -> list[Path]:
    directory.mkdir()
    staged = []
    for name, content in certificates.items():
        (directory / name).write_bytes(content)
        staged.append(directory / name)
    return staged
