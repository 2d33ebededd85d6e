"""Secrets at rest."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from torpor.model.errors import Corrupt, NoPermission
from torpor.notify.seal import FILE, random_sealer, sealer_of


def test_what_is_sealed_opens_again_also_after_a_restart(tmp_path: Path) -> None:
    sealed = sealer_of(tmp_path).seal("sécret ☃", "channel-1")
    assert "cret" not in sealed
    assert sealer_of(tmp_path).unseal(sealed, "channel-1") == "sécret ☃"
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600
    assert [file.name for file in tmp_path.iterdir()] == [FILE]


def test_the_same_text_is_never_sealed_the_same_way(tmp_path: Path) -> None:
    sealer = sealer_of(tmp_path)
    assert sealer.seal("x", "y") != sealer.seal("x", "y")


@pytest.mark.parametrize(
    "change", [lambda text: text[:-2] + "AA", lambda text: text[3:], lambda text: "", lambda text: "v1.", lambda text: "v1.é", lambda text: "v2" + text[2:]]
)
def test_what_was_changed_does_not_open(tmp_path: Path, change: object) -> None:
    sealer = sealer_of(tmp_path)
    assert callable(change)
    with pytest.raises(Corrupt, match="does not open"):
        sealer.unseal(change(sealer.seal("secret", "a")), "a")


def test_it_opens_for_nothing_else_and_with_no_other_key(tmp_path: Path) -> None:
    sealer = sealer_of(tmp_path)
    sealed = sealer.seal("secret", "a")
    with pytest.raises(Corrupt):
        sealer.unseal(sealed, "b")
    with pytest.raises(Corrupt):
        random_sealer().unseal(sealed, "a")


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    sealer_of(tmp_path)
    (tmp_path / FILE).chmod(0o640)
    with pytest.raises(NoPermission, match="can be read by others"):
        sealer_of(tmp_path)


@pytest.mark.parametrize("content", [b"", b"00", b"nonsense", b"\xff" * 64, b"0" * 65])
def test_a_file_that_holds_no_key_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    (tmp_path / FILE).chmod(0o600)
    with pytest.raises(Corrupt, match="holds no key"):
        sealer_of(tmp_path)
    assert (tmp_path / FILE).read_bytes() == content


def test_of_several_that_make_it_at_once_one_makes_it(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        sealers = list(threads.map(lambda _: sealer_of(tmp_path), range(8)))
    sealed = sealers[0].seal("secret", "a")
    assert {sealer.unseal(sealed, "a") for sealer in sealers} == {"secret"}
    assert [file.name for file in tmp_path.iterdir()] == [FILE]


def test_what_is_derived_is_its_own_for_each_purpose_and_key_and_stays(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    sealer, other = sealer_of(tmp_path), sealer_of(tmp_path / "other")
    made = sealer.derive("a")
    assert len(made) == 32
    assert sealer_of(tmp_path).derive("a") == made
    assert len({made, sealer.derive("b"), other.derive("a")}) == 3
