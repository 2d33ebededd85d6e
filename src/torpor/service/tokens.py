"""What opens one sandbox from outside without a key of its team: tokens that are derived, not stored, so that they outlive pauses, restarts and lost records.

    access     HMAC-SHA256(seed, id)                      its files and commands (E2B's envd token)
    traffic    HMAC-SHA256(seed, "sandbox-traffic-" id)   its private ports

Both as 64 hex digits. Whoever holds one can use it until the sandbox ends.
"""

from __future__ import annotations

import hashlib
import hmac
import re

PURPOSE = "sandbox tokens"
"""What the seed is derived for: Sealer.derive."""
_ADDRESS = re.compile(r"v1\.([1-9][0-9]{0,11})\.[0-9a-f]{64}")


class SandboxTokens:
    """`seed`: 32 secret bytes, the same in every server of an installation."""

    def __init__(self, seed: bytes) -> None:
        self._seed = seed

    def access(self, sandbox_id: str) -> str:
        return self._made(sandbox_id)

    def traffic(self, sandbox_id: str) -> str:
        return self._made(f"sandbox-traffic-{sandbox_id}")

    def is_access(self, sandbox_id: str, given: str) -> bool:
        return hmac.compare_digest(self.access(sandbox_id).encode(), given.encode(errors="surrogateescape"))

    def is_traffic(self, sandbox_id: str, given: str) -> bool:
        return hmac.compare_digest(self.traffic(sandbox_id).encode(), given.encode(errors="surrogateescape"))

    def address(self, sandbox_id: str, port: int, expires: int) -> str:
        """What opens one port until `expires` (seconds since the epoch), in a signed address and in the session that it begins."""
        return f"v1.{expires}.{self._made(f'sandbox-address-{sandbox_id}-{port}-{expires}')}"

    def is_address(self, sandbox_id: str, port: int, given: str, now: float) -> bool:
        shape = _ADDRESS.fullmatch(given)
        if shape is None or int(shape[1]) <= now:
            return False
        return hmac.compare_digest(self.address(sandbox_id, port, int(shape[1])).encode(), given.encode())

    def _made(self, about: str) -> str:
        return hmac.new(self._seed, about.encode(), hashlib.sha256).hexdigest()
