"""What a server keeps ready before anybody asked."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from torpor.apps.stock import stock
from torpor.host.pool import Kind
from torpor.model.sandbox import NetworkMode
from torpor.model.shapes import Shape

OFF, ON = NetworkMode.OFF, NetworkMode.ON


def engine(warm: set[str], problems: tuple[str, ...]) -> tuple[Any, list[tuple[str, NetworkMode, int | None]]]:
    stocked: list[tuple[str, NetworkMode, int | None]] = []

    def put(kind: Kind, most: int | None = None) -> None:
        assert kind.shape == Shape()
        stocked.append((kind.template, kind.network, most))

    async def is_warm(name: str, shape: Shape) -> bool:
        return name in warm

    templates = [SimpleNamespace(name="base", service=None), SimpleNamespace(name="code", service=object()), SimpleNamespace(name="cold", service=object())]
    images = SimpleNamespace(templates=lambda: templates)
    agent = SimpleNamespace(pool=SimpleNamespace(stock=put), is_warm=is_warm, context=SimpleNamespace(images=images))
    return SimpleNamespace(agent=agent, networks=SimpleNamespace(problems=lambda: problems)), stocked


@pytest.mark.parametrize(
    ("problems", "wanted"),
    [
        ((), [("base", OFF, None), ("base", ON, 1), ("code", ON, 1)]),
        (("not root",), [("base", OFF, None)]),
    ],
)
async def test_what_is_stocked(problems: tuple[str, ...], wanted: list[tuple[str, NetworkMode, int | None]]) -> None:
    of, stocked = engine({"base", "code"}, problems)
    await stock(of)
    assert stocked == wanted
