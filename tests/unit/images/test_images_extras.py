"""A template with more than Debian: its wheels, its program, its other name, and what makes it stale."""

import hashlib
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from images_processes import PlainProcesses

from torpor.images import keys, recipes, templates
from torpor.images.debian import PackageSource
from torpor.images.index import Index
from torpor.images.tools import Tools
from torpor.images.wheels import download, install_hooks
from torpor.images.workshop import Workshop
from torpor.model.errors import HostError

NAME = "code-interpreter-v1"
RECIPE = recipes.TEMPLATES[NAME]


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    work = tmp_path / "work"
    work.mkdir()
    return Workshop(Index(tmp_path), Tools(PlainProcesses()), PackageSource("", "", Path("/keys")), work, lambda what, fraction: None)


def wheel(folder: Path, content: bytes = b"") -> str:
    """A wheel of nothing for any Python, and the line that pins it."""
    name = folder / "nothing-1.0-py3-none-any.whl"
    source = folder / "source" / "nothing-1.0.dist-info"
    source.mkdir(parents=True)
    (source / "METADATA").write_bytes(b"Metadata-Version: 2.1\nName: nothing\nVersion: 1.0\n" + content)
    (source / "WHEEL").write_text("Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    (source / "RECORD").write_text("nothing-1.0.dist-info/METADATA,,\nnothing-1.0.dist-info/WHEEL,,\nnothing-1.0.dist-info/RECORD,,\n")
    shutil.make_archive(str(name), "zip", folder / "source")
    name.with_name(name.name + ".zip").rename(name)
    return f"nothing==1.0 --hash=sha256:{hashlib.sha256(name.read_bytes()).hexdigest()}\n"


def test_it_has_two_names_and_is_not_built_unless_named() -> None:
    assert recipes.named("code-runner-beta") == NAME
    assert recipes.named("base") == "base"
    assert NAME not in recipes.STANDARD
    assert set(recipes.STANDARD) < set(recipes.TEMPLATES)


def test_its_key_follows_program_and_pins_and_the_others_have_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert RECIPE.extras is not None
    base = keys.template_key(recipes.TEMPLATES["base"], {})
    before = keys.template_key(RECIPE, {})
    for name in (RECIPE.extras.program, RECIPE.extras.wheels):
        source = keys.wheels(RECIPE.extras).with_name(name)
        shutil.copytree(source, tmp_path / name) if source.is_dir() else shutil.copyfile(source, tmp_path / name)
    monkeypatch.setattr(keys, "_HERE", tmp_path)
    assert keys.template_key(RECIPE, {}) == before
    for changed in (tmp_path / RECIPE.extras.program / "kernel.js", tmp_path / RECIPE.extras.wheels):
        with changed.open("a") as file:
            file.write("\n")
        after = keys.template_key(RECIPE, {})
        assert after != before
        before = after
    assert keys.template_key(replace(RECIPE, size=RECIPE.size * 2), {}) != before
    assert keys.template_key(recipes.TEMPLATES["base"], {}) == base


def test_every_distribution_is_pinned_with_hashes() -> None:
    assert RECIPE.extras is not None
    text = keys.wheels(RECIPE.extras).read_text()
    pins = re.findall(r"^([a-z0-9-]+)==[^\s]+ \\\n    --hash=sha256:[0-9a-f]{64}", text, re.MULTILINE)
    wanted = [line for line in keys.wheels(RECIPE.extras).with_suffix(".in").read_text().splitlines() if line and not line.startswith("#")]
    assert set(wanted) <= set(pins)
    assert len(pins) == len(re.findall(r"^[a-z]", text, re.MULTILINE))
    assert "://" not in text


def test_the_program_is_whole_and_of_the_template_alone() -> None:
    assert RECIPE.extras is not None
    files = keys.program(RECIPE.extras)
    assert {"__init__.py", "server.py", "forkserver.py", "kernel.js"} <= set(files)
    for path in files.values():
        assert "torpor." not in re.sub(r'".*?"', "", path.read_text()).replace("torpor_code", ""), path


async def test_wheels_are_fetched_by_hash(tmp_path: Path, shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    pins = tmp_path / "pins.lock"
    pins.write_text(wheel(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    folder = await download(shop, pins)
    assert sorted(path.name for path in folder.iterdir()) == ["nothing-1.0-py3-none-any.whl", "pins"]


async def test_another_wheel_than_the_pinned_is_refused(tmp_path: Path, shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    pins = tmp_path / "pins.lock"
    pins.write_text(re.sub("sha256:.{8}", "sha256:00000000", wheel(tmp_path)))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(HostError, match="pip failed"):
        await download(shop, pins)


def test_what_is_left_out_goes_and_the_rest_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hook's own words, on a tree without a chroot."""
    monkeypatch.setattr(recipes, "PACKAGES", str(tmp_path / "packages"))
    for name in ("a/tests/x.py", "a/sub/tests/deep/x.py", "a/testing/x.py", "b/data/x", "b/x.py"):
        (tmp_path / "packages" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "packages" / name).touch()
    line = next(line for line in install_hooks(tmp_path / "wheels", ("*/tests", "b/data")) if " find " in line)
    subprocess.run(["sh", "-ec", line.replace('chroot "$1" ', "")], check=True)
    left = sorted(str(path.relative_to(tmp_path / "packages")) for path in (tmp_path / "packages").rglob("*") if path.is_file())
    assert left == ["a/testing/x.py", "b/x.py"]


def test_its_disk_has_the_service_where_the_recipe_starts_it() -> None:
    assert RECIPE.service is not None
    launcher = RECIPE.service.start[0]
    mode, text = templates.own_files(RECIPE, "")[launcher]
    assert mode == 0o755
    assert "from torpor_code.server import main" in text
