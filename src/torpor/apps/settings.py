"""The settings, in one table: flag, variable, torpor.toml, default and help all come from it, and so does docs/settings.md.

    flag  >  TORPOR_* variable  >  torpor.toml in the home  >  the command's default  >  the table's default

`home` itself cannot stand in torpor.toml, which lies in it. `python -m torpor.apps.settings` prints the page.
"""

from __future__ import annotations

import dataclasses
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, ip_network
from pathlib import Path
from typing import Any

from torpor.model.errors import InvalidInput, NoPermission

FILE = "torpor.toml"
_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off")


@dataclass(frozen=True, slots=True)
class Settings:
    """The resolved values. Sizes and times carry their unit in the name."""

    home: Path
    pool_size: int
    pool_memory_mib: int
    warm_budget_mib: int
    disk_sync: str
    debian_mirror: str
    host_ca: bool
    network_range: str
    network_pool: int
    boot_timeout: float
    log_level: str
    host: str
    port: int
    database: str
    redis: str
    tls_certificate: str
    tls_key: str
    insecure_http: bool
    sign_up: str
    trusted_proxies: str
    page_origins: str
    notify_networks: str
    domain: str
    proxy_port: int
    tls: str


@dataclass(frozen=True, slots=True)
class Setting:
    """One row. `parse` takes text or TOML's own value and returns the typed one; it raises ValueError with what is expected. `default` is in the typed form,
    None when it depends on the machine (then `default_text` says how). A `secret` value is never shown."""

    name: str
    parse: Callable[[object], Any]
    default: object
    help: str
    flag: str = ""
    default_text: str = ""
    secret: bool = False

    @property
    def variable(self) -> str:
        return f"TORPOR_{self.name.upper()}"

    @property
    def option(self) -> str:
        return self.flag or "--" + self.name.replace("_", "-")


def _whole(low: int, high: int) -> Callable[[object], int]:
    def parse(value: object) -> int:
        expected = f"a whole number from {low} to {high}"
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            raise ValueError(expected)
        if isinstance(value, str) and not re.fullmatch(r"\s*[0-9]{1,12}\s*", value, re.ASCII):
            raise ValueError(expected)
        if not low <= int(value) <= high:
            raise ValueError(expected)
        return int(value)

    return parse


def _seconds(low: float, high: float) -> Callable[[object], float]:
    def parse(value: object) -> float:
        expected = f"seconds from {low:g} to {high:g}"
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise ValueError(expected)
        try:
            seconds = float(value)
        except ValueError:
            raise ValueError(expected) from None
        if not low <= seconds <= high:  # also false for NaN
            raise ValueError(expected)
        return seconds

    return parse


