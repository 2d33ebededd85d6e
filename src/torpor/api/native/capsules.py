"""Sandboxes: create, look, pause, resume, fork, roll back, delete. Work goes on when a caller leaves; `wait` says how long an answer waits for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import Query
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from torpor.api.native.common import CapsuleId, Given, Reader, Writer, router
from torpor.api.native.idempotency import key_and_digest
from torpor.api.native.ids import Prefix, check_name, inner
from torpor.api.native.models import Capsule, Create, Fork, Rollback, Timeouts
from torpor.api.native.pages import Cursor, page
from torpor.api.native.state import tree
from torpor.api.native.wait import LONG, QUICK, bound
from torpor.api.services import Services
from torpor.lifecycle.sandbox import FINAL, LIVE
from torpor.model.errors import Denied, DenyReason, InvalidInput
from torpor.model.records import Sandbox, SandboxState, TimeoutAction
from torpor.model.sandbox import NetworkMode
from torpor.ports.records import SandboxFilter
from torpor.service.sandboxes import CreateRequest, Started

capsules = router("capsules")
_ACCEPTED: dict[int | str, dict[str, Any]] = {202: {"model": Capsule, "description": "Under way; the sandbox in its transient state."}}


async def outcome(services: Services, started: Started, seconds: float) -> Sandbox:
    """The sandbox when the operation is over, or as it is when the time is. Raises what the operation failed with."""
    if seconds <= 0:
        return started.sandbox
    return await services.sandboxes.settled(started.sandbox.id, started.operation_id, seconds)


def answer(sandbox: Sandbox, done: int) -> JSONResponse:
    """`done` as the status when nothing is under way any more, else 202."""
    return JSONResponse(tree(sandbox), 202 if sandbox.operation is not None else done)


def begun(started: Started, state: str) -> Started:
    """What was asked for is under way. Raises Denied where it is so already, which the dialect calls a wrong state; `reason` tells who asks again because an
    answer was lost."""
    if not started.operation_id:
        raise Denied(DenyReason.ALREADY, f"The sandbox is {state} already.")
    return started


def create_request(body: Create, now: float) -> CreateRequest:
    return CreateRequest(
        template=body.template,
        vcpus=body.vcpus,
        memory_mib=body.memory_mb,
        disk_mib=body.disk_size_mb,
        network=NetworkMode(body.network),
        idle_timeout=float(max(0, body.timeout_sec)),
        deadline=now + body.lifetime_sec if body.lifetime_sec else None,
        on_timeout=TimeoutAction(body.on_timeout),
        auto_resume=body.auto_resume,
        labels=body.metadata or {},
        env=body.envs or {},
    )


@capsules.post("/capsules", status_code=201, response_model=Capsule, responses=_ACCEPTED)
async def create(request: Request, body: Create, caller: Writer, services: Given) -> Response:
    """Starts a sandbox."""
    key, digest = await key_and_digest(request)
    seconds = bound(request, QUICK)
    started = await services.sandboxes.create(caller, create_request(body, time.time()), idempotency_key=key, request_digest=digest)
    return answer(await outcome(services, started, seconds), 201)


@capsules.get("/capsules", response_model=list[Capsule])
async def list_(
    request: Request,
    caller: Reader,
    services: Given,
    state: Annotated[list[SandboxState] | None, Query(description="Only in these states; all that have not ended unless given.")] = None,
    template: Annotated[str, Query(max_length=64)] = "",
    label: Annotated[list[str] | None, Query(description="NAME=VALUE; all must match.")] = None,
    cursor: Cursor = "",
    limit: Annotated[int, Query(ge=1, le=1000)] = 1000,
) -> Response:
    """The team's sandboxes, newest first."""
    wanted = SandboxFilter(team_id=caller.team_id, states=frozenset(state or LIVE), template=template, labels=_labels(label or ()))
    found = await services.sandboxes.list(caller, wanted, cursor=cursor, limit=limit)
    return page(request, [tree(sandbox) for sandbox in found.items], found.next)


def _labels(pairs: Sequence[str]) -> dict[str, str] | None:
    found = {}
    for pair in pairs:
        name, given, value = pair.partition("=")
        if not given or not name or len(pair) > 200 or "\0" in pair:
            raise InvalidInput(f"label {pair[:80]!r} is not NAME=VALUE.")
        found[name] = value
    return found or None


@capsules.get("/capsules/{capsule_id}", response_model=Capsule)
async def get(capsule_id: CapsuleId, caller: Reader, services: Given) -> Response:
    """One sandbox, in any state; an ended one is shown with its reason for 30 days."""
    return JSONResponse(tree(await services.sandboxes.get(caller, inner(Prefix.SANDBOX, capsule_id))))


