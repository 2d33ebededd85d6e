"""`Idempotency-Key`: a POST repeated with the same key leads to the same thing, also when the first answer was lost."""

from __future__ import annotations

import hashlib
import re

from starlette.requests import Request

from torpor.model.errors import InvalidInput

_KEY = re.compile(r"[\x21-\x7e]{1,255}\Z")


async def key_and_digest(request: Request) -> tuple[str, str]:
    """The key ('' when none is given) and the digest of the request that it stands for. Raises InvalidInput."""
    key = request.headers.get("idempotency-key")
    if key is None:
        return "", ""
    if not _KEY.match(key):
        raise InvalidInput("The Idempotency-Key must have 1 to 255 visible ASCII characters.")
    digest = hashlib.sha256(f"{request.method} {request.scope['path']}?{request.url.query}\n".encode())
    digest.update(await request.body())
    return key, digest.hexdigest()