def _switch(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in _TRUE + _FALSE:
        return value.strip().lower() in _TRUE
    raise ValueError("true or false")


def _one_of(*choices: str) -> Callable[[object], str]:
    def parse(value: object) -> str:
        if isinstance(value, str) and value.strip().lower() in choices:
            return value.strip().lower()
        raise ValueError("one of " + ", ".join(choices))

    return parse


def _text(value: object) -> str:
    if not isinstance(value, str) or any(not character.isprintable() for character in value):
        raise ValueError("one line of text")
    return value.strip()


def _range(value: object) -> str:
    text = _text(value)
    try:
        return str(IPv4Network(text)) if text else ""
    except ValueError:
        raise ValueError("an IPv4 network such as 198.18.0.0/15") from None


def _list(value: object) -> list[str]:
    return [part for each in _text(value).split(",") if (part := each.strip())]


def _networks(value: object) -> str:
    try:
        return ",".join(str(ip_network(each)) for each in _list(value))
    except ValueError:
        raise ValueError("networks such as 127.0.0.1/32,fd00::/8") from None


def _origins(value: object) -> str:
    found = _list(value)
    if not all(re.fullmatch(r"https?://[A-Za-z0-9.\[\]:-]+", each) for each in found):
        raise ValueError("origins such as https://dash.example.com")
    return ",".join(found)


def _domain(value: object) -> str:
    text = _text(value).lower().rstrip(".")
    if text and not re.fullmatch(r"(?=.{1,190}\Z)[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*(:[0-9]{1,5})?", text):
        raise ValueError("a domain such as sandboxes.example.com, with or without a port")
    return text


def _path(value: object) -> Path:
    text = str(value) if isinstance(value, (str, Path)) else ""
    if not text.strip() or "\0" in text:
        raise ValueError("a directory")
    return Path(os.path.abspath(os.path.expanduser(text)))


TABLE: tuple[Setting, ...] = (
    Setting(
        "home",
        _path,
        None,
        "Directory of all data: images, sandboxes, snapshots.",
        flag="--data",
        default_text="/var/lib/torpor for root, else ~/.local/share/torpor",
    ),
    Setting("pool_size", _whole(0, 64), 2, "How many running, exercised sandboxes are kept ready per popular shape; 0 for none. `torpor run` keeps none."),
    Setting("pool_memory_mib", _whole(0, 1 << 24), 2048, "The most memory, in MiB, that the ready sandboxes may take together."),
    Setting("warm_budget_mib", _whole(0, 1 << 26), 10240, "The most disk, in MiB, for cached boot snapshots; the least recently used go first."),
    Setting(
        "disk_sync",
        _one_of("fast", "strict"),
        "fast",
        "Whether a guest's fsync reaches the host's disk at once (strict), or at the next pause (fast). A power cut of the host takes a fast running "
        "sandbox back to its last pause; what a pause or snapshot promised is on disk either way.",
    ),
    Setting(
        "debian_mirror", _text, "", "Where packages for images come from: `ARCHIVE [SECURITY]`.", default_text="a Debian host's own archive, else Debian's"
    ),
    Setting("host_ca", _switch, False, "Whether templates get the CA certificates that the host has in /usr/local/share/ca-certificates."),
    Setting(
        "network_range", _range, "", "Addresses for the links between host and sandboxes, such as `198.18.0.0/15`.", default_text="one the host has no route to"
    ),
    Setting("network_pool", _whole(0, 256), 4, "How many networks are kept ready, so that no start waits for one."),
    Setting("boot_timeout", _seconds(1, 3600), 60.0, "Seconds that a cold boot may take before it is tried again."),
    Setting("log_level", _one_of("debug", "info", "warning", "error"), "info", "The least important messages that are logged."),
    Setting("host", _text, "127.0.0.1", "The address that `torpor serve` listens on. One that other machines can reach needs TLS, or `insecure_http`."),
    Setting("port", _whole(0, 65535), 8080, "The port that `torpor serve` listens on; 0 for any that is free."),
    Setting(
        "database",
        _text,
        "",
        "Where the records are: `postgresql://user:password@host/name`, or a path for SQLite.",
        default_text="`torpor.db` in the home",
        secret=True,
    ),
    Setting(
        "redis", _text, "", "`redis://...` for the wake-ups between several `torpor serve` on one PostgreSQL.", default_text="none: one process", secret=True
    ),
    Setting("tls_certificate", _text, "", "PEM file of the certificate (with its chain) that `torpor serve` shows.", default_text="none: plain HTTP"),
    Setting("tls_key", _text, "", "PEM file of the certificate's private key.", default_text="none"),
    Setting("insecure_http", _switch, False, "Whether plain HTTP may be served beyond this machine, where something else encrypts."),
    Setting(
        "sign_up",
        _one_of("closed", "approval", "open"),
        "closed",
        "Who makes accounts: administrators only (`closed`), whoever asks and an administrator approves (`approval`), whoever asks (`open`).",
    ),
    Setting(
        "trusted_proxies",
        _networks,
        "",
        "Networks, with commas between, of proxies whose `X-Forwarded-For` and `X-Forwarded-Proto` are believed, such as `127.0.0.1/32`.",
        default_text="none",
    ),
    Setting(
        "page_origins",
        _origins,
        "",
        "Origins, with commas between, of further pages that may use a browser's login, such as `https://dash.example.com`.",
        default_text="the server's own only",
    ),
    Setting(
        "notify_networks",
        _networks,
        "",
        "Private networks that notifications may be sent to, joined by commas, such as `10.20.0.0/16`. Metadata addresses stay closed.",
        default_text="none: the public internet only",
    ),
    Setting(
        "domain",
        _domain,
        "",
        "The domain under which sandboxes have their names: `{port}-{id}.{domain}`, the API being `api.{domain}`. A port that others reach the server at may "
        "follow: `sbx.example.com:8443`.",
        default_text="any: a name of that form leads to its sandbox",
    ),
    Setting("proxy_port", _whole(0, 65535), 0, "One more port, for sandboxes alone, named by the path: `/{id}/{port}/...`; 0 for none. See [proxy](proxy.md)."),
    Setting(
        "tls",
        _one_of("off", "auto"),
        "off",
        "`auto`: TLS with the certificate that `torpor certs` makes for `domain`, made when it is missing, unless `tls_certificate` names another.",
    ),
)


def resolve(
    flags: Mapping[str, object] | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    defaults: Mapping[str, object] | None = None,
) -> Settings:
    """The values in force. `flags`: setting name -> value, None for a flag not given. `defaults`: a command's own. Raises InvalidInput naming the source
    of a bad value, an unknown name in torpor.toml or in `flags`, or a home that is no directory; NoPermission where reading is not allowed."""
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    variables = os.environ if environment is None else environment
    rows = {setting.name: setting for setting in TABLE}
    for name in [*given, *(defaults or {})]:
        if name not in rows:
            raise InvalidInput(f"There is no setting {name!r}.")
    home = _value(rows["home"], given, variables, {}, Path(), {"home": _default_home(), **(defaults or {})})
    _demand_directory(home)
    file = home / FILE
    written = _read(file)
    for name in written:
        if name not in rows or name == "home":
            raise InvalidInput(f"{file}: there is no setting {name!r} for this file.", mend=f"Known: {', '.join(n for n in rows if n != 'home')}.")
    values = {name: _value(row, given, variables, written, file, defaults or {}) for name, row in rows.items() if name != "home"}
    return Settings(home=home, **values)


def _value(
    row: Setting, flags: Mapping[str, object], variables: Mapping[str, str], written: Mapping[str, object], file: Path, defaults: Mapping[str, object]
) -> Any:
    if row.name in flags:
        source, value = row.option, flags[row.name]
    elif variables.get(row.variable, "") != "":
        source, value = row.variable, variables[row.variable]
    elif row.name in written:
        source, value = f"{row.name} in {file}", written[row.name]
    else:
        return defaults.get(row.name, row.default)
    try:
        return row.parse(value)
    except ValueError as expected:
        shown = "the value" if row.secret else repr(value)[:80]
        raise InvalidInput(f"{source}: {shown} is not {expected}.") from None


def _demand_directory(home: Path) -> None:
    """What is not there yet is made by whoever needs it."""
    try:
        if home.is_dir() or not os.path.lexists(home):
            return
    except PermissionError:
        raise NoPermission(f"{home} cannot be looked into by this user.", mend="Choose another directory with --data or TORPOR_HOME.") from None
    raise InvalidInput(f"{home} is no directory.", mend="Choose another one with --data or TORPOR_HOME.")


def _read(file: Path) -> Mapping[str, object]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except PermissionError:
        raise NoPermission(f"{file} may not be read by this user.", mend="Choose another home with --data, or change its mode.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise InvalidInput(f"{file}: {error}.") from None


def _default_home() -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/torpor")
    return Path.home() / ".local" / "share" / "torpor"


def page() -> str:
    """docs/settings.md."""
    lines = [
        "# Settings",
        "",
        "A flag wins over the variable, the variable over `torpor.toml` in the home, and that over the default. In `torpor.toml` a setting stands by its",
        "name, at the top level: `pool_size = 4`. An empty variable counts as not set.",
        "",
        "This page is made from the table in `src/torpor/apps/settings.py`: `python -m torpor.apps.settings > docs/settings.md`.",
        "",
        "| setting | flag | variable | default | what it does |",
        "|---|---|---|---|---|",
    ]
    for row in TABLE:
        default = row.default_text or f"`{str(row.default).lower() if isinstance(row.default, bool) else row.default}`"
        lines.append(f"| `{row.name}` | `{row.option}` | `{row.variable}` | {default} | {row.help} |")
    return "\n".join(lines) + "\n"


assert [row.name for row in TABLE] == [field.name for field in dataclasses.fields(Settings)], "the table and Settings name the same settings"

if __name__ == "__main__":
    print(page(), end="")
