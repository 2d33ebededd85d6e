"""Sandboxes: create, connect, look, kill, time-outs, pause, resume, fork, network; of both versions of the API.

An answer says how things ended, not that they began. Work goes on when a client leaves.
"""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any

from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from torpor.api.e2b.common import MOST_SECONDS, Body, Given, Json, Reader, Text, Writer, found, key_and_digest, router, settled
from torpor.api.e2b.errors import NotBuilt, body_of
from torpor.api.e2b.network import Network, NetworkUpdate, egress_of, exposure_of
from torpor.api.e2b.references import parse
from torpor.api.e2b.state import detail, handle
from torpor.api.middleware import request_id_of
from torpor.api.services import Services
from torpor.lifecycle.sandbox import FINAL
from torpor.model.errors import Conflict, Denied, DenyReason, HostUnavailable, InvalidInput, NotFound, TorporError
from torpor.model.records import Sandbox, SandboxState, Terms, TimeoutAction
from torpor.service.caller import Caller
from torpor.service.sandboxes import CreateRequest, Started

sandboxes = router()
S = SandboxState
_TRIES = 20
FORK_SECONDS = 300
MOST_FORKS = 100
LEAST_REFRESH, MOST_REFRESH = 15, 3600
_RUNS = (S.RUNNING, S.SNAPSHOTTING)

Seconds = Annotated[int, Field(ge=1, le=MOST_SECONDS)]
_MOST_METADATA = 1000


class AutoResume(Body):
    enabled: bool = False


class NewSandboxV2(Body):
    templateID: Text
    timeout: Seconds = 300
    autoPause: bool = False
    autoPauseMemory: bool | None = None
    autoResume: AutoResume | None = None
    allow_internet_access: bool | None = None
    network: Network | None = None
    metadata: Annotated[dict[Text, Text] | None, Field(max_length=_MOST_METADATA)] = None
    envVars: Annotated[dict[Text, Text] | None, Field(max_length=_MOST_METADATA)] = None
    mcp: dict[str, Any] | None = None
    iam: dict[str, Any] | None = None
    volumeMounts: list[Any] | None = None


class NewSandbox(NewSandboxV2):
    timeout: Seconds = 15
    secure: bool | None = None


class Connect(Body):
    timeout: Seconds


class ConnectV2(Body):
    timeout: Seconds = 300
    memory: bool | None = None


class Resume(Body):
    timeout: Seconds = 15
    autoPause: bool | None = None
    memory: bool | None = None


class Timeout(Body):
    timeout: Annotated[int, Field(ge=0, le=MOST_SECONDS)]


class Refresh(Body):
    duration: Annotated[int, Field(ge=0, le=MOST_REFRESH)] = LEAST_REFRESH


class Pause(Body):
    memory: bool | None = None
    requireHealthyGuest: bool | None = None


class Fork(Body):
    timeout: Seconds = FORK_SECONDS
    count: Annotated[int, Field(ge=1, le=MOST_FORKS)] = 1


# Making


@sandboxes.post("/v2/sandboxes")
async def create_v2(request: Request, body: NewSandboxV2, caller: Writer, services: Given) -> Response:
    return await _create(request, body, caller, services, secure=True)


@sandboxes.post("/sandboxes")
async def create_v1(request: Request, body: NewSandbox, caller: Writer, services: Given) -> Response:
    return await _create(request, body, caller, services, secure=bool(body.secure))


async def _create(request: Request, body: NewSandboxV2, caller: Caller, services: Services, *, secure: bool) -> Response:
    key, digest = await key_and_digest(request)
    wanted = _wanted(body, secure=secure)
    template = await services.tags.find(caller, parse(body.templateID))
    try:
        started = await services.sandboxes.create(caller, wanted(template.id), idempotency_key=key, request_digest=digest)
    except Conflict as error:
        raise HTTPException(422, str(error)) from None  # the key stands for another request
    sandbox = await settled(services, started)
    if key:  # it may have been made long ago
        sandbox = await services.sandboxes.get(caller, sandbox.id)
    if sandbox.state in FINAL:
        raise Denied(DenyReason.ENDED, f"Sandbox {sandbox.id} has ended.")
    return JSONResponse(handle(services, sandbox), 201)


