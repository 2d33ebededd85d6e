"""Templates of kind snapshot: how one comes to be and how one goes, each step repeatable and undoable.

intent      record CREATING, which holds the name (beside the old one's record, when it is to be replaced)
host        the snapshot, ordered under the record's id: asked again, the same one
complete    one transaction: READY with the artefact's id; the one it replaces DELETING, or, where a tag points to it, without its name
abandon     DELETING, whenever nobody works at it any more
remove      the host's bytes, then the record
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, replace

from torpor.log import Log
from torpor.model.errors import Denied, HostUnavailable, InvalidInput, NameReserved, NameTaken, TorporError
from torpor.model.records import (
    PLATFORM_TEAM,
    Actor,
    AuditEntry,
    AuditStatus,
    Event,
    Operation,
    OperationKind,
    Sandbox,
    Template,
    TemplateKind,
    TemplateState,
)
from torpor.ports.bus import Notice
from torpor.ports.hosts import Stored
from torpor.ports.records import Records
from torpor.service.admission import Admission
from torpor.service.context import Context
from torpor.service.moves import Because

log = Log()

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}\Z")


def check_template_name(name: str) -> str:
    """The name, or a fresh one for ''. Raises InvalidInput."""
    if name and not _NAME.match(name):
        raise InvalidInput(f"{name[:80]!r} is no template name: a letter or digit, then up to 63 of these or . _ -")
    return name or f"template-{secrets.token_hex(4)}"


@dataclass(frozen=True, slots=True)
class NewSnapshot:
    """A snapshot wanted: the team it is for, its name, whether it may take another's place."""

    team_id: str
    name: str
    overwrite: bool

    async def prepare(self, context: Context, admission: Admission, records: Records, source: Sandbox, operation: Operation) -> Operation:
        """Inside the intent's transaction: holds the name. Raises NameReserved, NameTaken, QuotaExceeded."""
        await admission.demand_storage(records, self.team_id)
        there = await records.templates.find(self.team_id, self.name)
        if there is not None and there.team_id != self.team_id:
            raise NameReserved(f"The platform has a template {self.name!r}: the name is reserved.")
        if there is not None and (not self.overwrite or there.kind is TemplateKind.BASE):
            raise NameTaken(f"There is a template {self.name!r} already.", mend="Choose another name, or overwrite it.")
        origin = await records.templates.get(source.template_id)
        template = Template(
            id=context.new_id(),
            team_id=self.team_id,
            name=self.name,
            kind=TemplateKind.SNAPSHOT,
            state=TemplateState.CREATING,
            source="",
            created_at=operation.started_at,
            host_id=source.host_id,
            shape=source.shape,
            default_user=origin.default_user if origin else "root",
            home=origin.home if origin else "/root",
            replaces=there.id if there else "",
            sandbox_id=source.id,
        )
        await records.templates.add(template)
        return replace(operation, target=template.id)


async def complete(records: Records, template_id: str, stored: Stored, because: Because, now: float) -> list[Template]:
    """What is to be removed when this is committed."""
    template = await records.templates.get(template_id)
    if template is None or template.state is not TemplateState.CREATING:
        return []
    old = await records.templates.get(template.replaces) if template.replaces else None
    if old is not None:
        kept = bool(await records.templates.tags_of(old.id))
        old = replace(old, name=check_template_name("")) if kept else replace(old, state=TemplateState.DELETING)
        await records.templates.update(old)
    ready = replace(template, state=TemplateState.READY, source=stored.artefact_id, shape=stored.shape, size_bytes=stored.size_bytes, replaces="")
    await records.templates.update(ready)
    await tell(records, ready, "created", because.actor, now, because.request_id)
    return [old] if old is not None and old.state is TemplateState.DELETING else []


async def abandon(records: Records, template_id: str) -> list[Template]:
    """As `complete`, but it did not come about."""
    template = await records.templates.get(template_id)
    if template is None or template.state is not TemplateState.CREATING:
        return []
    gone = replace(template, state=TemplateState.DELETING, replaces="")
    await records.templates.update(gone)
    return [gone]


async def tell(records: Records, template: Template, what: str, actor: Actor, now: float, request_id: str = "") -> None:
    """Event and audit entry: `what` is 'created' or 'deleted'."""
    data = {"name": template.name, "sandbox": template.sandbox_id}
    await records.events.add(Event(template.team_id, now, f"template.snapshot.{what}", "snapshot", template.id, actor, data))
    action, status = ("create", AuditStatus.SUCCESS) if what == "created" else ("delete", AuditStatus.WARNING)
    metadata = {"template_id": template.id}
    await records.audit.add(AuditEntry(template.team_id, now, actor, "snapshot", template.name, action, status, "team", metadata, request_id))


async def remove(context: Context, template: Template) -> bool:
    """The bytes of a DELETING one, then its record; whether it is done. Left to the reconciler when the host cannot be reached or still needs it."""
    try:
        host = context.hosts.get(template.host_id)
        sources = {template.source} if template.source else {one.artefact_id for one in (await context.ask(host.report())).snapshots if one.name == template.id}
        for source in sources:
            await context.ask(host.delete_snapshot(source), context.policy.clearing_patience)
    except (HostUnavailable, Denied) as error:
        log.warning("template_not_removed_yet", template=template.id, error=str(error))
        return False
    except TorporError as error:
        log.error("template_not_removed", template=template.id, error=str(error))
        return False
    async with context.store.write() as records:
        await records.templates.remove(template.id)
    await context.bus.publish(Notice("template", template.id, template.team_id))
    return True


async def is_worked_at(records: Records, template: Template) -> bool:
    """Whether the operation that makes a CREATING one is under way."""
    source = await records.sandboxes.get(template.sandbox_id)
    operation = source.operation if source else None
    return operation is not None and operation.kind is OperationKind.SNAPSHOT and operation.target == template.id


def may_see(template: Template, team_id: str) -> bool:
    return template.team_id in (team_id, PLATFORM_TEAM)