@capsules.patch("/capsules/{capsule_id}", response_model=Capsule)
async def patch(capsule_id: CapsuleId, body: Timeouts, caller: Writer, services: Given) -> Response:
    """Sets the idle time-out, the lifetime from now on, or both; 0 takes one away."""
    sandbox_id = inner(Prefix.SANDBOX, capsule_id)
    before = await services.sandboxes.get(caller, sandbox_id)
    idle = before.idle_timeout if body.timeout_sec is None else float(max(0, body.timeout_sec))
    deadline = before.deadline if body.lifetime_sec is None else (time.time() + body.lifetime_sec if body.lifetime_sec else None)
    return JSONResponse(tree(await services.sandboxes.set_timeouts(caller, sandbox_id, idle_timeout=idle, deadline=deadline)))


@capsules.delete("/capsules/{capsule_id}", status_code=204, response_class=Response, responses={202: {"model": Capsule, "description": "Under way."}})
async def delete(request: Request, capsule_id: CapsuleId, caller: Writer, services: Given) -> Response:
    """Ends a sandbox, from any state. Again on one that has ended is no error."""
    seconds = bound(request, QUICK)
    sandbox = await outcome(services, await services.sandboxes.kill(caller, inner(Prefix.SANDBOX, capsule_id)), seconds)
    return Response(status_code=204) if sandbox.state in FINAL else JSONResponse(tree(sandbox), 202)


@capsules.post("/capsules/{capsule_id}/pause", response_model=Capsule, responses=_ACCEPTED)
async def pause(request: Request, capsule_id: CapsuleId, caller: Writer, services: Given) -> Response:
    """Memory and disk go to files, nothing keeps running. A 200 means that every byte is on disk."""
    seconds = bound(request, LONG)
    started = begun(await services.sandboxes.pause(caller, inner(Prefix.SANDBOX, capsule_id)), "paused")
    return answer(await outcome(services, started, seconds), 200)


@capsules.post("/capsules/{capsule_id}/resume", response_model=Capsule, responses=_ACCEPTED)
async def resume(request: Request, capsule_id: CapsuleId, caller: Writer, services: Given) -> Response:
    """Goes on where it stood."""
    seconds = bound(request, QUICK)
    started = begun(await services.sandboxes.resume(caller, inner(Prefix.SANDBOX, capsule_id)), "running")
    return answer(await outcome(services, started, seconds), 200)


@capsules.post("/capsules/{capsule_id}/boot", response_model=Capsule, responses=_ACCEPTED)
async def cold_boot(request: Request, capsule_id: CapsuleId, caller: Writer, services: Given) -> Response:
    """Starts a paused sandbox from its disk alone: what was in memory is lost. The way out when its memory no longer fits this machine."""
    seconds = bound(request, QUICK)
    return answer(await outcome(services, await services.sandboxes.cold_boot(caller, inner(Prefix.SANDBOX, capsule_id)), seconds), 200)


@capsules.post("/capsules/{capsule_id}/rollback", response_model=Capsule, responses=_ACCEPTED)
async def rollback(request: Request, capsule_id: CapsuleId, body: Rollback, caller: Writer, services: Given) -> Response:
    """Takes a sandbox back to a snapshot that was made of it. What it did since is lost."""
    seconds = bound(request, QUICK)
    started = await services.sandboxes.rollback(caller, inner(Prefix.SANDBOX, capsule_id), check_name(body.snapshot))
    return answer(await outcome(services, started, seconds), 200)


@capsules.post(
    "/capsules/{capsule_id}/fork", status_code=201, response_model=list[Capsule], responses={202: {"model": list[Capsule], "description": "Under way."}}
)
async def fork(request: Request, capsule_id: CapsuleId, body: Fork, caller: Writer, services: Given) -> Response:
    """As many copies as asked for, all or none, from the sandbox as it is now, which runs on. They have its metadata but for `name`."""
    seconds = bound(request, QUICK)
    key, digest = await key_and_digest(request)
    sandbox_id = inner(Prefix.SANDBOX, capsule_id)
    started = await services.sandboxes.fork(caller, sandbox_id, body.count, unnamed=True, idempotency_key=key, request_digest=digest)
    children = await asyncio.gather(*(outcome(services, each, seconds) for each in started))
    under_way = any(child.operation is not None for child in children)
    return JSONResponse([tree(child) for child in children], 202 if under_way else 201)


@capsules.post("/capsules/{capsule_id}/ping", status_code=204, response_class=Response)
async def ping(capsule_id: CapsuleId, caller: Writer, services: Given) -> Response:
    """Counts as activity: the idle time starts anew."""
    await services.sandboxes.ping(caller, inner(Prefix.SANDBOX, capsule_id))
    return Response(status_code=204)
