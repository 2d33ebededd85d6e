"""A nemesis over HTTP, with real microVMs: any order of requests, while VMMs are killed and frozen, the server dies by SIGTERM and SIGKILL between and within
requests, and the disk fills up. At rest nothing is stuck (T2), records equal reality (T3), and what was acknowledged is there (T1, T12)."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
from chaos_world import LIVE, SHAPE, Chaos, Unanswered, chaos_on, failed_honestly
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

pytestmark = [pytest.mark.vm, pytest.mark.root]

T = TypeVar("T")
MOST = 4
"""Sandboxes at a time: the machine that tests run on is small."""
NUMBERS = st.integers(0, 99)
TEXTS = st.sampled_from(["one", "two", "three"])
PATIENT = {"Prefer": "wait=120"}


@dataclass
class Known:
    """What is known of a sandbox. `said`: what its memory and its disk were told to keep, None when nobody knows; `maybe`: what they were told and nobody
    acknowledged. `doomed`: its VMM was killed. `deleted`: its end was acknowledged."""

    said: str | None = ""
    maybe: set[str] = field(default_factory=set)
    doomed: bool = False
    deleted: bool = False
    frozen: bool = False


class Story:
    """The acts, and what must hold after them."""

    def __init__(self, chaos: Chaos) -> None:
        self.chaos = chaos
        self.known: dict[str, Known] = {}
        self.snapshots: dict[str, str | None] = {}
        self.full = False

    def pick(self, number: int, *, awake: bool = True) -> str | None:
        """One that was not deleted, nor (`awake`) frozen."""
        names = [name for name, one in self.known.items() if not one.deleted and not one.doomed and not (awake and one.frozen)]
        return names[number % len(names)] if names else None

    # --- requests

    async def create(self, template: str = "minimal") -> None:
        """Asked twice with one key: the same sandbox, whatever became of the first answer."""
        if len([one for one in self.known.values() if not one.deleted]) >= MOST:
            return
        how: dict[str, Any] = {"json": SHAPE | {"template": template}, "headers": PATIENT | {"Idempotency-Key": secrets.token_hex(8)}}
        try:
            answer = await self.chaos.client.ask("POST", "/v1/capsules", **how)
        except Unanswered:
            answer = await self.chaos.client.surely("POST", "/v1/capsules", **how)
        if answer.status_code not in (201, 202):
            failed_honestly(answer)
            return
        again = await self.chaos.client.surely("POST", "/v1/capsules", **how)
        if again.status_code in (201, 202):
            assert again.json()["id"] == answer.json()["id"]
        self.known[answer.json()["id"]] = Known(said=self.snapshots.get(template, "") if template != "minimal" else "")

    async def work(self, capsule: str, text: str) -> None:
        script = f"printf {text} > /dev/shm/said && printf {text} > /root/said && sync /root/said"
        one = self.known[capsule]
        one.maybe.add(text)
        answer = await self._ask("POST", f"/v1/capsules/{capsule}/exec", json={"cmd": "sh", "args": ["-c", script], "timeout_sec": 60})
        if answer is not None and answer.status_code == 200 and answer.json()["exit_code"] == 0:
            one.said, one.maybe = text, set()

    async def change(self, capsule: str, verb: str) -> None:
        await self._ask("POST", f"/v1/capsules/{capsule}/{verb}", headers=PATIENT)

    async def delete(self, capsule: str) -> None:
        answer = await self._ask("DELETE", f"/v1/capsules/{capsule}", headers=PATIENT)
        if answer is not None and answer.status_code == 204:
            self.known[capsule].deleted = True

    async def fork(self, capsule: str) -> None:
        if len(self.known) >= MOST:
            return
        answer = await self._ask("POST", f"/v1/capsules/{capsule}/fork", json={"count": 1}, headers=PATIENT)
        if answer is not None and answer.status_code == 201:
            source = self.known[capsule]
            for child in answer.json():
                self.known[child["id"]] = Known(said=None if source.maybe else source.said)

    async def snapshot(self, capsule: str, name: str = "kept") -> None:
        source = self.known[capsule]
        answer = await self._ask("POST", "/v1/snapshots?overwrite=true", json={"sandbox_id": capsule, "name": name}, headers=PATIENT)
        if answer is not None and answer.status_code == 201:
            self.snapshots[name] = None if source.maybe else source.said
        elif name in self.snapshots:
            self.snapshots[name] = None  # the old one or the new one

    async def _ask(self, method: str, path: str, **how: Any) -> httpx.Response | None:
        """None: the server died before it answered."""
        try:
            answer = await self.chaos.client.ask(method, path, **how)
        except Unanswered:
            return None
        if answer.status_code >= 400:
            failed_honestly(answer)
        return answer

    # --- the nemesis

    def kill_vmm(self, capsule: str) -> None:
        if self.chaos.kill_vmm(capsule):
            self.known[capsule].doomed = True

    def freeze(self, capsule: str) -> None:
        self.known[capsule].frozen = self.chaos.freeze(capsule)

    def thaw(self) -> None:
        self.chaos.thaw()
        for one in self.known.values():
            one.frozen = False

    def fill_disk(self) -> None:
        self.chaos.fill_disk(spare_mib=1)
        self.full = True

    def empty_disk(self) -> None:
        self.chaos.empty_disk()
        self.full = False

    async def restart(self, how: str) -> None:
        self.empty_disk()
        await self.chaos.server.restart(how)

    async def die_within(self, act: Callable[[], Awaitable[None]], how: str, milliseconds: int) -> None:
        """The server dies so long after a request was sent: the moment is the nemesis's choice."""
        self.empty_disk()
        doing = asyncio.ensure_future(act())
        await asyncio.wait({doing}, timeout=milliseconds / 1000)
        await self.chaos.server.restart(how)
        await doing

    # --- what must hold

    async def rest(self) -> None:
        self.thaw()
        self.empty_disk()
        found = await self.chaos.check()
        for name, one in list(self.known.items()):
            self._judge(found[name], one)
            if found[name]["state"] not in LIVE:
                del self.known[name]
        for name, each in found.items():  # of requests whose answers were lost
            if each["state"] in LIVE:
                self.known.setdefault(name, Known(said=None))
        for name, one in self.known.items():
            await self._demand_kept(found[name], name, one)

    def _judge(self, record: dict[str, Any], one: Known) -> None:
        state, reason = record["state"], record.get("end_reason")
        if one.deleted:
            assert (state, reason) == ("stopped", "user"), record
        elif one.doomed:
            assert state == "paused" or (state == "stopped" and reason in ("vmm_crash", "user")), record  # paused: it was, and its VMM about to leave
        elif state not in LIVE:
            assert (state, reason) in (("stopped", "user"), ("error", "error")), record
            assert record["end_note"] or reason == "user", record

    async def _demand_kept(self, record: dict[str, Any], name: str, one: Known) -> None:
        if record["state"] == "paused":
            answer = await self.chaos.client.surely("POST", f"/v1/capsules/{name}/resume", headers=PATIENT)
            assert answer.status_code == 200, answer.text
        for path in ("/dev/shm/said", "/root/said"):
            kept = await self.chaos.client.run(name, f"cat {path} 2>/dev/null || true")
            assert one.said is None or kept in {one.said, *one.maybe}, (name, path, kept, one)
        one.said, one.maybe = (None if one.maybe else one.said), set()


