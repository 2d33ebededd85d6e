"""Ports of a sandbox: signed addresses that open one of them to whoever has them, for a while."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import Path
from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from torpor.api.auth import is_secure
from torpor.api.native.common import CapsuleId, Given, Runner, router
from torpor.api.native.ids import Prefix, inner, show, stamp
from torpor.api.native.models import Answer, Body
from torpor.api.reach import Public, Reach
from torpor.lifecycle.sandbox import FINAL
from torpor.model.errors import Denied, DenyReason

ports = router("ports")
MOST_SECONDS = 7 * 86400


class Sign(Body):
    """How long the address is good for, and the session that a browser gets from it."""

    expires_in: int = Field(3600, ge=1, le=MOST_SECONDS, description="Seconds.")


class Signed(Answer):
    url: str
    expires_at: str


@ports.post("/capsules/{capsule_id}/ports/{port}/url", response_model=Signed)
async def sign(request: Request, capsule_id: CapsuleId, port: Annotated[int, Path(ge=1, le=65535)], body: Sign, caller: Runner, services: Given) -> Response:
    """An address of the port that needs no key until it expires. On public ports the signature is not needed, and does no harm."""
    sandbox = await services.sandboxes.get(caller, inner(Prefix.SANDBOX, capsule_id))
    if sandbox.state in FINAL:
        raise Denied(DenyReason.ENDED, f"The sandbox is {sandbox.state.value}.")
    reach: Reach = request.app.state.reach
    url = reach.url(Public("https" if is_secure(request) else "http", request.headers.get("host", "")), show(Prefix.SANDBOX, sandbox.id), port)
    expires = int(time.time()) + body.expires_in
    signature = services.tokens.address(sandbox.id, port, expires)
    return JSONResponse({"url": f"{url}?torpor_signature={signature}", "expires_at": stamp(expires)}, headers={"Cache-Control": "no-store"})
