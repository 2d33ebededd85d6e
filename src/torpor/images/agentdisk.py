"""Builds the agent disk: the guest agent with an interpreter, a C library and a loader of its own, so that it runs above any root file system.

    bin/python3                 Debian's interpreter                     lib/ld-linux-x86-64.so.2, lib/*.so.*   all that it loads
    lib/python3.13/             the standard library, trimmed, compiled  app/__main__.py, app/torpor/           the agent, compiled

The interpreter's part (the *runtime*) is kept as a directory of its own: a new agent needs neither the network nor Debian's packages. Everything is
compiled by that very interpreter, through its own loader, with unchecked hashes: the guest never compiles and never compares times.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from torpor.images import recipes, tree
from torpor.images.ext4 import Entry, Kind, Layout, build, with_parents
from torpor.images.index import Built
from torpor.images.initrd import AGENT
from torpor.images.keys import agent_key, runtime_key
from torpor.images.threads import Step, in_thread
from torpor.images.workshop import Workshop, combined, sha256

RUNTIME = "runtime"
NAME = "agent"
FILE = "agent.ext4"
_EXPECTED_PACKAGES = 30
_TOOL_TIMEOUT = 300.0
_UUID = "746f7270-6f72-4167-8e74-000000000001"
_LIBRARIES = ("ld-linux-x86-64.so.2", "libc.so.6", "libexpat.so.1", "libffi.so.8", "libgcc_s.so.1", "libm.so.6", "libz.so.1")
_LIBRARY_DIR = "/usr/lib/x86_64-linux-gnu"
_STDLIB = f"/usr/lib/{recipes.PYTHON}"
_NOT_NEEDED = re.compile(
    r"/(test|idlelib|tkinter|turtledemo|ensurepip|lib2to3|pydoc_data|venv|__pycache__|sqlite3|curses|dbm|_pyrepl)(/|\Z)"
    r"|/(sitecustomize|turtle|antigravity|this)\.py\Z|/EXTERNALLY-MANAGED\Z"
    # Extensions for tests, and those that need libraries which the disk does not carry.
    r"|/lib-dynload/(_test|xx|_xx|_ctypes_test|_bz2|_lzma|_ssl|_hashlib|_sqlite3|_dbm|_curses|readline|_uuid)"
)
_MAIN = '''"""Starts the guest agent."""

import sys

sys.path.insert(0, "{app}")

from torpor.guest.main import main

main()
'''


def agent_sources(package: Path) -> Mapping[str, Path]:
    """What of the package torpor in directory `package` goes onto the disk: path below app/torpor -> file."""
    found = [package / "__init__.py", package / "wire" / "__init__.py", *package.glob("wire/guest/**/*.py")]
    found += package.glob("guest/**/*.py")
    return {str(path.relative_to(package)): path for path in sorted(found)}


def _keep(path: str, directory: bool) -> bool:
    if directory:
        return False
    return (path.startswith(_STDLIB + "/") and not _NOT_NEEDED.search(path)) or path == f"/usr/bin/{recipes.PYTHON}" or path.startswith(_LIBRARY_DIR + "/lib")


async def build_runtime(shop: Workshop) -> Built:
    """The directory `tree`: a prefix that runs anywhere through its own loader. Its digest covers names and contents."""
    expected = _EXPECTED_PACKAGES
    archive = await shop.bootstrap(recipes.USERLAND_SUITE, recipes.RUNTIME_PACKAGES, expected=expected, until=0.7, extract=True)
    result = shop.index.staging()
    prefix = result / "tree"

    def work(step: Step) -> None:
        keep_loader = f"{_LIBRARY_DIR}/{_LIBRARIES[0]}"
        entries = tree.Staging(shop.work / "staged").unpack(archive, lambda path, directory: path == keep_loader or _keep(path, directory), step)
        wanted = {f"/usr/bin/{recipes.PYTHON}": "bin/python3"} | {f"{_LIBRARY_DIR}/{name}": f"lib/{name}" for name in _LIBRARIES}
        wanted |= {entry.path: f"lib{entry.path.removeprefix('/usr/lib')}" for entry in entries if entry.path.startswith(_STDLIB)}
        for source, name in wanted.items():
            file = prefix / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(tree.content(entries, source))
            file.chmod(0o755 if name.startswith("bin/") or ".so" in name else 0o644)

    await in_thread(work, shop.part("unpacking the interpreter", 0.7, 0.8))
    shop.report("compiling the standard library", 0.8)
    await _compile(shop, prefix, prefix / "lib" / recipes.PYTHON)
    digest = combined({str(path.relative_to(prefix)): path.read_bytes() for path in prefix.rglob("*") if path.is_file()})
    return await shop.commit(result, RUNTIME, digest, runtime_key(), {"python": recipes.PYTHON})


async def build_agent(shop: Workshop, runtime: Built, sources: Mapping[str, Path]) -> Built:
    """The file agent.ext4, read-only, no larger than it must be. Raises HostError when the agent cannot be imported by its own interpreter."""
    app = shop.work / "app"
    for name, source in sources.items():
        target = app / "torpor" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    (app / "__main__.py").write_text(_MAIN.format(app=f"{AGENT}/app"), encoding="utf-8")
    prefix = runtime.directory / "tree"
    shop.report("compiling the agent", 0.1)
    await _compile(shop, prefix, app)
    trial = f"import sys; sys.path.insert(0, {str(app)!r}); import torpor.guest.main"
    await shop.tools.run([*interpreter(prefix), "-c", trial], timeout=_TOOL_TIMEOUT, mend="The agent does not load in its own interpreter.")
    result = shop.index.staging()
    image = result / FILE
    entries = with_parents([*_entries(prefix, ""), *_entries(app, "/app")])
    shop.report("writing the agent disk", 0.4)
    await build(shop.tools, image, entries, _layout(entries))
    digest = await in_thread(lambda step: sha256(image, step), shop.part("writing the agent disk", 0.8, 1.0))
    return await shop.commit(result, NAME, digest, agent_key(sources), {"runtime": runtime.digest})


def interpreter(prefix: Path) -> list[str]:
    """The command that starts the runtime's interpreter from any prefix, isolated and without writing bytecode."""
    return [str(prefix / "lib" / _LIBRARIES[0]), "--library-path", str(prefix / "lib"), str(prefix / "bin" / "python3"), "-I", "-S", "-B"]


async def _compile(shop: Workshop, prefix: Path, directory: Path) -> None:
    """Compiles all modules below `directory`; tracebacks will show their paths in the guest."""
    options = ["-q", "--invalidation-mode", "unchecked-hash", "-s", str(directory), "-p", f"{AGENT}/{_place(prefix, directory)}"]
    await shop.tools.run([*interpreter(prefix), "-m", "compileall", *options, str(directory)], timeout=_TOOL_TIMEOUT)


def _place(prefix: Path, directory: Path) -> str:
    return str(directory.relative_to(prefix)) if directory.is_relative_to(prefix) else directory.name


def _entries(directory: Path, at: str) -> list[Entry]:
    files = [path for path in directory.rglob("*") if path.is_file()]
    return [Entry(f"{at}/{path.relative_to(directory)}", Kind.FILE, 0o755 if os.access(path, os.X_OK) else 0o644, source=path) for path in files]


def _layout(entries: list[Entry]) -> Layout:
    blocks = sum(-(-entry.source.stat().st_size // 4096) if entry.source else 1 for entry in entries)
    inodes = len(entries) + 64
    size = blocks * 4096 + inodes * 256 + (2 << 20)
    return Layout(size=-(-size // (1 << 20)) << 20, uuid=_UUID, inodes=inodes)
