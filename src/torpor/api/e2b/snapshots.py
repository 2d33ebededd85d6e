"""Snapshots: templates that were made of a sandbox. Their ids are names of templates; `/templates/{id}` deletes them."""

from __future__ import annotations

import hashlib
from typing import Annotated

from fastapi import Query
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from torpor.api.e2b.common import Body, Given, Json, TemplateReader, TemplateWriter, Text, decoded, found, key_and_digest, limit_of, router, sandbox_id, settled
from torpor.api.e2b.errors import NotBuilt
from torpor.api.e2b.references import full_name, is_named, parse, parse_new, snapshot_id
from torpor.api.services import Services
from torpor.model.errors import InvalidInput, NotFound
from torpor.model.records import Team, Template, TemplateKind
from torpor.ports.records import TemplateFilter
from torpor.service.caller import Caller
from torpor.service.snapshots import check_template_name
from torpor.service.tags import DEFAULT, Reference

snapshots = router()


class Snapshot(Body):
    name: Text | None = None
    memory: bool | None = None


async def names_of(services: Services, template: Template, team: Team) -> list[str]:
    """Every name that leads to it."""
    names = [f"{full_name(template, team)}:{DEFAULT}"] if is_named(template) else []
    return names + [f"{team.slug}/{tag.name}:{tag.tag}" for tag in await services.tags.labels(template)]


async def tree(services: Services, template: Template, team: Team) -> Json:
    names = await names_of(services, template, team)
    return {"snapshotID": snapshot_id(template, names), "names": names}


@snapshots.post("/sandboxes/{segment}/snapshots")
async def create(request: Request, segment: str, caller: TemplateWriter, services: Given, body: Snapshot | None = None) -> Response:
    """The source runs on. A name that is taken by a snapshot leads to the new one from now on."""
    key, digest = await key_and_digest(request)
    if body is not None and body.memory is False:
        raise NotBuilt("snapshots without memory (memory: false)")
    team = await services.tags.team(caller)
    wanted = parse_new(body.name, team) if body is not None and body.name else None
    sandbox = await found(services, caller, segment)
    tagged = wanted is not None and wanted.tag not in ("", DEFAULT)
    name = wanted.name if wanted is not None and not tagged else _made_up(key, sandbox.id)
    started = await services.sandboxes.snapshot(
        caller, sandbox.id, name, overwrite=wanted is not None and not tagged, idempotency_key=key, request_digest=digest
    )
    operation = started.sandbox.operation
    await settled(services, started)
    mine = operation is not None and operation.id == started.operation_id
    template = await services.templates.find(caller, operation.target if mine and operation is not None else name)
    if wanted is not None and tagged:
        await services.tags.point(caller, wanted, template)
    return JSONResponse(await tree(services, template, team), 201)


def _made_up(key: str, sandbox_id: str) -> str:
    """Asked again with the same key, the same."""
    return f"template-{hashlib.sha256(f'{key} {sandbox_id}'.encode()).hexdigest()[:8]}" if key else check_template_name("")


@snapshots.get("/snapshots")
async def list_(
    caller: TemplateReader,
    services: Given,
    sandboxID: str = "",
    name: str = "",
    limit: Annotated[int | None, Query()] = None,
    nextToken: str = "",
) -> Response:
    """The team's, newest first."""
    length, team = limit_of(limit), await services.tags.team(caller)
    source = _source(sandboxID)
    if name:
        return await _of_name(services, caller, team, name, source)
    only = TemplateFilter(TemplateKind.SNAPSHOT, "", source)
    page = await services.templates.list(caller, platform=False, only=only, cursor=nextToken, limit=length)
    headers = {"X-Next-Token": page.next} if page.next else {}
    return JSONResponse([await tree(services, template, team) for template in page.items], headers=headers)


async def _of_name(services: Services, caller: Caller, team: Team, name: str, source: str) -> Response:
    try:
        wanted = parse(decoded(name))
        template = await services.tags.find(caller, Reference(wanted.name, wanted.space or team.slug, wanted.tag))
    except (NotFound, InvalidInput):
        return JSONResponse([])
    if template.kind is not TemplateKind.SNAPSHOT or source not in ("", template.sandbox_id):
        return JSONResponse([])
    return JSONResponse([await tree(services, template, team)])


def _source(text: str) -> str:
    """A sandbox's id, '' for none; what can be no id of ours matches nothing."""
    if not text:
        return ""
    try:
        return sandbox_id(text)
    except NotFound:
        return "none"
