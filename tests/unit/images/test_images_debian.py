"""Where packages come from, and the call that fetches them."""

from pathlib import Path

import pytest

from torpor.images.debian import CONTAINED, Bootstrap, BootstrapProgress, PackageSource, find_source, guest_sources
from torpor.model.errors import HostError, InvalidInput, MissingTool

DEBIAN = 'ID=debian\nVERSION_CODENAME="bookworm"\n'


@pytest.fixture
def host(tmp_path: Path):
    """A machine's /etc and keyrings, to be filled."""
    keyrings = tmp_path / "keyrings"
    keyrings.mkdir()
    (keyrings / "debian-archive-keyring.gpg").touch()
    (tmp_path / "apt" / "sources.list.d").mkdir(parents=True)

    def find(mirror: str = "", os_release: str = DEBIAN, **files: str) -> PackageSource:
        (tmp_path / "os-release").write_text(os_release)
        for name, text in files.items():
            target = tmp_path / "apt" / "sources.list" if name == "list" else tmp_path / "apt" / "sources.list.d" / f"x.{name}"
            target.write_text(text)
        return find_source(mirror, tmp_path, keyrings)

    return find


def test_a_debian_host_gives_its_own_archive_for_every_suite(host) -> None:
    text = """# comment
Types: deb deb-src
URIs: http://archive.test/debian/
Suites: bookworm bookworm-updates
Components: main

Types: deb
URIs: http://ports.test/debian
Suites: bookworm-backports
Components: main

Enabled: no
Types: deb
URIs: http://disabled.test/security
Suites: bookworm-security
Components: main

Types: deb
URIs:
 http://archive.test/security
Suites: bookworm-security
Components: main contrib
"""
    source = host(sources=text)
    assert (source.archive, source.security) == ("http://archive.test/debian", "http://archive.test/security")
    listed = source.sources_list("trixie").splitlines()
    assert listed[0] == f"deb [signed-by={source.keyring}] http://archive.test/debian trixie main"
    assert [line.split()[3] for line in listed] == ["trixie", "trixie-updates", "trixie-security"]


def test_one_line_sources_are_read_with_their_options(host) -> None:
    source = host(
        list="deb-src http://no.test/ bookworm main\n#deb http://no.test/ bookworm main\ndeb [arch=amd64 signed-by=/k] https://a.test/debian bookworm main\n"
    )
    assert (source.archive, source.security) == ("https://a.test/debian", "")


@pytest.mark.parametrize(
    ("os_release", "line"),
    [
        ("ID=ubuntu\nVERSION_CODENAME=noble\n", "deb http://ubuntu.test/ubuntu noble main\n"),
        (DEBIAN, "deb http://a.test/security bookworm-security main\n"),
        (DEBIAN, "deb cdrom:[Debian]/ bookworm main\n"),
    ],
)
def test_without_an_archive_of_debian_the_sources_are_left_to_mmdebstrap(host, os_release: str, line: str) -> None:
    source = host(os_release=os_release, list=line)
    assert (source.archive, source.security, source.sources_list("trixie")) == ("", "", "")


def test_the_setting_wins_and_brings_security_only_if_it_names_it(host) -> None:
    text = "deb http://a.test/debian bookworm main\n"
    assert host("http://m.test/d/ http://m.test/s", list=text).security == "http://m.test/s"
    alone = host("http://m.test/d", list=text)
    assert alone.archive == "http://m.test/d"
    assert "security" not in alone.sources_list("trixie")


@pytest.mark.parametrize("mirror", ["ftp://m.test/d", "m.test", "http://a http://b http://c", "http://a.test/[trusted=yes]"])
def test_a_mirror_that_is_no_uri_is_refused(host, mirror: str) -> None:
    with pytest.raises(InvalidInput, match="debian_mirror"):
        host(mirror)


def test_without_debians_keys_nothing_is_fetched(tmp_path: Path) -> None:
    with pytest.raises(MissingTool, match="debian-archive-keyring"):
        find_source("", tmp_path, tmp_path)


def test_the_call_keeps_signatures_on_and_passes_hooks(tmp_path: Path) -> None:
    argv = Bootstrap("trixie", ("bash", "git"), Path("/s"), Path("/t.tar"), dpkg_options=("path-exclude=/x",), hooks=('chroot "$1" true',)).argv()
    assert argv[-3:] == ["trixie", "/t.tar", "/s"]
    assert {"--variant=minbase", "--include=bash,git", "--dpkgopt=path-exclude=/x", '--customize-hook=chroot "$1" true'} <= set(argv)
    assert not [word for word in argv if "unauth" in word.lower() or "trusted" in word.lower()]
    assert argv[0] == "mmdebstrap"
    assert Bootstrap("trixie", (), Path("/s"), Path("/t")).argv(contained=True)[: len(CONTAINED) + 1] == [*CONTAINED, "mmdebstrap"]
    assert "--variant=extract" in Bootstrap("trixie", (), Path("/s"), Path("/t"), extract=True).argv()


def test_without_sources_mmdebstrap_is_told_which_keys_count_and_no_mirror() -> None:
    argv = Bootstrap("trixie", (), None, Path("/t.tar"), keyrings=(Path("/none"), Path("/debian.gpg"))).argv()
    assert argv[-2:] == ["trixie", "/t.tar"]
    assert [word for word in argv if word.startswith("--keyring=")] == ["--keyring=/none", "--keyring=/debian.gpg"]


EXAMPLE = """## Comment
## Types: none
Types: deb
URIs: https://a.test/debian
Suites: trixie trixie-updates
Components: main contrib non-free
Signed-By: /k.gpg

## Comment
Types: deb
URIs: https://a.test/security
Suites: trixie-security
Components: main contrib non-free
Signed-By: /k.gpg
"""


def test_a_template_gets_the_archive_of_its_own_apt_and_main_alone() -> None:
    expected = """Types: deb
URIs: https://a.test/debian
Suites: trixie trixie-updates
Components: main
Signed-By: /k.gpg

Types: deb
URIs: https://a.test/security
Suites: trixie-security
Components: main
Signed-By: /k.gpg
"""
    assert guest_sources(EXAMPLE, "trixie") == expected


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (EXAMPLE, ""),
        ("trixie-security", "forky-security"),
        (" trixie-updates", ""),
        ("https://a.test/security", "a.test"),
        ("Signed-By: /k.gpg\n\n", "\n"),
        ("Types: deb\n", "Enabled: no\nTypes: deb\n"),
    ],
)
def test_examples_that_say_something_else_are_refused(old: str, new: str) -> None:
    with pytest.raises(HostError, match="example sources of trixie"):
        guest_sources(EXAMPLE.replace(old, new), "trixie")


def test_progress_rises_with_every_package_and_never_claims_the_end() -> None:
    progress = BootstrapProgress(expected=2)
    lines = [b"I: running apt-get update...", b"0 upgraded, 3 newly installed, 0 to remove and 0 not upgraded."]
    lines += [b"Get:%d http://a trixie/main amd64 p" % n for n in range(9)]
    lines += [b"Unpacking p%d (1.0) ..." % n for n in range(3)] + [b"Setting up p%d (1.0) ..." % n for n in range(3)]
    seen = [progress.feed(line) for line in lines]
    assert seen == sorted(seen)
    assert seen[1] == 0
    assert 0 < seen[2] < seen[5] <= 0.99
    assert seen[-1] == 0.99
