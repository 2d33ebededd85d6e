"""Fakes and conformance suites. Nothing that ships imports this room."""
