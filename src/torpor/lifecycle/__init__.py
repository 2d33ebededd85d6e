"""Decisions, pure: (state, request) -> accepted, already so, or denied with a named reason."""
