"""Intents: what is wanted of a sandbox, on record before anything is asked of a host, in one transaction."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from torpor.lifecycle.sandbox import ARROWS, Verdict, demand
from torpor.model.errors import Conflict, NotFound
from torpor.model.records import Actor, Operation, OperationKind, Remembered, Sandbox, SandboxState
from torpor.ports.records import Records
from torpor.service.context import Context
from torpor.service.moves import Because, following, move

Prepare = Callable[[Records, Sandbox, Operation], Awaitable[Operation]]
"""Called inside the intent's transaction: checks, takes room, writes what belongs to the intent. What it raises, nothing was written."""


@dataclass(frozen=True, slots=True)
class Wish:
    """An operation wanted of a sandbox. `team_id` '' is anybody's. `key` and `digest`: an idempotency key and the request it stands for. `span`: see
    Operation."""

    kind: OperationKind
    actor: Actor
    team_id: str = ""
    cause: str = "user"
    target: str = ""
    leads_to: SandboxState | None = None
    request_id: str = ""
    key: str = ""
    digest: str = ""
    span: float | None = None


@dataclass(frozen=True, slots=True)
class Intent:
    """The record before and now, the same one when there is nothing to begin; `operation_id` then is the one under way, or ''."""

    before: Sandbox
    after: Sandbox
    operation_id: str


class Overtaken(Exception):
    """Somebody else's write came between the look and the write; undoes the transaction."""


async def intend(context: Context, sandbox_id: str, wish: Wish, prepare: Prepare | None, hold: Sequence[str]) -> Intent:
    """Raises Overtaken, NotFound, Denied, Conflict (the idempotency key), and what `prepare` raises: then nothing was written."""
    now = context.now()
    async with context.store.write() as records:
        if hold:
            await records.hold(*hold)
        before = await records.sandboxes.get(sandbox_id)
        if before is None or wish.team_id not in ("", before.team_id):
            raise NotFound(f"There is no sandbox {sandbox_id[:40]}.")
        if wish.key:
            known = await records.memory.begin(Remembered(before.team_id, wish.key, wish.digest, "", now))
            if known is not None and known.request != wish.digest:
                raise Conflict("This Idempotency-Key was used for another request.")
            if known is not None:
                return Intent(before, before, known.result)
        verdict = demand(before.state, wish.kind)
        if verdict is not Verdict.ACCEPTED:
            return Intent(before, before, before.operation.id if verdict is Verdict.JOIN and before.operation else "")
        until = now + context.policy.deadlines[wish.kind]
        operation = Operation(context.new_id(), wish.kind, now, until, wish.target, wish.cause, wish.leads_to, wish.span)
        if wish.key:
            await records.memory.finish(before.team_id, wish.key, operation.id)
        if prepare is not None:
            operation = await prepare(records, before, operation)
        after = following(before, now, state=ARROWS[before.state, wish.kind].through, operation=operation)
        if wish.kind is OperationKind.ROLLBACK:
            after = replace(after, started_at=None)  # the present life is thrown away
        if not await move(records, before, after, Because(wish.actor, operation, request_id=wish.request_id, silent=True)):
            raise Overtaken
    return Intent(before, after, operation.id)
