"""The control plane's records on SQLite or PostgreSQL, behind ports.records."""

from torpor.storage.store import SqlStore, make_store

__all__ = ["SqlStore", "make_store"]
