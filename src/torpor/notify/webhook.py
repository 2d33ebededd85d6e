"""Webhooks: the event as JSON in a POST, signed.

    X-WRENN-SIGNATURE: sha256=<hex of HMAC-SHA256(secret, "<timestamp>.<body>")>
    X-Wrenn-Timestamp: 2026-01-31T12:00:00Z                 the text that is signed; a receiver refuses old ones, so that nothing can be replayed
    X-Wrenn-Delivery: <uuid>                                of this try
    X-Torpor-Delivery: dlv-...                              of the delivery: the same at every try

Any 2xx is success. The header names are the native dialect's (reference of the API, section 6.2).
"""

from __future__ import annotations

import hashlib
import hmac
import time
import uuid
from collections.abc import Mapping

from torpor import __version__
from torpor.notify.client import Client
from torpor.notify.guard import server_of
from torpor.ports.notify import Message

SECONDS = 10.0


def signature(secret: str, timestamp: str, body: bytes) -> str:
    return "sha256=" + hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


async def send(client: Client, config: Mapping[str, str], message: Message) -> None:
    """Raises Undelivered."""
    timestamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    headers = {
        "Content-Type": "application/json",
        "User-Agent": f"torpor/{__version__}",
        "X-WRENN-SIGNATURE": signature(config["secret"], timestamp, message.payload),
        "X-Wrenn-Delivery": str(uuid.uuid4()),
        "X-Wrenn-Timestamp": timestamp,
        "X-Torpor-Delivery": message.delivery_id,
    }
    answer = await client.request("POST", config["url"], headers, message.payload, timeout=SECONDS)
    if refusal := answer.refusal(server_of(config["url"])[0]):
        raise refusal
