"""The page of promises lists each once, and what it names as shown by exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = dict(re.findall(r"^\| ([ST]\d+) \| (.*)\|$", (ROOT / "docs" / "promises.md").read_text(), re.MULTILINE))


def test_every_promise_has_its_row() -> None:
    assert list(ROWS) == [f"S{number}" for number in range(1, 11)] + [f"T{number}" for number in range(1, 16)]


@pytest.mark.parametrize("promise", ROWS)
def test_what_shows_it_exists(promise: str) -> None:
    shown = ROWS[promise].rpartition(" | ")[2]
    references = re.findall(r"`((?:tests|bench)/[^`]+)`", shown)
    assert references or "*pending*" in shown
    for reference in references:
        path, _, name = reference.partition("::")
        assert (ROOT / path).is_file(), reference
        assert not name or re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE), reference


def test_other_pages_lead_there() -> None:
    assert "promises.md" in (ROOT / "README.md").read_text()
