"""One service for a module of tests; each test that leaves something behind takes a context of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from interpreter_world import Service, running


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running(tmp_path_factory.mktemp("interpreter")) as service:
        yield service


@pytest.fixture
def own_service(tmp_path: Path) -> Iterator[Service]:
    with running(tmp_path) as service:
        yield service


@pytest.fixture
def context(service: Service) -> Iterator[str]:
    made = service.context()
    yield made
    service.client.delete(f"/contexts/{made}")
