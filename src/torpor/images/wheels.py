"""Distributions of PyPI in a template: fetched on the host by its pip, with the host's index, proxies and certificates, and checked against the hashes of the
file that pins them; installed in the tree by the tree's own pip, without the network.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from torpor.images import recipes
from torpor.images.workshop import Workshop

_VERSION = recipes.PYTHON.removeprefix("python")
_PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_26", "manylinux_2_24", "manylinux_2_17", "manylinux2014", "manylinux_2_12", "manylinux2010")
"""The template's C library is newer; these are the tags that wheels of today have."""
_TIMEOUT = 1800.0
_AT = "/tmp"
_HOST_SETTINGS = re.compile(r"PIP_|SSL_CERT_|REQUESTS_CA_BUNDLE\Z|CURL_CA_BUNDLE\Z|XDG_CONFIG_")


async def download(shop: Workshop, pins: Path) -> Path:
    """A directory with the wheels and the file that pins them, named `pins`. Raises HostError with pip's words, MissingTool without pip."""
    target = shop.work / "wheels"
    target.mkdir()
    (target / "pins").write_bytes(pins.read_bytes())
    wanted = max(1, len(re.findall(r"^[A-Za-z0-9].*==", pins.read_text(encoding="utf-8"), re.MULTILINE)))
    begun = 0

    def follow(line: bytes) -> None:
        nonlocal begun
        if line.startswith(b"Collecting "):
            begun += 1
            shop.report(f"fetching {line.split()[1].decode(errors='replace')}", 0.2 * min(1.0, begun / wanted))

    words = [*_pip(shop), "download", "--no-input", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    words += [f"--python-version={_VERSION}", "--implementation=cp", f"--abi=cp{_VERSION.replace('.', '')}", "--abi=abi3", "--abi=none"]
    words += [f"--platform={name}_x86_64" for name in _PLATFORMS]
    environment = {name: value for name, value in os.environ.items() if _HOST_SETTINGS.match(name)}
    mend = "Is the package index reachable? pip's own settings (pip.conf, PIP_INDEX_URL) are used."
    await shop.tools.run(
        [*words, "--requirement", str(target / "pins"), "--dest", str(target)], timeout=_TIMEOUT, env=environment, on_line=follow, mend=mend, name="pip"
    )
    return target


def _pip(shop: Workshop) -> list[str]:
    """Our own interpreter's pip, else the system's."""
    return [sys.executable, "-m", "pip"] if find_spec("pip") is not None else [shop.tools.find("pip3")]


def install_hooks(wheels: Path, left_out: Sequence[str]) -> list[str]:
    """Lines for mmdebstrap that install what `download` brought, remove what is left out and compile the rest."""
    options = "--ignore-installed --no-index --no-deps --no-compile --no-cache-dir --require-hashes"
    options += " --break-system-packages --root-user-action ignore --disable-pip-version-check"
    there = f"{_AT}/{wheels.name}"
    packages = recipes.PACKAGES
    patterns = " -o ".join(f"-path {shlex.quote(f'{packages}/{pattern}')}" for pattern in left_out)
    compile_all = f"python3 -m compileall -q --invalidation-mode unchecked-hash {packages}"
    return [
        f"copy-in {shlex.quote(str(wheels))} {_AT}",
        f'chroot "$1" python3 -m pip install -q {options} --find-links {there} --requirement {there}/pins',
        f'chroot "$1" find {packages} -depth -type d \\( {patterns} \\) -exec rm -rf {{}} +',
        f'chroot "$1" {compile_all}',
        f'rm -rf "$1"{there}',
    ]