class Nemesis(RuleBasedStateMachine):
    runner: asyncio.Runner
    chaos: Chaos

    def __init__(self) -> None:
        super().__init__()
        self.story = Story(self.chaos)
        self.do(self.story.create())

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        async def bounded() -> T:
            async with asyncio.timeout(400):
                return await work

        return self.runner.run(bounded())

    def to(self, number: int, act: Callable[[str], Awaitable[None]], *, awake: bool = True) -> None:
        async def doing() -> None:
            name = self.story.pick(number, awake=awake)
            if name is not None:
                await act(name)

        self.do(doing())

    def teardown(self) -> None:
        async def end() -> None:
            await self.story.rest()
            await self.chaos.clear()

        self.do(end())

    @rule(from_snapshot=st.booleans())
    def create(self, from_snapshot: bool) -> None:
        self.do(self.story.create("kept" if from_snapshot and "kept" in self.story.snapshots else "minimal"))

    @precondition(lambda self: not self.story.full)
    @rule(number=NUMBERS, text=TEXTS)
    def work(self, number: int, text: str) -> None:
        self.to(number, lambda name: self.story.work(name, text))

    @rule(number=NUMBERS, verb=st.sampled_from(["pause", "resume"]))
    def change(self, number: int, verb: str) -> None:
        self.to(number, lambda name: self.story.change(name, verb))

    @rule(number=NUMBERS)
    def snapshot(self, number: int) -> None:
        self.to(number, self.story.snapshot)

    @rule(number=NUMBERS)
    def fork(self, number: int) -> None:
        self.to(number, self.story.fork)

    @rule(number=NUMBERS)
    def delete(self, number: int) -> None:
        self.to(number, self.story.delete, awake=False)

    @rule(number=NUMBERS)
    def a_vmm_is_killed(self, number: int) -> None:
        async def kill(name: str) -> None:
            self.story.kill_vmm(name)

        self.to(number, kill, awake=False)

    @rule(number=NUMBERS)
    def a_vmm_freezes(self, number: int) -> None:
        async def freeze(name: str) -> None:
            self.story.freeze(name)

        self.to(number, freeze)

    @precondition(lambda self: self.story.chaos.frozen)
    @rule()
    def it_thaws(self) -> None:
        self.story.thaw()

    @rule(how=st.sampled_from(["sigterm", "sigkill"]))
    def the_server_is_restarted(self, how: str) -> None:
        self.do(self.story.restart(how))

    @rule(
        number=NUMBERS,
        verb=st.sampled_from(["create", "work", "pause", "resume", "snapshot", "fork", "delete"]),
        how=st.sampled_from(["sigterm", "sigkill"]),
        milliseconds=st.integers(0, 400),
    )
    def the_server_dies_within(self, number: int, verb: str, how: str, milliseconds: int) -> None:
        async def dying() -> None:
            name = self.story.pick(number)
            acts: dict[str, Callable[[str], Awaitable[None]]] = {
                "work": lambda name: self.story.work(name, "late"),
                "pause": lambda name: self.story.change(name, "pause"),
                "resume": lambda name: self.story.change(name, "resume"),
                "snapshot": self.story.snapshot,
                "fork": self.story.fork,
                "delete": self.story.delete,
            }
            if verb == "create":
                await self.story.die_within(self.story.create, how, milliseconds)
            elif name is not None:
                await self.story.die_within(lambda: acts[verb](name), how, milliseconds)

        self.do(dying())

    @rule()
    def the_disk_fills_up(self) -> None:
        self.story.fill_disk()

    @precondition(lambda self: self.story.full)
    @rule()
    def there_is_space_again(self) -> None:
        self.story.empty_disk()

    @rule()
    def everything_comes_to_rest(self) -> None:
        self.do(self.story.rest())


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("examples", "steps"), [(2, 8), pytest.param(100, 40, marks=[pytest.mark.soak, pytest.mark.timeout(36_000)])])
def test_nemesis(elastic_home: Path, examples: int, steps: int) -> None:
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        Nemesis.runner, Nemesis.chaos = runner, runner.run(stack.enter_async_context(chaos_on(elastic_home)))
        try:
            run_state_machine_as_test(
                Nemesis,
                settings=settings(
                    max_examples=examples,
                    stateful_step_count=steps,
                    deadline=None,
                    derandomize=examples < 10,
                    phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck),
                    print_blob=True,
                ),
            )
            runner.run(Nemesis.chaos.server.stop("sigterm"))
        finally:
            runner.run(stack.aclose())