def _wanted(body: NewSandboxV2, *, secure: bool) -> Any:
    """Everything of the request but the template, whose id it takes. Raises InvalidInput, NotBuilt."""
    for given, feature in ((body.mcp, "an MCP gateway (mcp)"), (body.iam, "workload identities (iam)"), (body.volumeMounts, "volumes (volumeMounts)")):
        if given:
            raise NotBuilt(feature)
    wakes = body.autoResume is not None and body.autoResume.enabled
    keeps_memory = body.autoPauseMemory is not False
    if not keeps_memory and (wakes or not body.autoPause):
        raise InvalidInput("autoPauseMemory false goes with autoPause, and without autoResume.")
    network = body.network or Network()
    exposure, egress = exposure_of(network, secure=secure), egress_of(network, body.allow_internet_access)
    if any(not name or "=" in name for name in body.envVars or ()):
        raise InvalidInput("envVars: a name is not empty and holds no '='.")

    def request(template_id: str) -> CreateRequest:
        return CreateRequest(
            template=template_id,
            deadline=time.time() + body.timeout,
            on_timeout=TimeoutAction.PAUSE if body.autoPause else TimeoutAction.KILL,
            auto_resume=wakes,
            labels=body.metadata or {},
            env=body.envVars or {},
            dialect="e2b",
            exposure=exposure,
            egress=egress,
            terms=Terms(span=float(body.timeout), keeps_memory=keeps_memory),
            network_where_possible=True,
        )

    return request


@sandboxes.post("/sandboxes/{segment}/fork")
async def fork(request: Request, segment: str, caller: Writer, services: Given, body: Fork | None = None) -> Response:
    wanted = body or Fork()
    key, digest = await key_and_digest(request)
    source = await found(services, caller, segment)
    started = await services.sandboxes.fork(caller, source.id, wanted.count, span=float(wanted.timeout), idempotency_key=key, request_digest=digest)
    ends = await asyncio.gather(*(settled(services, each) for each in started), return_exceptions=True)
    return JSONResponse([_child(services, end, request_id_of(request.scope)) for end in ends], 201)


def _child(services: Services, end: Sandbox | BaseException, request_id: str) -> Json:
    if isinstance(end, TorporError):
        return {"error": body_of(end, request_id)}
    if isinstance(end, BaseException):
        raise end
    return {"sandbox": handle(services, end)}


# Coming back


@sandboxes.post("/v2/sandboxes/{segment}/connect")
async def connect_v2(segment: str, caller: Writer, services: Given, body: ConnectV2 | None = None) -> Response:
    wanted = body or ConnectV2()
    return await _connect(services, caller, segment, wanted.timeout, boots=wanted.memory is False)


@sandboxes.post("/sandboxes/{segment}/connect")
async def connect_v1(segment: str, body: Connect, caller: Writer, services: Given) -> Response:
    return await _connect(services, caller, segment, body.timeout, boots=False)


async def _connect(services: Services, caller: Caller, segment: str, seconds: int, *, boots: bool) -> Response:
    """A running one lives so long at least; a paused one is woken; of one that is between two states the end is waited for."""
    status = 200
    for _ in range(_TRIES):
        sandbox = await found(services, caller, segment)
        try:
            if sandbox.state in _RUNS:
                sandbox = await services.sandboxes.set_deadline(caller, sandbox.id, seconds, only_later=True)
                return JSONResponse(handle(services, sandbox), status)
            if sandbox.state is S.PAUSED:
                await settled(services, await _start(services, caller, sandbox, seconds, boots=boots))
                status = 201
                continue
        except Denied as error:
            if error.reason is DenyReason.IN_USE:
                raise
            continue  # it changed a moment ago
        await _wait(services, sandbox)
    raise Denied(DenyReason.BUSY, "The sandbox changes all the time.", mend="Try again.")


async def _start(services: Services, caller: Caller, sandbox: Sandbox, seconds: int, *, boots: bool) -> Started:
    if boots:
        return await services.sandboxes.cold_boot(caller, sandbox.id, span=float(seconds))
    return await services.sandboxes.resume(caller, sandbox.id, span=float(seconds))


