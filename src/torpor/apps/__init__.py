"""Wiring: the only room that knows every class."""
