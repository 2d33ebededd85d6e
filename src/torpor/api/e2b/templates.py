"""Templates and their tags. What E2B calls a build is one template here, which never changes; tags point to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import Query
from pydantic import Field
from starlette.responses import JSONResponse, Response

from torpor.api.e2b.common import ENVD_VERSION, Body, Given, Json, TemplateReader, TemplateWriter, Text, decoded, limit_of, router, stamp, uuid_of
from torpor.api.e2b.errors import NotBuilt
from torpor.api.e2b.references import check_tag, full_name, is_named, parse
from torpor.api.e2b.snapshots import names_of
from torpor.api.services import Services
from torpor.model.errors import Forbidden, NotFound
from torpor.model.records import PLATFORM_TEAM, Team, Template, TemplateKind, TemplateTag
from torpor.ports.records import TemplateFilter
from torpor.service.caller import Caller
from torpor.service.sandboxes import CreateRequest
from torpor.service.tags import Tags

templates = router()
_USUAL = CreateRequest("base")
_BUILDS = "template builds through the E2B API; build with `torpor build`, or take a snapshot"


class Assign(Body):
    target: Text
    tags: Annotated[list[Text], Field(min_length=1, max_length=100)]


class Remove(Body):
    name: Text
    tags: Annotated[list[Text], Field(min_length=1, max_length=100)]


class Update(Body):
    public: bool | None = None


async def tree(services: Services, template: Template, team: Team) -> Json:
    mine = template.team_id == team.id
    aliases = [template.name] if is_named(template) else []
    return {
        "templateID": template.id,
        "buildID": uuid_of(template.id),
        **_size(template),
        "public": template.team_id == PLATFORM_TEAM,
        "aliases": aliases,
        "names": [full_name(template, team)] if aliases else [],
        "createdAt": stamp(template.created_at),
        "updatedAt": stamp(template.created_at),
        "createdBy": None,
        "lastSpawnedAt": None,
        "spawnCount": await services.tags.starts(template) if mine else 0,
        "buildCount": 1 if mine else 0,
        "envdVersion": ENVD_VERSION,
        "buildStatus": "ready",
        "isDefault": template.team_id == PLATFORM_TEAM,
    }


def _size(template: Template) -> Json:
    """Of a base template what a sandbox gets that asks for nothing."""
    if template.shape is None:
        return {"cpuCount": _USUAL.vcpus, "memoryMB": _USUAL.memory_mib, "diskSizeMB": _USUAL.disk_mib}
    return {"cpuCount": template.shape.vcpus, "memoryMB": template.shape.memory_mib, "diskSizeMB": template.shape.disk_mib}


# Tags: before the templates' own paths, of which `tags` and `aliases` are no ids


@templates.post("/templates/tags")
async def assign(body: Assign, caller: TemplateWriter, services: Given) -> Response:
    tags = [check_tag(tag) for tag in body.tags]
    template = await services.tags.assign(caller, parse(body.target), tags)
    return JSONResponse({"buildID": uuid_of(template.id), "tags": tags}, 201)


@templates.delete("/templates/tags")
async def remove(body: Remove, caller: TemplateWriter, services: Given) -> Response:
    await services.tags.remove(caller, parse(body.name), [check_tag(tag) for tag in body.tags])
    return Response(status_code=204)


@templates.get("/templates/aliases/{alias}")
async def exists(alias: str, caller: TemplateReader, services: Given) -> Response:
    template = await services.tags.find(caller, parse(decoded(alias)))
    return JSONResponse({"templateID": template.id, "public": template.team_id == PLATFORM_TEAM})


async def _tags(tags: Tags, caller: Caller, segment: str) -> Sequence[tuple[TemplateTag, Template]]:
    return await tags.list(caller, parse(decoded(segment)))


@templates.get("/templates/{segment}/tags")
async def list_tags(segment: str, caller: TemplateReader, services: Given) -> Response:
    found = await _tags(services.tags, caller, segment)
    return JSONResponse([{"tag": tag.tag, "buildID": uuid_of(one.id), "createdAt": stamp(tag.assigned_at)} for tag, one in found])


@templates.get("/templates/{segment}/tags/count")
async def count_tags(segment: str, caller: TemplateReader, services: Given) -> Response:
    return JSONResponse({"count": len(await _tags(services.tags, caller, segment))})


@templates.get("/templates/{segment}/tags/exists")
async def tag_exists(segment: str, tag: str, caller: TemplateReader, services: Given) -> Response:
    return JSONResponse({"exists": any(each.tag == tag.lower() for each, _ in await _tags(services.tags, caller, segment))})


@templates.get("/templates/{segment}/tags/groups")
async def tag_groups(segment: str, caller: TemplateReader, services: Given) -> Response:
    """A tag's earlier places are not kept: each group has one assignment."""
    found = await _tags(services.tags, caller, segment)
    groups = [{"tag": tag.tag, "assignments": [_assignment(tag, one)], "hasMore": False} for tag, one in found]
    return JSONResponse({"tags": groups, "nextCursor": None})


