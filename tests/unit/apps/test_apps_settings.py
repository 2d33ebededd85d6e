"""The settings: who wins, what is refused, and that the page says the same."""

from pathlib import Path

import pytest

from torpor.apps import settings
from torpor.apps.settings import TABLE, resolve
from torpor.model.errors import InvalidInput

PAGE = Path(__file__).parents[3] / "docs" / "settings.md"


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    return {"TORPOR_HOME": str(tmp_path)}


def test_the_page_is_current() -> None:
    assert PAGE.read_text() == settings.page(), "run: python -m torpor.apps.settings > docs/settings.md"


def test_flag_variable_file_and_defaults_win_in_this_order(tmp_path: Path, home: dict[str, str]) -> None:
    assert resolve(environment=home).pool_size == 2
    assert resolve(environment=home, defaults={"pool_size": 0}).pool_size == 0
    (tmp_path / "torpor.toml").write_text("pool_size = 3\n")
    assert resolve(environment=home, defaults={"pool_size": 0}).pool_size == 3
    variables = home | {"TORPOR_POOL_SIZE": "4"}
    assert resolve(environment=variables).pool_size == 4
    assert resolve({"pool_size": 5}, environment=variables).pool_size == 5
    assert resolve({"pool_size": None}, environment=variables).pool_size == 4
    assert resolve(environment=home | {"TORPOR_POOL_SIZE": ""}).pool_size == 3


def test_the_home_is_made_absolute_and_a_flag_moves_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve({"home": "x/../data"}, environment={"TORPOR_HOME": "/elsewhere"}).home == tmp_path / "data"
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert resolve(environment={}).home == Path("/home/someone/.local/share/torpor")
    assert resolve({"home": "~/t"}, environment={}).home == Path("/home/someone/t")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert resolve(environment={}).home == Path("/var/lib/torpor")


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("pool_size", "-1"),
        ("pool_size", "1e3"),
        ("pool_size", "65"),
        ("disk_sync", "sometimes"),
        ("host_ca", "maybe"),
        ("boot_timeout", "nan"),
        ("boot_timeout", "0"),
        ("network_range", "10.0.0.1/8"),
        ("debian_mirror", "http://a\nhttp://b"),
        ("log_level", "loud"),
    ],
)
def test_a_bad_value_is_refused_by_the_name_of_its_source(tmp_path: Path, home: dict[str, str], name: str, bad: str) -> None:
    row = next(row for row in TABLE if row.name == name)
    with pytest.raises(InvalidInput, match=rf"{row.variable}: .* is not "):
        resolve(environment=home | {row.variable: bad})
    with pytest.raises(InvalidInput, match=rf"{row.option}: .* is not "):
        resolve({name: bad}, environment=home)
    (tmp_path / "torpor.toml").write_text(f"{name} = '''{bad}'''\n")
    with pytest.raises(InvalidInput, match=rf"{name} in .*torpor\.toml: .* is not "):
        resolve(environment=home)


@pytest.mark.parametrize("text", ["pool = 1", "home = '/x'", "pool_size =", "pool_size = true", "[pool_size]\nx = 1", "\x00"])
def test_a_bad_file_is_refused_by_its_name(tmp_path: Path, home: dict[str, str], text: str) -> None:
    (tmp_path / "torpor.toml").write_text(text)
    with pytest.raises(InvalidInput, match=r"torpor\.toml"):
        resolve(environment=home)


def test_an_unknown_flag_is_refused(home: dict[str, str]) -> None:
    with pytest.raises(InvalidInput, match="pool_sise"):
        resolve({"pool_sise": 1}, environment=home)


def test_the_same_value_means_the_same_from_text_and_from_toml(tmp_path: Path, home: dict[str, str]) -> None:
    (tmp_path / "torpor.toml").write_text('host_ca = true\nboot_timeout = 30\nnetwork_range = "198.18.0.0/15"\ndisk_sync = "STRICT"\n')
    written = resolve(environment=home)
    given = {"TORPOR_HOST_CA": "yes", "TORPOR_BOOT_TIMEOUT": "30", "TORPOR_NETWORK_RANGE": "198.18.0.0/15", "TORPOR_DISK_SYNC": "strict"}
    (tmp_path / "torpor.toml").unlink()
    assert resolve(environment=home | given) == written
    assert (written.host_ca, written.boot_timeout, written.disk_sync) == (True, 30.0, "strict")


def test_every_default_is_a_value_the_setting_would_take() -> None:
    for row in TABLE:
        if row.default is not None:
            assert row.parse(row.default) == row.default
