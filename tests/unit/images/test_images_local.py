"""Building what is missing: keys, the index, one builder at a time, failures. The tools that need packages are played; the rest is real."""

import asyncio
import errno
import fcntl
import io
import json
import os
import shutil
import tarfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from images_processes import PlainProcesses

from torpor.images import buildlock, index, keys, local, recipes
from torpor.images.debian import CONTAINED
from torpor.images.index import Index
from torpor.images.local import LocalImages
from torpor.model.errors import Corrupt, HostError, MissingTool, NoPermission, NoSpace, NotFound
from torpor.ports.processes import Completed

KERNEL_FILES = ["boot/vmlinuz-6.1-test", "bin/busybox", *(f"lib/modules/6.1/{name}.ko" for name in recipes.KERNEL_MODULES)]
LIBRARIES = ("ld-linux-x86-64.so.2", "libc.so.6", "libexpat.so.1", "libffi.so.8", "libgcc_s.so.1", "libm.so.6", "libz.so.1")
RUNTIME_FILES = ["usr/bin/python3.13", "usr/lib/python3.13/os.py", *(f"usr/lib/x86_64-linux-gnu/{name}" for name in LIBRARIES)]
TEMPLATE_FILES = ["etc/passwd", "usr/bin/env", "var/log/dpkg.log", recipes.EXAMPLE_SOURCES.lstrip("/")]
EXAMPLE = "".join(
    f"Types: deb\nURIs: https://a.test/debian\nSuites: {suites}\nComponents: main\nSigned-By: /k.gpg\n\n"
    for suites in ("trixie trixie-updates", "trixie-security")
)


