"""Where Debian packages come from, and the call of mmdebstrap that fetches them.

The archive is, in this order: the setting `debian_mirror`; the URIs that a Debian host uses itself; mmdebstrap's own default, which is Debian's. We name
none: mmdebstrap and apt bring the address of Debian's archive with them. Signatures are always checked, against the host's debian-archive-keyring alone.
Formats read: one-line sources and deb822 (sources.list(5) of apt).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torpor.model.errors import HostError, InvalidInput, MissingTool

_KEYRINGS = ("debian-archive-keyring.gpg", "debian-archive-keyring.pgp")
_URI = re.compile(r"https?://[^\s\[\]]+\Z")


@dataclass(frozen=True, slots=True)
class PackageSource:
    """The archive's URI ('' for mmdebstrap's default, which has security updates), that of its security updates ('' for none), and the keyring for both."""

    archive: str
    security: str
    keyring: Path

    def sources_list(self, suite: str) -> str:
        """One-line sources for a stable suite; '' to leave them to mmdebstrap."""
        if not self.archive:
            return ""
        signed = f"deb [signed-by={self.keyring}]"
        lines = [f"{signed} {self.archive} {suite} main", f"{signed} {self.archive} {suite}-updates main"]
        if self.security:
            lines.append(f"{signed} {self.security} {suite}-security main")
        return "\n".join(lines) + "\n"


def guest_sources(example: str, suite: str) -> str:
    """What stands in a template: always Debian's own archive, never the mirror the host happened to use. `example`: the sources that the suite's apt ships
    as an example; their comments go, and of their components only main stays. Raises HostError where they do not give the suite, its updates and its
    security updates, signed."""
    lines = [line for line in example.splitlines() if not line.startswith("#")]
    text = "\n".join("Components: main" if line.lower().startswith("components:") else line for line in lines).strip() + "\n"
    found = {name for uri, name, components in _deb822(text) if _URI.match(uri) and components == ["main"]}
    wanted = {suite, f"{suite}-updates", f"{suite}-security"}
    if found != wanted or text.count("\nSigned-By:") != text.count("Types:"):
        raise HostError(f"The example sources of {suite}'s apt give {sorted(found)} and not, each signed, {sorted(wanted)}.")
    return text


def find_source(mirror: str = "", etc: Path = Path("/etc"), keyrings: Path = Path("/usr/share/keyrings")) -> PackageSource:
    """`mirror`: the setting, '' or "ARCHIVE [SECURITY]". Raises InvalidInput for a mirror that is no URI, MissingTool without Debian's keyring."""
    keyring = next((keyrings / name for name in _KEYRINGS if (keyrings / name).is_file()), None)
    if keyring is None:
        raise MissingTool("Debian's archive keyring is not installed.", mend="Install it: apt-get install debian-archive-keyring")
    if mirror.strip():
        uris = mirror.replace(",", " ").split()
        if len(uris) > 2 or not all(_URI.match(uri) for uri in uris):
            raise InvalidInput(f"debian_mirror is {mirror!r}: expected one or two http URIs, the archive and its security updates.")
        return PackageSource(uris[0].rstrip("/"), uris[1].rstrip("/") if len(uris) == 2 else "", keyring)
    archive, security = _host_uris(etc)
    return PackageSource(archive, security if archive else "", keyring)


def _host_uris(etc: Path) -> tuple[str, str]:
    """The archive and security URIs in use on a Debian host; '' where there is none, or on another system."""
    codename = _debian_codename(etc / "os-release")
    archive = security = ""
    if not codename:
        return "", ""
    for uri, suite, components in _entries(etc / "apt"):
        if "main" not in components or not _URI.match(uri):
            continue
        if suite in (codename, "stable"):
            archive = archive or uri.rstrip("/")
        elif suite in (f"{codename}-security", "stable-security"):
            security = security or uri.rstrip("/")
    return archive, security


def _debian_codename(os_release: Path) -> str:
    try:
        lines = os_release.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    fields = {key: value.strip("\"'") for key, _, value in (line.partition("=") for line in lines)}
    return fields.get("VERSION_CODENAME", "") if fields.get("ID") == "debian" else ""


