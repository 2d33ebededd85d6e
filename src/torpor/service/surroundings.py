"""What the sandboxes of a dialect find in their environment because its users rely on it: variables, which the guest also makes marker files of."""

from __future__ import annotations

from collections.abc import Mapping


def marks(dialect: str, sandbox_id: str, template_id: str) -> Mapping[str, str]:
    """Variables of every command of this sandbox. They name it, so each clone has its own."""
    if dialect != "e2b":
        return {}
    return {"E2B_SANDBOX": "true", "E2B_SANDBOX_ID": sandbox_id, "E2B_TEMPLATE_ID": template_id}