class PlayedProcesses(PlainProcesses):
    """mmdebstrap writes a small tar, the agent's interpreter does nothing; e2fsprogs are real. `trouble` is called before each tool."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.bootstraps: list[list[str]] = []
        self.trouble: Callable[[str], Awaitable[Completed | None]] | None = None

    async def run(self, argv, *, timeout, stdin=None, env=None, on_line=None) -> Completed:
        if argv[0] == "setpriv":
            argv = argv[len(CONTAINED) :]
        name = Path(argv[0]).name
        if name == "true":
            return Completed(0, b"", b"")
        self.calls.append(f"{name} {argv[-3]}" if name == "mmdebstrap" else name)
        if self.trouble and (answer := await self.trouble(name)):
            return answer
        if name == "ld-linux-x86-64.so.2":
            return Completed(0, b"", b"")
        if name != "mmdebstrap":
            return await super().run(argv, timeout=timeout, stdin=stdin, env=env, on_line=on_line)
        self.bootstraps.append(list(argv))
        include = next(word for word in argv if word.startswith("--include="))
        names = KERNEL_FILES if "linux-image" in include else RUNTIME_FILES if "--variant=extract" in argv else TEMPLATE_FILES
        target = next(word for word in argv if word.endswith(".tar"))
        with tarfile.open(target, "w") as tar:
            for name in names:
                content = EXAMPLE.encode() if name.endswith("debian.sources") else f"{name} {include}".encode()
                member = tarfile.TarInfo("./" + name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
                on_line(b"Get:1 " + name.encode())
        return Completed(0, b"", b"")


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> PlayedProcesses:
    monkeypatch.setattr(recipes, "TEMPLATE_SIZE", 16 << 20)
    monkeypatch.setattr(local, "find_source", lambda mirror: local_source())
    monkeypatch.setattr("torpor.images.tools.Tools.find", lambda self, name: shutil.which(name, path="/usr/sbin:/sbin:/usr/bin:/bin") or f"/usr/bin/{name}")
    return PlayedProcesses()


def local_source():
    from torpor.images.debian import PackageSource

    return PackageSource("http://a.test/debian", "", Path("/keys"))


@pytest.fixture
def package(tmp_path: Path) -> Path:
    for name in ("__init__.py", "wire/__init__.py", "wire/guest/frames.py", "guest/__init__.py", "guest/main.py"):
        (tmp_path / "package" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "package" / name).write_text("def main(): pass\n")
    return tmp_path / "package"


@pytest.fixture
def images(tmp_path: Path, processes: PlayedProcesses, package: Path) -> LocalImages:
    return LocalImages(tmp_path / "home", processes, package=package)


def silent(what: str, fraction: float) -> None:
    pass


def leftovers(images_root: Path) -> list[str]:
    return sorted(path.name for path in (images_root / "tmp").iterdir()) if (images_root / "tmp").exists() else []


async def test_before_the_first_build_everything_says_how_to_build(images: LocalImages) -> None:
    with pytest.raises(NotFound, match="torpor build"):
        images.boot()
    with pytest.raises(NotFound, match="torpor build base"):
        images.template("base")
    with pytest.raises(NotFound, match="Known names: base, code-interpreter-v1, code-runner-beta, minimal"):
        images.template("windows")
    assert images.templates() == []


async def test_a_build_makes_everything_once_and_seals_it(images: LocalImages, processes: PlayedProcesses, tmp_path: Path) -> None:
    seen: list[float] = []
    await images.ensure(["minimal", "base"], lambda what, fraction: seen.append(fraction))
    assert sorted(call for call in processes.calls if "mmdebstrap" in call) == ["mmdebstrap bookworm", *["mmdebstrap trixie"] * 3]
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert len(set(seen)) > 10
    boot, base = images.boot(), images.template("base")
    assert boot.kernel.read_bytes().startswith(b"boot/vmlinuz-6.1-test")
    assert boot.initrd.read_bytes().startswith(b"070701")
    assert boot.command_line == recipes.COMMAND_LINE
    assert images.agent_disk(boot.agent_digest) == boot.agent_disk
    assert images.template_disk(base.digest) == base.disk
    assert (base.user, base.home, base.size_bytes, base.format) == ("user", "/home/user", 16 << 20, "raw")
    assert [template.name for template in images.templates()] == ["base", "minimal"]
    for file in (boot.kernel, boot.initrd, boot.agent_disk, base.disk):
        assert file.stat().st_mode & 0o777 == 0o444
    assert leftovers(tmp_path / "home/images") == []
    processes.calls.clear()
    await images.ensure(["base", "minimal"], silent)
    assert processes.calls == []


async def test_a_new_agent_needs_no_packages_and_the_old_disk_stays(images: LocalImages, processes: PlayedProcesses, package: Path) -> None:
    await images.ensure([], silent)
    old = images.boot()
    (package / "guest/main.py").write_text("def main(): print('new')\n")
    processes.calls.clear()
    await images.ensure([], silent)
    new = images.boot()
    assert not [call for call in processes.calls if "mmdebstrap" in call]
    assert new.agent_digest != old.agent_digest
    assert new.kernel_digest == old.kernel_digest
    assert images.agent_disk(old.agent_digest) == old.agent_disk
    assert images.agent_disk(new.agent_digest) == new.agent_disk


async def test_a_replaced_template_keeps_its_disk(images: LocalImages, monkeypatch: pytest.MonkeyPatch) -> None:
    await images.ensure(["minimal"], silent)
    old = images.template("minimal")
    monkeypatch.setattr(recipes, "TEMPLATE_SIZE", 20 << 20)
    await images.ensure(["minimal"], silent)
    assert images.template("minimal").digest != old.digest
    assert images.template_disk(old.digest) == old.disk
    assert old.disk.is_file()


@pytest.mark.parametrize("digest", ["", "../../../etc", "f" * 64, "F" * 64])
async def test_only_a_digest_reaches_a_path(images: LocalImages, digest: str) -> None:
    with pytest.raises(NotFound):
        images.agent_disk(digest)
    with pytest.raises(NotFound):
        images.template_disk(digest)


async def test_an_unknown_name_builds_nothing(images: LocalImages, processes: PlayedProcesses, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="windows"):
        await images.ensure(["base", "windows"], silent)
    assert processes.calls == []
    assert not (tmp_path / "home").exists()


async def test_a_failing_tool_gives_its_last_lines_and_leaves_nothing(images: LocalImages, processes: PlayedProcesses, tmp_path: Path) -> None:
    async def trouble(name: str) -> Completed | None:
        return Completed(25, b"", b"I: downloading\nE: Unable to fetch http://a.test/debian\n") if name == "mmdebstrap" else None

    processes.trouble = trouble
    with pytest.raises(HostError, match=r"(?s)mmdebstrap failed with exit code 25:.*E: Unable to fetch.*TORPOR_DEBIAN_MIRROR"):
        await images.ensure(["minimal"], silent)
    assert all(not any((tmp_path / "home/images/tmp" / name).iterdir()) for name in leftovers(tmp_path / "home/images"))
    processes.trouble = None
    await images.ensure(["minimal"], silent)
    assert images.template("minimal").disk.is_file()
    assert leftovers(tmp_path / "home/images") == []


async def test_a_template_without_apts_example_sources_is_not_made(images: LocalImages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "EXAMPLE_SOURCES", "/usr/share/doc/apt/elsewhere.sources")
    with pytest.raises(HostError, match=r"packages have no /usr/share/doc/apt/elsewhere\.sources"):
        await images.ensure(["minimal"], silent)
    with pytest.raises(NotFound):
        images.template("minimal")


@pytest.mark.parametrize(("archive", "arguments"), [("", 2), ("http://a.test/debian", 3)])
async def test_only_a_known_archive_is_named_to_mmdebstrap(
    images: LocalImages, processes: PlayedProcesses, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, archive: str, arguments: int
) -> None:
    from torpor.images.debian import PackageSource

    monkeypatch.setattr(local, "find_source", lambda mirror: PackageSource(archive, "", tmp_path / "keys"))
    await images.ensure([], silent)
    assert processes.bootstraps
    for argv in processes.bootstraps:
        positional = argv[1 + max(index for index, word in enumerate(argv) if word.startswith("--")) :]
        keyrings = [word.removeprefix("--keyring=") for word in argv if word.startswith("--keyring=")]
        assert len(positional) == arguments
        assert [Path(keyring).name for keyring in keyrings] == ([] if archive else ["no-keys", "keys"])


async def test_a_full_disk_is_told_apart(images: LocalImages, processes: PlayedProcesses) -> None:
    async def trouble(name: str) -> Completed | None:
        return Completed(1, b"", b"tar: write error: No space left on device\n") if name == "mmdebstrap" else None

    processes.trouble = trouble
    with pytest.raises(NoSpace, match="2 GiB"):
        await images.ensure(["minimal"], silent)


async def test_a_disk_too_small_is_refused_before_anything_is_fetched(images: LocalImages, processes: PlayedProcesses, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_NEEDED_BYTES", 1 << 60)
    with pytest.raises(NoSpace, match="MiB free"):
        await images.ensure([], silent)
    assert processes.calls == []


async def test_a_missing_tool_names_its_package(images: LocalImages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(local, "find_source", lambda mirror: local_source())
    monkeypatch.setattr("torpor.images.tools.shutil.which", lambda name, path: None)
    with pytest.raises(MissingTool, match="apt-get install mmdebstrap"):
        await images.ensure([], silent)


async def test_a_cancelled_build_stops_its_tools_and_the_next_one_succeeds(images: LocalImages, processes: PlayedProcesses, tmp_path: Path) -> None:
    started = asyncio.Event()
    stopped: list[str] = []

    async def trouble(name: str) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.append(name)

    processes.trouble = trouble
    build = asyncio.create_task(images.ensure(["minimal"], silent))
    await started.wait()
    build.cancel()
    with pytest.raises(asyncio.CancelledError):
        await build
    assert stopped
    processes.trouble = None
    await images.ensure(["minimal"], silent)
    assert images.template("minimal").disk.is_file()


async def test_many_who_ask_at_once_get_one_build(processes: PlayedProcesses, tmp_path: Path, package: Path) -> None:
    askers = [LocalImages(tmp_path / "home", processes, package=package) for _ in range(4)]
    waited: list[str] = []
    await asyncio.gather(*(asker.ensure(["minimal"], lambda what, fraction: waited.append(what)) for asker in askers))
    assert len([call for call in processes.calls if call == "mmdebstrap bookworm"]) == 1
    assert waited.count("waiting for another process that builds") == 3
    assert {asker.template("minimal").digest for asker in askers} == {askers[0].template("minimal").digest}


async def test_a_waiter_that_gives_up_does_not_take_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    holder = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(holder, fcntl.LOCK_EX)
    waiting = asyncio.Event()

    async def wait() -> None:
        async with buildlock.build_lock(path, waiting.set):
            raise AssertionError("the lock was held")

    waiter = asyncio.create_task(wait())
    await waiting.wait()
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    os.close(holder)
    reached = asyncio.Event()
    async with buildlock.build_lock(path, lambda: None):
        reached.set()
    assert reached.is_set()


async def test_what_a_dead_builder_left_goes_with_the_next(images: LocalImages, tmp_path: Path) -> None:
    dead = tmp_path / "home/images/tmp/dead"
    dead.mkdir(parents=True)
    (dead / "tree.tar").write_bytes(b"half")
    await images.ensure([], silent)
    assert leftovers(tmp_path / "home/images") == []


def test_nothing_is_removed_through_a_mount(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"1 2 0:5 / {str(tmp_path).replace(' ', chr(92) + '040')}/x/a\\040b/dev rw - devtmpfs dev rw\n")
    with pytest.raises(HostError, match="a b/dev is still mounted"):
        index.refuse_mounts(tmp_path / "x" / "a b", mounts)
    index.refuse_mounts(tmp_path / "y", mounts)


def test_an_image_whose_files_went_away_counts_as_missing(tmp_path: Path) -> None:
    store = Index(tmp_path)
    staged = store.staging()
    (staged / "f").write_text("x")
    built = store.commit(staged, "kernel", "a" * 64, "key", {})
    assert store.current()["kernel"] == built
    shutil.rmtree(built.directory)
    assert store.current() == {}


@pytest.mark.parametrize(
    "text", ["", "[]", '{"version": 1}', '{"version": 2, "current": {}}', '{"version": 1, "current": {"kernel": {}}}', '{"version": 1, "current": []}']
)
def test_a_damaged_index_is_said_to_be(tmp_path: Path, text: str) -> None:
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(Corrupt, match=r"index\.json"):
        Index(tmp_path).current()


def test_the_index_is_replaced_whole(tmp_path: Path) -> None:
    store = Index(tmp_path)
    for number, name in enumerate(("kernel", "template/base", "template/minimal")):
        staged = store.staging()
        (staged / "f").write_text(str(number))
        store.commit(staged, name, f"{number:064}", "key", {"name": name})
    assert sorted(store.current()) == ["kernel", "template/base", "template/minimal"]
    assert json.loads((tmp_path / "index.json").read_text())["version"] == 1
    assert not (tmp_path / "index.new").exists()


def test_keys_follow_what_goes_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    base, minimal = recipes.TEMPLATES["base"], recipes.TEMPLATES["minimal"]
    seen = {keys.template_key(base, {}), keys.template_key(minimal, {}), keys.template_key(base, {"a.crt": b"1"}), keys.template_key(base, {"a.crt": b"2"})}
    assert len(seen) == 4
    assert keys.template_key(base, {}) in seen
    (tmp_path / "a.py").write_text("1")
    agent, kernel = keys.agent_key({"guest/a.py": tmp_path / "a.py"}), keys.kernel_key()
    (tmp_path / "a.py").write_text("2")
    assert keys.agent_key({"guest/a.py": tmp_path / "a.py"}) != agent
    monkeypatch.setattr(recipes, "COMMAND_LINE", "other")
    assert keys.kernel_key() != kernel


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, NoSpace), (errno.EACCES, NoPermission), (errno.EROFS, NoPermission), (errno.EIO, HostError)])
def test_what_the_system_refuses_is_typed(number: int, kind: type[HostError]) -> None:
    error = local._host_error(OSError(number, os.strerror(number), "/home/x"), Path("/home"))
    assert type(error) is kind
    assert "/home/x" in error.message
