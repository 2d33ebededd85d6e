"""Sandboxes: created, found, paused, resumed, forked, taken back, ended."""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Literal, Self, cast

from torpor.client.answers import Event, MetricPoint, PortAddress, SandboxState, Template, read, read_list
from torpor.client.commands import AsyncCommands
from torpor.client.errors import BadAnswer, Expired, InvalidState
from torpor.client.events import AsyncEvents
from torpor.client.files import AsyncFiles
from torpor.client.terminals import AsyncTerminals
from torpor.client.transport import Answer, Http, segment

WAIT = 300.0
"""Seconds that a change of state is waited for unless told."""
MOST_WAIT = 600.0
"""What the server waits at most before it answers that the work is under way."""
Range = Literal["5m", "10m", "1h", "2h", "6h", "12h", "24h"]
ENDED = ("stopped", "error")


def prefer(wait: float) -> dict[str, str]:
    """The header that says how long an answer may wait for the work."""
    seconds = math.ceil(min(wait, MOST_WAIT))
    return {"Prefer": f"wait={seconds}" if seconds > 0 else "respond-async"}


class AsyncSandbox:
    """One sandbox. As a context, it is killed at the end.

    `state` and the rest are as the last answer told; `refresh` asks again. A method that changes the state returns when that is done, or raises Expired after
    `wait` seconds: the work goes on then. `wait=0` does not wait. Methods may be repeated: what was wanted and is so is no error.
    """

    def __init__(self, http: Http, now: SandboxState) -> None:
        self._http = http
        self._now = now
        self._path = f"/v1/capsules/{segment(now.id)}"
        self._commands = AsyncCommands(http, now.id)
        self._terminals = AsyncTerminals(http, now.id)
        self._files = AsyncFiles(http, now.id)

    @property
    def id(self) -> str:
        return self._now.id

    @property
    def name(self) -> str:
        """The label `name`, or ''."""
        return self._now.name

    @property
    def state(self) -> str:
        return self._now.state

    @property
    def details(self) -> SandboxState:
        """All that the last answer told."""
        return self._now

    @property
    def commands(self) -> AsyncCommands:
        return self._commands

    @property
    def terminals(self) -> AsyncTerminals:
        return self._terminals

    @property
    def files(self) -> AsyncFiles:
        return self._files

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {self.state}>"

    async def refresh(self) -> SandboxState:
        """Asks how it is. Raises NotFound."""
        return self._learn(await self._http.ask("GET", self._path))

    def _learn(self, answer: Answer) -> SandboxState:
        self._now = read(SandboxState, answer.tree())
        return self._now

    async def _move(self, verb: str, wait: float, *, json: object = None, repeatable: bool = True) -> SandboxState:
        try:
            answer = await self._http.ask("POST", f"{self._path}/{verb}", json=json, headers=prefer(wait), wait=wait, repeatable=repeatable)
        except InvalidState as error:
            if error.reason != "already" or not repeatable:
                raise
            return await self.refresh()  # what is wanted is so, perhaps by our own request whose answer was lost
        now = self._learn(answer)
        return await self._settled(now, wait) if now.operation is not None and wait > 0 else now

    async def _settled(self, now: SandboxState, wait: float) -> SandboxState:
        """When that operation is over."""
        assert now.operation is not None
        operation = now.operation.id
        return await self._until(
            lambda state: state.operation is None or state.operation.id != operation, wait, f"The {now.operation.kind} is still under way."
        )

    async def _until(self, done: Any, wait: float, late: str) -> SandboxState:
        """Looks when something happened: every change of a sandbox is an event."""
        try:
            async with asyncio.timeout(wait), aclosing(cast("Any", AsyncEvents(self._http)._numbered(None, wait))) as happenings:
                async for event in happenings:
                    if (event is None or event.resource.id == self.id) and done(await self.refresh()):
                        return self._now
        except TimeoutError:
            raise Expired(late) from None
        raise BadAnswer("The event stream ended.")

    async def wait_for(self, states: str | Collection[str], *, wait: float = WAIT) -> SandboxState:
        """Returns when the sandbox is in one of these states, such as "running". Raises InvalidState when it ended in another one, Expired."""
        wanted = {states} if isinstance(states, str) else set(states)
        now = await self._until(lambda state: state.state in wanted | set(ENDED), wait, f"The sandbox is not {' or '.join(sorted(wanted))} yet.")
        if now.state not in wanted:
            raise InvalidState(f"The sandbox ended: {now.end_reason or now.state}. {now.end_note or ''}".strip(), status=409, code="invalid_state")
        return now

    async def pause(self, *, wait: float = WAIT) -> SandboxState:
        """Memory and disk go to files, nothing keeps running. When it returns, every byte is on disk. Raises InvalidState."""
        return await self._move("pause", wait)

    async def resume(self, *, wait: float = WAIT) -> SandboxState:
        """Goes on where it stood. Raises InvalidState, Unavailable when there is no room."""
        return await self._move("resume", wait)

    async def boot(self, *, wait: float = WAIT) -> SandboxState:
        """Starts a paused sandbox from its disk alone; what was in memory is lost. The way out when its memory does not fit this machine any more."""
        return await self._move("boot", wait, repeatable=False)

    async def rollback(self, snapshot: str, *, wait: float = WAIT) -> SandboxState:
        """Takes it back to a snapshot that was made of it. What it did since is lost."""
        return await self._move("rollback", wait, json={"snapshot": snapshot}, repeatable=False)

    async def fork(self, count: int = 1, *, wait: float = WAIT) -> list[AsyncSandbox]:
        """So many copies (1 to 64), all or none, of the sandbox as it is now, which runs on."""
        headers = prefer(wait) | {"Idempotency-Key": secrets.token_hex(16)}
        answer = await self._http.ask("POST", f"{self._path}/fork", json={"count": count}, headers=headers, wait=wait, repeatable=True)
        children = [AsyncSandbox(self._http, each) for each in read_list(SandboxState, answer.tree())]
        if wait > 0:
            for child in children:
                if child.details.operation is not None:
                    await child._settled(child.details, wait)
        return children

    async def snapshot(self, name: str | None = None, *, overwrite: bool = False, keep_running: bool = True, wait: float = WAIT) -> Template:
        """A template of the sandbox as it is now; its name is made up unless given. Without `keep_running` the sandbox is paused afterwards. An overwritten one
        stays until the new one is complete. Raises Conflict for a name that is taken."""
        name = name or f"template-{secrets.token_hex(4)}"
        headers = prefer(wait) | {"Idempotency-Key": secrets.token_hex(16)}
        body = {"sandbox_id": self.id, "name": name, "keep_running": keep_running}
        asked = {"json": body, "params": {"overwrite": "true" if overwrite else None}, "headers": headers, "wait": wait, "repeatable": True}
        answer = await self._http.ask("POST", "/v1/snapshots", **asked)  # type: ignore[arg-type]
        if answer.status == 202:
            tree = answer.tree()
            now = read(SandboxState, tree.get("sandbox") if isinstance(tree, dict) else None)
            if wait <= 0:
                raise Expired(f"The snapshot {name} is under way.")
            if now.operation is not None:
                await self._settled(now, wait)
            answer = await self._http.ask("GET", f"/v1/snapshots/{segment(name)}")
        return read(Template, answer.tree())

    async def kill(self, *, wait: float = WAIT) -> None:
        """Ends it, from any state. Again on one that has ended is no error."""
        answer = await self._http.ask("DELETE", self._path, headers=prefer(wait), wait=wait)
        if answer.body:
            now = self._learn(answer)
            if now.operation is not None and wait > 0:
                await self._settled(now, wait)

    async def ping(self) -> None:
        """Counts as activity: the idle time starts anew. Raises InvalidState."""
        await self._http.ask("POST", f"{self._path}/ping", repeatable=True)

    async def set_timeouts(self, *, idle: int | None = None, lifetime: int | None = None) -> SandboxState:
        """Seconds without use, and seconds from now on, after which `on_timeout` happens; 0 takes one away, None leaves it."""
        body = {name: value for name, value in (("timeout_sec", idle), ("lifetime_sec", lifetime)) if value is not None}
        return self._learn(await self._http.ask("PATCH", self._path, json=body, repeatable=True))

    async def port_url(self, port: int, *, expires_in: int = 3600) -> PortAddress:
        """A signed address of a port, which needs no key, for so many seconds, at most 7 days. Raises ApiError for others, Conflict where the server has no
        address for ports, InvalidState for a sandbox that has ended."""
        answer = await self._http.ask("POST", f"{self._path}/ports/{port}/url", json={"expires_in": expires_in}, repeatable=True)
        return read(PortAddress, answer.tree())

    async def metrics(self, range: Range = "10m") -> list[MetricPoint]:
        """CPU, memory and disk over time; finer the shorter the range."""
        tree = (await self._http.ask("GET", f"{self._path}/metrics", params={"range": range})).tree()
        return read_list(MetricPoint, tree.get("points") if isinstance(tree, dict) else None)

    async def events(self, *, limit: int = 50) -> list[Event]:
        """The last ones, oldest first."""
        return await AsyncEvents(self._http).of(self.id, limit=limit)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill(wait=0)