def _entries(apt: Path) -> Iterator[tuple[str, str, list[str]]]:
    """(URI, suite, components) of every enabled binary source."""
    parts = apt / "sources.list.d"
    for file in [apt / "sources.list", *sorted(parts.glob("*.list"))]:
        if file.is_file():
            yield from _one_line(file.read_text(encoding="utf-8", errors="replace"))
    for file in sorted(parts.glob("*.sources")):
        yield from _deb822(file.read_text(encoding="utf-8", errors="replace"))


def _one_line(text: str) -> Iterator[tuple[str, str, list[str]]]:
    for line in text.splitlines():
        words = re.sub(r"\[[^]]*\]", " ", line.partition("#")[0]).split()
        if len(words) >= 4 and words[0] == "deb":
            yield words[1], words[2], words[3:]


def _deb822(text: str) -> Iterator[tuple[str, str, list[str]]]:
    body = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n\s*\n", body):
        fields: dict[str, list[str]] = {}
        name = ""
        for line in stanza.splitlines():
            if not line[:1].isspace():
                name, _, line = line.partition(":")
                name = name.strip().lower()
            fields.setdefault(name, []).extend(line.split())
        if "deb" in fields.get("types", ()) and fields.get("enabled", ["yes"])[0].lower() not in ("no", "false", "0"):
            for uri in fields.get("uris", ()):
                for suite in fields.get("suites", ()):
                    yield uri, suite, fields.get("components", [])


CONTAINED = ("setpriv", "--pdeathsig=KILL", "unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child", "--mount-proc")
"""As root, mmdebstrap mounts /dev and /proc into the tree. When we are killed, it and all it started must go, and its mounts with it: else the next builder
finds them in the directory that it has to remove. Both tools belong to util-linux, which every Debian system has."""


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """One call of mmdebstrap: `target` becomes a tar of the tree. `extract` only unpacks the packages and runs nothing of theirs. `hooks` are shell lines
    in which "$1" is the tree. mmdebstrap chooses how to be root in there: really, or in a user namespace. Without `sources` it takes its default for the
    suite, with updates and security updates. `keyrings` take the place of what apt trusts on the host: files, and at most one directory of them."""

    suite: str
    packages: Sequence[str]
    sources: Path | None
    target: Path
    extract: bool = False
    dpkg_options: Sequence[str] = ()
    hooks: Sequence[str] = ()
    keyrings: Sequence[Path] = ()

    def argv(self, mmdebstrap: str = "mmdebstrap", *, contained: bool = False) -> list[str]:
        """`contained`: in mount and process namespaces that end with us (needs root)."""
        return [
            *(CONTAINED if contained else ()),
            mmdebstrap,
            "--verbose",
            "--mode=auto",
            "--architectures=amd64",
            "--format=tar",
            f"--variant={'extract' if self.extract else 'minbase'}",
            f"--include={','.join(self.packages)}",
            *(f"--keyring={keyring}" for keyring in self.keyrings),
            *(f"--dpkgopt={option}" for option in self.dpkg_options),
            *(f"--customize-hook={hook}" for hook in self.hooks),
            self.suite,
            str(self.target),
            *([str(self.sources)] if self.sources else ()),
        ]


class BootstrapProgress:
    """Turns the lines of apt and dpkg into a fraction that only rises: each package is fetched and, unless only extracted, unpacked and set up."""

    def __init__(self, expected: int, *, extract: bool = False) -> None:
        self._expected = expected
        self._stages = (b"Get:",) if extract else (b"Get:", b"Unpacking ", b"Setting up ")
        self._announced = 0
        self._steps = 0
        self._fraction = 0.0

    def feed(self, line: bytes) -> float:
        """The fraction done after this line; stays below 1, which only the tool's end can say."""
        if line.startswith(self._stages):
            self._steps += 1
        elif announced := re.match(rb"\d+ upgraded, (\d+) newly installed", line):
            self._announced += int(announced[1])
        total = max(self._expected, self._announced) * len(self._stages)
        self._fraction = max(self._fraction, min(0.99, self._steps / total))
        return self._fraction
