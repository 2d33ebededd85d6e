"""Several versions of torpor on one home, images made anew, and what is collected. The world is that of test_images_local."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_images_local import PlayedProcesses, images, leftovers, package, processes, silent  # noqa: F401 - fixtures

from torpor.images import index, recipes
from torpor.images.index import Index
from torpor.images.local import LocalImages
from torpor.model.errors import NotFound

pytestmark = pytest.mark.usefixtures("processes")


@pytest.fixture
def other_version(tmp_path: Path, processes: PlayedProcesses) -> LocalImages:  # noqa: F811
    """A torpor with another guest agent, on the same home."""
    for name in ("__init__.py", "wire/__init__.py", "wire/guest/frames.py", "guest/__init__.py", "guest/main.py"):
        (tmp_path / "later" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "later" / name).write_text("def main(): print('later')\n")
    return LocalImages(tmp_path / "home", processes, package=tmp_path / "later")


def built(images_root: Path, kind: str) -> set[str]:
    return {path.name for path in (images_root / kind).iterdir()}


async def test_two_versions_find_each_its_own_and_build_once(
    images: LocalImages,  # noqa: F811
    other_version: LocalImages,
    processes: PlayedProcesses,  # noqa: F811
) -> None:
    await images.ensure(["base"], silent)
    await other_version.ensure(["base"], silent)
    ours, theirs = images.boot(), other_version.boot()
    assert ours.agent_digest != theirs.agent_digest
    assert ours.kernel_digest == theirs.kernel_digest
    processes.calls.clear()
    for each in (images, other_version, images, other_version):
        await each.ensure(["base"], silent)
    assert processes.calls == []
    assert (images.boot(), other_version.boot()) == (ours, theirs)


async def test_a_version_that_has_built_nothing_starts_from_the_newest(images: LocalImages, other_version: LocalImages) -> None:  # noqa: F811
    await images.ensure(["base"], silent)
    assert other_version.boot() == images.boot()
    assert other_version.template("base") == images.template("base")


async def test_an_index_of_before_is_read(images: LocalImages, tmp_path: Path) -> None:  # noqa: F811
    await images.ensure(["base"], silent)
    before = images.boot()
    file = tmp_path / "home/images/index.json"
    document = json.loads(file.read_text())
    del document["others"]
    file.write_text(json.dumps(document))
    assert images.boot() == before


async def test_refresh_builds_anew_what_is_there(
    images: LocalImages,  # noqa: F811
    processes: PlayedProcesses,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    await images.ensure(["base", "minimal"], silent)
    base, minimal, agent = images.template("base"), images.template("minimal"), images.boot().agent_digest
    monkeypatch.setattr("torpor.images.templates._UUID", "746f7270-6f72-4469-8273-000000000002")  # as if Debian had new packages
    processes.calls.clear()
    await images.ensure(["base"], silent, refresh=True)
    assert sum(call.startswith("mmdebstrap") for call in processes.calls) == 3, "kernel, interpreter, one template"
    assert images.template("base").digest != base.digest
    assert (images.template("minimal"), images.boot().agent_digest) == (minimal, agent)
    assert images.template_disk(base.digest) == base.disk, "whoever stands on it has it still"
    freed = await images.collect(set())
    assert freed > 0
    assert built(tmp_path / "home/images", "template") == {images.template("base").digest, minimal.digest}


async def test_what_is_needed_or_named_is_not_collected(
    images: LocalImages,  # noqa: F811
    other_version: LocalImages,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(index, "KEPT", 2)
    await images.ensure(["minimal"], silent)
    root, first = tmp_path / "home/images", images.boot().agent_digest
    (tmp_path / "package/guest/main.py").write_text("def main(): print('second')\n")
    await images.ensure(["minimal"], silent)
    second = images.boot().agent_digest
    await other_version.ensure(["minimal"], silent)
    third = other_version.boot().agent_digest
    assert await images.collect({first}) == 0
    assert built(root, "agent") == {first, second, third}
    assert await images.collect(set()) > 0
    assert built(root, "agent") == {second, third}
    assert leftovers(root) == []
    with pytest.raises(NotFound):
        images.agent_disk(first)
    assert (images.boot().agent_digest, other_version.boot().agent_digest) == (second, third)
    assert await images.collect(set()) == 0


async def test_another_homes_images_are_not_collected(images: LocalImages, processes: PlayedProcesses, tmp_path: Path) -> None:  # noqa: F811
    await images.ensure(["minimal"], silent)
    stray = tmp_path / "home/images/agent" / ("a" * 64)
    stray.mkdir()
    (tmp_path / "guest_of").mkdir()
    (tmp_path / "guest_of/images").symlink_to(tmp_path / "home/images")
    assert await LocalImages(tmp_path / "guest_of", processes).collect(set()) == 0
    assert stray.exists()


def test_a_removal_cut_short_is_finished_by_the_next_builder(tmp_path: Path) -> None:
    store = Index(tmp_path)
    staged = store.staging()
    store.commit(staged, "kernel", "b" * 64, "key", {})
    (tmp_path / "kernel" / ("a" * 64)).mkdir()
    (tmp_path / "kernel" / ("a" * 64)).rename(store.staging() / "half")
    assert store.collect(set()) == 0
    assert leftovers(tmp_path) == []
    assert list(store.current()) == ["kernel"]


def test_recipes_are_kinds_that_are_collected() -> None:
    assert {"template", "kernel", "runtime", "agent"} == set(index.KINDS)
    assert recipes.TEMPLATES
