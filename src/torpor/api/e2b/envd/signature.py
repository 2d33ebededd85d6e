"""Who may use /files: the holder of the sandbox's token, or of an address that was signed with it.

raw  = path ":" operation ":" user ":" token [":" expiration]      operation read | write, expiration in unix seconds
sig  = "v1_" + base64(sha256(raw)) without "="
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import time

from starlette.requests import Request

from torpor.model.errors import Unauthorized

EXPIRED = "signature is already expired"


def signed(path: str, operation: str, user: str, token: str, expiration: str = "") -> str:
    raw = ":".join((path, operation, user, token, *((expiration,) if expiration else ())))
    digest = hashlib.sha256(raw.encode("utf-8", "surrogateescape")).digest()
    return "v1_" + base64.b64encode(digest).decode().rstrip("=")


def demand_signature(request: Request, operation: str, token: str) -> None:
    """Raises Unauthorized unless the query is signed with the token, for this, and not for a time that is over."""
    query = request.query_params
    given = query.get("signature", "")
    if not given:
        raise Unauthorized("missing signature query parameter")
    expiration = query.get("signature_expiration", "")
    right = signed(query.get("path", ""), operation, query.get("username", ""), token, expiration)
    if not hmac.compare_digest(given.encode("utf-8", "surrogateescape"), right.encode()):
        raise Unauthorized("invalid signature")
    if expiration and not (expiration.isdigit() and len(expiration) < 16):
        raise Unauthorized("invalid signature_expiration")
    if expiration and int(expiration) < time.time():
        raise Unauthorized(EXPIRED)