class AsyncSandboxes:
    """The team's sandboxes."""

    def __init__(self, http: Http) -> None:
        self._http = http

    async def create(
        self,
        template: str = "base",
        *,
        name: str | None = None,
        vcpus: int = 1,
        memory_mb: int = 512,
        disk_size_mb: int = 4096,
        network: bool = False,
        timeout_sec: int = 0,
        lifetime_sec: int | None = None,
        on_timeout: Literal["pause", "kill"] = "pause",
        auto_resume: bool = False,
        metadata: Mapping[str, str] | None = None,
        envs: Mapping[str, str] | None = None,
        wait: float = WAIT,
        idempotency_key: str | None = None,
    ) -> AsyncSandbox:
        """Starts a sandbox from a template or snapshot, whose vCPUs and memory then hold. Returns when it runs. `timeout_sec` counts from its last use,
        `lifetime_sec` from now; then it is paused, or killed. `auto_resume`: use wakes a paused one. `metadata`: labels; `name` is one of them. `envs`:
        variables of every command. A lost answer is asked for again under the same key: there is never a second sandbox. With `wait=0` it may not run yet.
        Raises NotFound (no such template), Unavailable (no room), LimitReached, Expired."""
        labels = dict(metadata or {}) | ({"name": name} if name else {})
        body: dict[str, Any] = {"template": template, "vcpus": vcpus, "memory_mb": memory_mb, "disk_size_mb": disk_size_mb}
        body |= {"network": "on" if network else "off", "timeout_sec": timeout_sec, "on_timeout": on_timeout, "auto_resume": auto_resume}
        body |= {key: value for key, value in (("lifetime_sec", lifetime_sec), ("metadata", labels), ("envs", dict(envs or {}))) if value}
        headers = prefer(wait) | {"Idempotency-Key": idempotency_key or secrets.token_hex(16)}
        answer = await self._http.ask("POST", "/v1/capsules", json=body, headers=headers, wait=wait, repeatable=True)
        made = AsyncSandbox(self._http, read(SandboxState, answer.tree()))
        if made.details.operation is not None and wait > 0:
            await made._settled(made.details, wait)
        if made.state in ENDED and wait > 0:
            raise InvalidState(f"The sandbox ended: {made.details.end_reason or made.state}. {made.details.end_note or ''}".strip(), status=409)
        return made

    async def get(self, sandbox_id: str) -> AsyncSandbox:
        """One, in any state; an ended one is shown for 30 days. Raises NotFound."""
        answer = await self._http.ask("GET", f"/v1/capsules/{segment(sandbox_id)}")
        return AsyncSandbox(self._http, read(SandboxState, answer.tree()))

    async def usage(self, *, first: str | None = None, last: str | None = None) -> list[dict[str, Any]]:
        """What the team used by day: `date`, `cpu_minutes`, `ram_mb_minutes`. Days as YYYY-MM-DD; the last 30 unless given."""
        tree = (await self._http.ask("GET", "/v1/capsules/usage", params={"from": first, "to": last})).tree()
        if not isinstance(tree, dict) or not isinstance(tree.get("points"), list):
            raise BadAnswer("The server sent no usage.")
        return list(tree["points"])

    async def list(
        self, *, states: Sequence[str] | None = None, template: str | None = None, labels: Mapping[str, str] | None = None, page_size: int = 200
    ) -> AsyncIterator[AsyncSandbox]:
        """All, newest first, fetched in pages; those that have ended only when `states` names their state."""
        params: dict[str, Any] = {"state": list(states) if states else None, "template": template, "limit": page_size}
        params["label"] = [f"{name}={value}" for name, value in labels.items()] if labels else None
        async for tree in self._http.pages("/v1/capsules", params):
            for each in read_list(SandboxState, tree):
                yield AsyncSandbox(self._http, each)