async def _wait(services: Services, sandbox: Sandbox) -> None:
    """For the end of what is under way, whoever began it and however it ends. Raises HostUnavailable when its host is silent."""
    if sandbox.operation is None:
        raise HostUnavailable("The sandbox's host cannot be reached at present.")
    try:
        await settled(services, Started(sandbox, sandbox.operation.id))
    except TorporError:
        return  # theirs to hear; what holds now is looked at next


@sandboxes.post("/sandboxes/{segment}/resume")
async def resume(segment: str, caller: Writer, services: Given, body: Resume | None = None) -> Response:
    wanted = body or Resume()
    sandbox = await found(services, caller, segment)
    if sandbox.state is S.PAUSING:
        await _wait(services, sandbox)
        sandbox = await found(services, caller, segment)
    if sandbox.state is not S.PAUSED:
        raise Denied(DenyReason.BUSY, "The sandbox is not paused.")
    sandbox = await settled(services, await _start(services, caller, sandbox, wanted.timeout, boots=wanted.memory is False))
    if wanted.autoPause is not None:
        action = TimeoutAction.PAUSE if wanted.autoPause else TimeoutAction.KILL
        sandbox = await services.sandboxes.set_timeouts(caller, sandbox.id, idle_timeout=sandbox.idle_timeout, deadline=sandbox.deadline, on_timeout=action)
    return JSONResponse(handle(services, sandbox), 201)


# Looking


@sandboxes.get("/sandboxes/{segment}")
async def get(segment: str, caller: Reader, services: Given) -> Response:
    return JSONResponse(detail(services, await found(services, caller, segment)))


# Changing


@sandboxes.delete("/sandboxes/{segment}")
async def kill(segment: str, caller: Writer, services: Given) -> Response:
    sandbox = await found(services, caller, segment)
    await settled(services, await services.sandboxes.kill(caller, sandbox.id))
    return Response(status_code=204)


@sandboxes.post("/sandboxes/{segment}/pause")
async def pause(segment: str, caller: Writer, services: Given, body: Pause | None = None) -> Response:
    sandbox = await found(services, caller, segment)
    if sandbox.state in (S.PAUSED, S.PAUSING):
        raise Denied(DenyReason.NOT_RUNNING, f"The sandbox is {sandbox.state.value} already.")
    started = await services.sandboxes.pause(caller, sandbox.id, keeps_memory=body is None or body.memory is not False)
    if not started.operation_id:
        raise Denied(DenyReason.NOT_RUNNING, "The sandbox is paused already.")
    await settled(services, started)
    return Response(status_code=204)


@sandboxes.post("/sandboxes/{segment}/timeout")
async def timeout(segment: str, body: Timeout, caller: Writer, services: Given) -> Response:
    """From now on; it may become shorter. 0: its time is over now."""
    sandbox = await found(services, caller, segment)
    if sandbox.state is S.PAUSED:
        raise NotFound(f"There is no running sandbox {sandbox.id}.")
    await services.sandboxes.set_deadline(caller, sandbox.id, body.timeout)
    return Response(status_code=204)


@sandboxes.post("/sandboxes/{segment}/refreshes")
async def refresh(segment: str, caller: Writer, services: Given, body: Refresh | None = None) -> Response:
    """Lives so long at least."""
    sandbox = await found(services, caller, segment)
    if sandbox.state is S.PAUSED:
        raise NotFound(f"There is no running sandbox {sandbox.id}.")
    seconds = max(LEAST_REFRESH, (body or Refresh()).duration)
    await services.sandboxes.set_deadline(caller, sandbox.id, seconds, only_later=True)
    return Response(status_code=204)


@sandboxes.put("/sandboxes/{segment}/network")
async def update_network(segment: str, body: NetworkUpdate, caller: Writer, services: Given) -> Response:
    """In the place of all that was said about where it may go."""
    egress = egress_of(body, body.allow_internet_access)
    sandbox = await found(services, caller, segment)
    await services.sandboxes.set_egress(caller, sandbox.id, egress)
    return Response(status_code=204)
