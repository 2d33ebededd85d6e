"""What a wake checks before it sets anything."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.guest import wake
from torpor.guest.wake import is_host_name

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,62})\Z")


@pytest.mark.parametrize("name", ["a", "sandbox-0000", "A.b-9", "9" * 63, "", "-a", ".a", "a" * 64, "a b", "a\n", "ä", "a/b", "a\0"])
def test_host_names(name: str) -> None:
    assert is_host_name(name) == bool(_NAME.match(name))


@given(st.text(alphabet="aZ09.-_ \né", max_size=66))
def test_host_names_of_any_text(name: str) -> None:
    assert is_host_name(name) == bool(_NAME.match(name))


def test_marks_of_e2b_come_change_and_go_with_its_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marks = tmp_path / "run" / "e2b"
    monkeypatch.setattr(wake, "MARKS", str(marks))
    for sandbox_id in ("first", "a-longer-second", "x"):
        wake._mark({"E2B_SANDBOX": "true", "E2B_SANDBOX_ID": sandbox_id, "OTHER": "y"})
        assert {path.name: path.read_text() for path in marks.iterdir()} == {".E2B_SANDBOX": "true", ".E2B_SANDBOX_ID": sandbox_id}
    (marks / ".E2B_SANDBOX").unlink()
    (marks / ".E2B_SANDBOX").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError):  # a file of root's is not written through a link of the user's
        wake._mark({"E2B_SANDBOX": "true"})
    assert not (tmp_path / "elsewhere").exists()
    wake._mark({})
    assert list(marks.iterdir()) == []
