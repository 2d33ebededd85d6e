"""Bootstrapped trees: what is taken from them."""

import io
import tarfile
from pathlib import Path

import pytest

from torpor.images import agentdisk, recipes, templates, tree
from torpor.images.ext4 import Kind
from torpor.model.errors import Corrupt, HostError


def pack(at: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(at, "w") as tar:
        for member, content in members:
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return at


def member(name: str, kind: bytes = tarfile.REGTYPE, content: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def unpack(tmp_path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> list[tree.Entry]:
    return tree.Staging(tmp_path / "staged").unpack(pack(tmp_path / "t.tar", *members), lambda path, directory: True, lambda fraction: None)


def test_owners_modes_and_times_come_from_the_archive_not_from_who_unpacks(tmp_path: Path) -> None:
    entries = unpack(
        tmp_path,
        member("./", tarfile.DIRTYPE),
        member("./etc", tarfile.DIRTYPE, mode=0o755),
        member("./etc/shadow", content=b"root:*\n", mode=0o640, gid=42, mtime=1700000000),
        member("./etc/alias", tarfile.LNKTYPE, linkname="./etc/shadow"),
        member("./bin", tarfile.SYMTYPE, linkname="usr/bin"),
        member("./dev/null", tarfile.CHRTYPE),
    )
    assert [(entry.path, entry.kind, entry.mode, entry.gid) for entry in entries] == [
        ("/etc", Kind.DIR, 0o755, 0),
        ("/etc/shadow", Kind.FILE, 0o640, 42),
        ("/etc/alias", Kind.LINK, 0o755, 0),
        ("/bin", Kind.SYMLINK, 0o777, 0),
    ]
    assert entries[1].mtime == 1700000000
    assert entries[1].source.read_bytes() == b"root:*\n"
    assert entries[2].target == "/etc/shadow"


def test_a_name_that_leads_out_is_corrupt(tmp_path: Path) -> None:
    with pytest.raises(Corrupt, match="\\.\\."):
        unpack(tmp_path, member("./a/../../etc/passwd"))


def test_an_extended_attribute_is_not_lost_silently(tmp_path: Path) -> None:
    info, content = member("./usr/bin/ping")
    info.pax_headers = {"SCHILY.xattr.security.capability": "x"}
    with pytest.raises(HostError, match=r"/usr/bin/ping.*security.capability"):
        unpack(tmp_path, (info, content))


def test_contents_are_found_through_links(tmp_path: Path) -> None:
    entries = unpack(
        tmp_path,
        member("./lib", tarfile.SYMTYPE, linkname="usr/lib"),
        member("./usr/lib/libz.so.1", tarfile.SYMTYPE, linkname="libz.so.1.3"),
        member("./usr/lib/libz.so.1.3", content=b"z"),
        member("./usr/lib/loop", tarfile.SYMTYPE, linkname="loop"),
    )
    assert tree.content(entries, "/lib/libz.so.1") == b"z"
    for absent in ("/usr/lib/loop", "/usr/lib/nothing"):
        with pytest.raises(HostError, match=r"have no"):
            tree.content(entries, absent)


@pytest.mark.parametrize(
    ("path", "directory", "kept"),
    [
        ("/etc/passwd", False, True),
        ("/etc/passwd-", False, False),
        ("/etc/apt/sources.list.d/0000host.list", False, False),
        ("/etc/apt/sources.list.d", True, True),
        ("/etc/ssh/ssh_host_rsa_key", False, False),
        ("/etc/ssh/ssh_config", False, True),
        ("/var/log/apt", True, True),
        ("/var/log/apt/history.log", False, False),
        ("/var/lib/apt/lists/deb_InRelease", False, False),
        ("/var/lib/dpkg/status", False, True),
        ("/var/lib/dpkg/status-old", False, False),
        ("/dev", True, True),
        ("/dev/pts", True, False),
        ("/run/lock", True, False),
        ("/usr/share/doc/bash/copyright", False, True),
    ],
)
def test_what_the_host_or_the_build_left_is_not_in_a_template(path: str, directory: bool, kept: bool) -> None:
    assert templates.keep(path, directory) is kept


def test_users_are_as_the_template_says() -> None:
    base, minimal = recipes.TEMPLATES["base"], recipes.TEMPLATES["minimal"]
    assert templates.own_files(base, "deb")["/etc/torpor/template.json"][1] == '{"name": "base", "user": "user", "home": "/home/user"}\n'
    assert templates.own_files(base, "deb")["/etc/sudoers.d/90-torpor"] == (0o440, "user ALL=(ALL:ALL) NOPASSWD: ALL\n")
    assert "/etc/sudoers.d/90-torpor" not in templates.own_files(minimal, "deb")
    assert templates.own_files(minimal, "deb")["/etc/apt/sources.list.d/debian.sources"] == (0o644, "deb")
    assert templates.hooks(base, []) == ['chroot "$1" useradd --create-home --home-dir /home/user --shell /bin/bash --uid 1000 user']
    assert templates.hooks(minimal, []) == []
    for name in ("bash", "coreutils", "python3", "git", "curl", "sudo", "ca-certificates", "procps", "iproute2", "ncurses-bin"):
        assert name in minimal.packages or name == "coreutils"


def test_certificates_of_the_host_are_carried_under_safe_names(tmp_path: Path) -> None:
    (tmp_path / "in ner").mkdir()
    (tmp_path / "in ner" / "$(id).crt").write_bytes(b"pem")
    (tmp_path / "readme.txt").touch()
    assert templates.host_certificates(tmp_path) == {"in_ner___id_.crt": b"pem"}
    lines = templates.hooks(recipes.TEMPLATES["minimal"], [Path("/a b/x.crt")])
    assert lines == ["copy-in '/a b/x.crt' /usr/local/share/ca-certificates", 'chroot "$1" update-ca-certificates']


def test_the_agent_disk_takes_the_guest_and_its_wire_and_no_more(tmp_path: Path) -> None:
    for name in (
        "__init__.py",
        "wire/__init__.py",
        "wire/guest/frames.py",
        "wire/control.py",
        "guest/main.py",
        "guest/deep/x.py",
        "guest/notes.txt",
        "host/h.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert list(agentdisk.agent_sources(tmp_path)) == ["__init__.py", "guest/deep/x.py", "guest/main.py", "wire/__init__.py", "wire/guest/frames.py"]