@templates.get("/templates/{segment}/tags/{tag}/assignments")
async def assignments(segment: str, tag: str, caller: TemplateReader, services: Given) -> Response:
    wanted = decoded(tag).lower()
    found = [_assignment(each, one) for each, one in await _tags(services.tags, caller, segment) if each.tag == wanted]
    if not found:
        raise NotFound(f"There is no tag {wanted[:80]!r}.")
    return JSONResponse({"data": found, "nextCursor": None})


def _assignment(tag: TemplateTag, template: Template) -> Json:
    made = stamp(template.created_at)
    return {
        "assignmentId": uuid_of(tag.id),
        "buildId": uuid_of(template.id),
        "assignedAt": stamp(tag.assigned_at),
        "buildCreatedAt": made,
        "buildFinishedAt": made,
    }


# Lists


@templates.get("/default-templates")
async def defaults(caller: TemplateReader, services: Given) -> Response:
    team = await services.tags.team(caller)
    page = await services.templates.list(caller, only=TemplateFilter(TemplateKind.BASE), limit=1000)
    return JSONResponse([await tree(services, one, team) for one in page.items if one.team_id == PLATFORM_TEAM])


@templates.get("/templates")
async def list_v1(caller: TemplateReader, services: Given) -> Response:
    """The team's own and everybody's, newest first."""
    team = await services.tags.team(caller)
    page = await services.templates.list(caller, limit=1000)
    return JSONResponse([await tree(services, one, team) for one in page.items])


@templates.get("/v2/templates")
async def list_v2(
    caller: TemplateReader,
    services: Given,
    limit: Annotated[int | None, Query()] = None,
    nextToken: str = "",
) -> Response:
    team = await services.tags.team(caller)
    page = await services.templates.list(caller, cursor=nextToken, limit=limit_of(limit))
    headers = {"X-Next-Token": page.next} if page.next else {}
    return JSONResponse([await tree(services, one, team) for one in page.items], headers=headers)


# One


@templates.get("/templates/{segment}")
async def get(segment: str, caller: TemplateReader, services: Given) -> Response:
    team = await services.tags.team(caller)
    template = await services.tags.find(caller, parse(decoded(segment)))
    made = stamp(template.created_at)
    build = {"buildID": uuid_of(template.id), "status": "ready", "createdAt": made, "updatedAt": made, "finishedAt": made, "envdVersion": ENVD_VERSION}
    fields = await tree(services, template, team)
    return JSONResponse(fields | {"builds": [build | _size(template)]})


@templates.delete("/templates/{segment}")
async def delete(segment: str, caller: TemplateWriter, services: Given) -> Response:
    """A template or a snapshot of the team's, with the tags that point to it. Refused (400) while sandboxes that were started from it live."""
    template = await services.tags.find(caller, parse(decoded(segment)))
    await services.templates.delete(caller, template.id)
    return Response(status_code=204)


@templates.patch("/templates/{segment}")
async def update_v1(segment: str, body: Update, caller: TemplateWriter, services: Given) -> Response:
    await _update(segment, body, caller, services)
    return JSONResponse({})


@templates.patch("/v2/templates/{segment}")
async def update_v2(segment: str, body: Update, caller: TemplateWriter, services: Given) -> Response:
    template = await _update(segment, body, caller, services)
    return JSONResponse({"names": await names_of(services, template, await services.tags.team(caller))})


async def _update(segment: str, body: Update, caller: Caller, services: Services) -> Template:
    """A template is for everybody when it is the platform's, and only then."""
    template = await services.tags.find(caller, parse(decoded(segment)))
    if template.team_id != caller.team_id:
        raise Forbidden("The platform's templates are not the team's to change.")
    if body.public:
        raise NotBuilt("templates of a team that are public; an administrator makes platform templates")
    return template


# Builds


@templates.post("/v3/templates")
@templates.post("/v2/templates")
@templates.post("/templates")
async def build(caller: TemplateWriter) -> Response:
    raise NotBuilt(_BUILDS)


@templates.post("/templates/{segment}")
@templates.post("/templates/{segment}/builds/{build}")
@templates.post("/v2/templates/{segment}/builds/{build}")
async def start_build(segment: str, caller: TemplateWriter) -> Response:
    raise NotBuilt(_BUILDS)


@templates.get("/templates/{segment}/files/{digest}")
@templates.get("/templates/{segment}/builds/{build}/status")
@templates.get("/templates/{segment}/builds/{build}/logs")
async def build_status(segment: str, caller: TemplateReader) -> Response:
    raise NotBuilt(_BUILDS)
