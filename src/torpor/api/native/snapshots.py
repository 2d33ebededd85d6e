"""Snapshots, and the templates that everybody may start from."""

from __future__ import annotations

import hashlib
import secrets
from typing import Annotated, Any, Literal

from fastapi import Path, Query
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from torpor.api.native.capsules import outcome
from torpor.api.native.common import Given, TemplateReader, TemplateWriter, router
from torpor.api.native.idempotency import key_and_digest
from torpor.api.native.ids import Prefix, inner, show, stamp
from torpor.api.native.models import Snapshot, Template
from torpor.api.native.pages import Cursor, page
from torpor.api.native.state import tree as capsule_tree
from torpor.api.native.wait import LONG, bound
from torpor.api.services import Services
from torpor.model import records
from torpor.model.errors import NotFound
from torpor.model.records import PLATFORM_TEAM, Sandbox, TemplateKind
from torpor.service.caller import Caller
from torpor.service.sandboxes import Started

snapshots = router("snapshots")
TemplateName = Annotated[str, Path(max_length=64, description="A name, or an id.")]


def tree(template: records.Template) -> dict[str, Any]:
    """The JSON of a template. A base one has no vCPUs and memory of its own."""
    fields: dict[str, Any] = {
        "name": template.name,
        "type": template.kind.value,
        "id": show(Prefix.TEMPLATE, template.id),
        "size_bytes": template.size_bytes,
        "created_at": stamp(template.created_at),
        "platform": template.team_id == PLATFORM_TEAM,
        "protected": template.kind is TemplateKind.BASE,
        "metadata": dict(template.metadata),
    }
    if template.shape is not None:
        fields |= {"vcpus": template.shape.vcpus, "memory_mb": template.shape.memory_mib, "disk_size_mb": template.shape.disk_mib}
    return fields


async def finished(services: Services, caller: Caller, started: Started, name: str, seconds: float) -> tuple[Sandbox, records.Template | None]:
    """The source, and the template when it is there within so many seconds."""
    operation = started.sandbox.operation
    sandbox = await outcome(services, started, seconds)
    if sandbox.operation is not None and sandbox.operation.id == started.operation_id:
        return sandbox, None
    # Of a request that was put before, the operation is over and the sandbox may be in another one: its name leads to what it made.
    made = operation.target if operation is not None and operation.id == started.operation_id else name
    return sandbox, await services.templates.find(caller, made)


def answer(sandbox: Sandbox, template: records.Template | None, name: str) -> Response:
    if template is None:
        return JSONResponse({"name": name, "type": "snapshot", "state": "creating", "sandbox": capsule_tree(sandbox)}, 202)
    return JSONResponse(tree(template), 201)


def name_for(name: str | None, key: str, sandbox_id: str) -> str:
    """The one asked for, or a generated one: with an idempotency key always the same."""
    return name or f"template-{hashlib.sha256(f'{key} {sandbox_id}'.encode()).hexdigest()[:8] if key else secrets.token_hex(4)}"


@snapshots.post("/snapshots", status_code=201, response_model=Template, responses={202: {"description": "Being made.", "model": None}})
async def create(
    request: Request,
    body: Snapshot,
    caller: TemplateWriter,
    services: Given,
    overwrite: Annotated[bool, Query(description="Replace the one of that name, which stays until the new one is complete.")] = False,
) -> Response:
    """A template of a running or paused sandbox as it is now, under a name. A running one runs on unless `keep_running` is false."""
    seconds = bound(request, LONG)
    sandbox_id = inner(Prefix.SANDBOX, body.sandbox_id)
    key, digest = await key_and_digest(request)
    name = name_for(body.name, key, sandbox_id)
    started = await services.sandboxes.snapshot(
        caller, sandbox_id, name, overwrite=overwrite, keep_running=body.keep_running, idempotency_key=key, request_digest=digest
    )
    return answer(*await finished(services, caller, started, name, seconds), name)


@snapshots.get("/snapshots", response_model=list[Template])
async def list_(
    request: Request,
    caller: TemplateReader,
    services: Given,
    kind: Annotated[Literal["base", "snapshot"] | None, Query(alias="type")] = None,
    cursor: Cursor = "",
    limit: Annotated[int, Query(ge=1, le=1000)] = 1000,
) -> Response:
    """The team's templates and the platform's, newest first."""
    found = await services.templates.list(caller, cursor=cursor, limit=limit)
    return page(request, [tree(template) for template in found.items if kind in (None, template.kind.value)], found.next)


@snapshots.get("/snapshots/{name}", response_model=Template)
async def get(name: TemplateName, caller: TemplateReader, services: Given) -> Response:
    """One template."""
    return JSONResponse(tree(await services.templates.find(caller, key_of(name))))


@snapshots.delete("/snapshots/{name}", status_code=204, response_class=Response)
async def delete(name: TemplateName, caller: TemplateWriter, services: Given) -> Response:
    """Deletes a snapshot of the team. Refused while sandboxes that were started from it exist; the platform's templates are not the team's to delete."""
    await services.templates.delete(caller, key_of(name))
    return Response(status_code=204)


def key_of(name: str) -> str:
    """A name as it is; of an id, the digits inside. Raises NotFound for what can be neither."""
    if not name.isprintable() or not name.isascii():
        raise NotFound("There is no template of that name.")
    return name.removeprefix(Prefix.TEMPLATE.value) if len(name) == len(Prefix.TEMPLATE.value) + 25 else name
