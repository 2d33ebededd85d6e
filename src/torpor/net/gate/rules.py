"""What a gate is told, as a file: the domains it lets pass. Read at its start and whenever it is called on its control socket.

agent -> gate   one byte        the rules were changed: read them again
gate -> agent   one byte        they hold, for open connections too; without it they do not
"""

from __future__ import annotations

import json
from pathlib import Path

from torpor.model.domains import Domains, domain

FORMAT = 1
CALL, DONE = b"?", b"!"


def encode(domains: Domains) -> bytes:
    return json.dumps({"format": FORMAT, "domains": sorted(domains.listed)}).encode()


def read(path: Path) -> Domains:
    """Raises OSError, ValueError, InvalidInput."""
    document = json.loads(path.read_bytes())
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(f"{path} is not of format {FORMAT}")
    return Domains(domain(str(text)) for text in document.get("domains", ()))
