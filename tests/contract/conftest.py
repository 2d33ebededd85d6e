"""Servers that live for the session: starting one takes a second."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from servers import PostgresServer


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    server = PostgresServer()
    yield server
    server.close()
