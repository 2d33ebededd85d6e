"""Tokens of one sandbox."""

from __future__ import annotations

import pytest

from torpor.service.tokens import SandboxTokens


def test_a_token_is_of_one_sandbox_one_use_and_one_installation() -> None:
    tokens, others = SandboxTokens(b"1" * 32), SandboxTokens(b"2" * 32)
    made = [tokens.access("a"), tokens.access("b"), tokens.traffic("a"), tokens.traffic("b"), others.access("a"), others.traffic("a")]
    assert len(set(made)) == len(made)
    assert SandboxTokens(b"1" * 32).access("a") == made[0]


@pytest.mark.parametrize("given", ["", "x", "\udcff", "é" * 64, "0" * 64])
def test_what_is_no_token_opens_nothing(given: str) -> None:
    tokens = SandboxTokens(b"1" * 32)
    assert not tokens.is_access("a", given)
    assert not tokens.is_traffic("a", given)
    assert tokens.is_access("a", tokens.access("a"))
    assert tokens.is_traffic("a", tokens.traffic("a"))
    assert not tokens.is_access("a", tokens.traffic("a"))
