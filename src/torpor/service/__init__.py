"""Use cases of the control plane. They see ports and decisions, never a wire, a database or a host's inside."""
