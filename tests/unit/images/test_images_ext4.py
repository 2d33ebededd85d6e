"""ext4 images from entries: with the real e2fsprogs."""

import re
import subprocess
from pathlib import Path

import pytest
from images_processes import PlainProcesses

from torpor.images.ext4 import Entry, Kind, Layout, build, script, with_parents
from torpor.images.tools import Tools
from torpor.model.errors import HostError, InternalError, NoSpace

UUID = "00000000-0000-4000-8000-000000000001"
LAYOUT = Layout(16 << 20, UUID, journal=True, grows=True)


def debugfs(image: Path, command: str) -> str:
    return subprocess.run(["debugfs", "-R", command, image], check=True, capture_output=True).stdout.decode(errors="surrogateescape")


@pytest.fixture
def tools() -> Tools:
    return Tools(PlainProcesses())


@pytest.fixture
def entries(tmp_path: Path) -> list[Entry]:
    (tmp_path / "one").write_bytes(b"hello\n")
    (tmp_path / "big").write_bytes(bytes(range(256)) * 5000)
    return [
        Entry("/usr/bin/tool", Kind.FILE, 0o4755, mtime=1700000000, source=tmp_path / "big"),
        Entry("/usr/bin/other", Kind.LINK, target="/usr/bin/tool"),
        Entry("/home/user", Kind.DIR, 0o700, 1000, 1000),
        Entry("/home/user/späß & co", Kind.FILE, 0o600, 1000, 1000, source=tmp_path / "one"),
        Entry("/bin", Kind.SYMLINK, target="usr/bin"),
        Entry("/tmp", Kind.DIR, 0o1777),
    ]


async def test_everything_stands_in_the_image(tmp_path: Path, tools: Tools, entries: list[Entry]) -> None:
    image = tmp_path / "disk"
    await build(tools, image, with_parents(entries), LAYOUT)
    tool = debugfs(image, "stat /usr/bin/tool")
    assert re.search(r"Mode:  04755", tool)
    assert re.search(r"Links: 2 ", tool)
    assert "0x6553f100" in tool  # 1700000000
    assert re.search(r"Inode: (\d+)", tool)[1] == re.search(r"Inode: (\d+)", debugfs(image, "stat /bin/other"))[1]
    assert debugfs(image, "cat /usr/bin/tool").encode(errors="surrogateescape") == bytes(range(256)) * 5000
    mine = debugfs(image, 'stat "/home/user/späß & co"')
    assert re.search(r"User:  1000   Group:  1000", mine)
    assert re.search(r"Mode:  0600", mine)
    assert debugfs(image, 'cat "/home/user/späß & co"') == "hello\n"
    assert re.search(r"Mode:  01777", debugfs(image, "stat /tmp"))
    assert 'dest: "usr/bin"' in debugfs(image, "stat /bin")
    features = debugfs(image, "stats -h")
    assert {"has_journal", "resize_inode", "metadata_csum", "ext_attr"} <= set(re.search(r"features: +(.*)", features)[1].split())
    assert image.stat().st_blocks * 512 < 8 << 20


async def test_the_bytes_depend_on_the_entries_alone(tmp_path: Path, tools: Tools, entries: list[Entry]) -> None:
    await build(tools, tmp_path / "a", with_parents(entries), LAYOUT)
    for source in ("one", "big"):
        (tmp_path / source).touch()
    await build(tools, tmp_path / "b", with_parents(reversed(entries)), LAYOUT)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


async def test_contents_too_large_for_the_image_fail_and_say_so(tmp_path: Path, tools: Tools, entries: list[Entry]) -> None:
    with pytest.raises(HostError, match=r"(?s)debugfs.*block"):
        await build(tools, tmp_path / "disk", with_parents(entries), Layout(1 << 20, UUID))


def test_directories_come_first_and_links_last(entries: list[Entry]) -> None:
    paths = [entry.path for entry in with_parents(entries)]
    assert paths.index("/usr") < paths.index("/usr/bin") < paths.index("/usr/bin/tool")
    assert paths[-1] == "/usr/bin/other"
    assert paths.index("/home") < paths.index("/home/user")


def test_a_later_entry_replaces_an_earlier_one() -> None:
    assert with_parents([Entry("/x", Kind.DIR), Entry("/x", Kind.SYMLINK, target="y")]) == [Entry("/x", Kind.SYMLINK, target="y")]


@pytest.mark.parametrize("path", ['/a"b', "/a\nrm /etc"])
def test_a_name_that_could_end_the_command_is_refused(path: str) -> None:
    with pytest.raises(HostError, match="cannot be put"):
        script([Entry(path, Kind.DIR)])


def test_a_file_without_contents_is_our_mistake() -> None:
    with pytest.raises(InternalError):
        script([Entry("/a", Kind.FILE)])


async def test_a_full_disk_is_named(tmp_path: Path) -> None:
    tools = Tools(PlainProcesses())
    with pytest.raises(NoSpace, match="full"):
        await tools.run(["/bin/sh", "-c", "exec 2>&1; echo 'mke2fs: No space left on device' >&2; exit 1"], timeout=100)