@pytest.mark.timeout(600)
async def test_every_lever_of_the_nemesis_once(elastic_home: Path) -> None:
    """In an order that says of each what it should come to."""
    async with chaos_on(elastic_home) as chaos:
        story = Story(chaos)
        for _ in range(3):
            await story.create()
        first, second, third = story.known
        for number, name in enumerate(story.known):
            await story.work(name, f"text{number}")
            assert story.known[name].said == f"text{number}"
        story.kill_vmm(third)
        story.freeze(second)
        await story.restart("sigkill")  # the next server finds one dead and one that does not answer
        assert (await chaos.get(first))["state"] == "running"
        story.thaw()
        await story.rest()
        assert (await chaos.get(third))["end_reason"] == "vmm_crash"

        story.freeze(second)
        await story.delete(second)  # from any state
        assert (await chaos.get(second))["state"] == "stopped"
        await story.rest()

        await story.snapshot(first)
        assert story.snapshots == {"kept": "text0"}
        story.fill_disk()
        for path, body in ((f"/v1/capsules/{first}/pause", None), ("/v1/snapshots", {"sandbox_id": first}), ("/v1/capsules", SHAPE)):
            refused = await chaos.client.ask("POST", path, json=body, headers=PATIENT)
            assert refused.status_code in (503, 507), refused.text
            failed_honestly(refused)
        story.empty_disk()
        assert (await chaos.rest())[first]["state"] == "running"
        await story.rest()

        await story.die_within(lambda: story.change(first, "pause"), "sigkill", 20)
        await story.rest()
        await story.create("kept")
        await story.rest()
        await chaos.clear()
        await chaos.server.stop("sigterm")
