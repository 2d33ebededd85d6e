"""What a wake checks before it sets anything."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.guest.wake import is_host_name

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,62})\Z")


@pytest.mark.parametrize("name", ["a", "sandbox-0000", "A.b-9", "9" * 63, "", "-a", ".a", "a" * 64, "a b", "a\n", "ä", "a/b", "a\0"])
def test_host_names(name: str) -> None:
    assert is_host_name(name) == bool(_NAME.match(name))


@given(st.text(alphabet="aZ09.-_ \né", max_size=66))
def test_host_names_of_any_text(name: str) -> None:
    assert is_host_name(name) == bool(_NAME.match(name))
