"""Sandboxes under a nemesis: any order of requests, lost replies, refusals, deaths of machines and control planes, silence, and leaps of the clock. At rest,
records and host agree, and what a sandbox was told to keep is kept."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from service_world import LONG, ME, TINY, World, opened, until

from torpor.lifecycle.sandbox import FINAL
from torpor.model.errors import TorporError
from torpor.model.records import SandboxState, TimeoutAction
from torpor.service.control import ControlPlane
from torpor.testing.fake_hosts import Fault, Trouble

T = TypeVar("T")
S = SandboxState
VERBS = ["create", "pause", "resume", "cold_boot", "snapshot", "fork", "rollback", "kill", "delete_snapshot"]
SMALL_FAULTS = st.sampled_from([Trouble.LOST_REPLY, Trouble.UNREACHABLE, Trouble.REFUSED, Trouble.ERROR_AFTER])
NUMBERS = st.integers(0, 99)


class Nemesis(RuleBasedStateMachine):
    """`told`: what each sandbox's guest was told to remember; None once it may have lost it (a cold boot, an operation with an error)."""

    database: Path

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        self.directory = Path(mkdtemp())
        self.told: dict[str, str | None] = {}
        self.at_rest = True
        copy = Path(shutil.copy(self.database, self.directory / "db"))
        self.world: World = self.do(self.stack.enter_async_context(opened(copy)))
        self.plane: ControlPlane

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        async def bounded() -> T:
            async with asyncio.timeout(60):
                return await work

        return self.runner.run(bounded())

    def teardown(self) -> None:
        self.do(self.stack.aclose())
        self.runner.close()
        shutil.rmtree(self.directory)

    def pick(self, number: int) -> str:
        names = sorted(self.told)
        return names[number % len(names)]

    async def ask(self, verb: str, sandbox_id: str, *more: Any, **named: Any) -> bool:
        """Does it to its end, time passing where it waits for a silent host. Whether it went well."""
        doing = asyncio.ensure_future(self._ask(verb, sandbox_id, *more, **named))
        while not doing.done():
            sleeping = asyncio.ensure_future(self.world.clock.sleeper(16))
            await asyncio.wait({doing, sleeping}, return_when=asyncio.FIRST_COMPLETED)
            sleeping.cancel()
            if not doing.done():
                await asyncio.wait({doing}, timeout=0.001)
                self.world.clock.move(5)
        return doing.result()

    async def _ask(self, verb: str, sandbox_id: str, *more: Any, **named: Any) -> bool:
        try:
            started = await getattr(self.plane.sandboxes, verb)(ME, sandbox_id, *more, **named)
            for one in started if isinstance(started, list) else [started]:
                sandbox = await self.plane.sandboxes.settled(one.sandbox.id, one.operation_id, LONG)
                if verb == "fork":
                    self.told[sandbox.id] = self.told.get(sandbox_id)
        except TorporError:
            return False
        return True

    @initialize()
    def begin(self) -> None:
        self.plane = self.do(self.world.start())

    @rule(idle=st.sampled_from([0.0, 50.0]), kill=st.booleans())
    def create(self, idle: float, kill: bool) -> None:
        async def create() -> None:
            request = replace(TINY, idle_timeout=idle, on_timeout=TimeoutAction.KILL if kill else TimeoutAction.PAUSE, auto_resume=True)
            started = await self.plane.sandboxes.create(ME, request)
            self.told[started.sandbox.id] = ""
            await asyncio.wait(
                {settling := asyncio.ensure_future(self.plane.sandboxes.settled(started.sandbox.id, started.operation_id, 300.0))}, timeout=0.002
            )
            while not settling.done():
                await asyncio.wait({settling}, timeout=0.001)
                self.world.clock.move(5)
            settling.exception()

        if len(self.told) < 6:
            try:
                self.do(create())
            except TorporError:
                assert not self.world.host.reachable or self.world.host.faults
            self.at_rest = False

    @precondition(lambda self: self.told)
    @rule(number=NUMBERS, verb=st.sampled_from(["pause", "resume", "kill"]))
    def change(self, number: int, verb: str) -> None:
        self.do(self.ask(verb, self.pick(number)))
        self.at_rest = False

    @precondition(lambda self: self.told)
    @rule(number=NUMBERS, verb=st.sampled_from(["cold_boot", "rollback"]))
    def throw_away(self, number: int, verb: str) -> None:
        sandbox_id = self.pick(number)
        self.do(self.ask(verb, sandbox_id, *(["name"] if verb == "rollback" else [])))
        self.told[sandbox_id] = None
        self.at_rest = False

    @precondition(lambda self: self.told)
    @rule(number=NUMBERS, keep=st.booleans())
    def snapshot(self, number: int, keep: bool) -> None:
        self.do(self.ask("snapshot", self.pick(number), "name", overwrite=True, keep_running=keep))
        self.at_rest = False

    @precondition(lambda self: 0 < len(self.told) < 5)
    @rule(number=NUMBERS)
    def fork(self, number: int) -> None:
        self.do(self.ask("fork", self.pick(number), 2))
        self.at_rest = False

    @precondition(lambda self: self.told)
    @rule(number=NUMBERS, text=st.sampled_from("abc"))
    def work_inside(self, number: int, text: str) -> None:
        async def work() -> None:
            sandbox_id = self.pick(number)
            try:
                async with self.plane.sandboxes.use(ME, sandbox_id, "work") as guest:
                    await guest.remember(text)  # type: ignore[attr-defined]
                    self.told[sandbox_id] = text
            except TorporError:
                return

        if self.world.host.reachable and not self.world.host.faults:
            self.do(work())
            self.at_rest = False

    @rule(verb=st.sampled_from(VERBS), trouble=SMALL_FAULTS, times=st.integers(1, 2))
    def something_goes_wrong(self, verb: str, trouble: Trouble, times: int) -> None:
        self.world.host.faults.append(Fault(verb, trouble, times))

    @precondition(lambda self: self.told)
    @rule(number=NUMBERS)
    def a_machine_dies(self, number: int) -> None:
        async def die() -> None:
            running = [name for name, status in self.world.host.statuses().items() if status.value == "running"]
            if running:
                victim = sorted(running)[number % len(running)]
                self.world.host.die(victim)
                self.told[victim] = None

        self.do(die())
        self.at_rest = False

    @rule()
    def the_control_plane_is_killed(self) -> None:
        async def again() -> None:
            await self.world.kill(self.plane)
            self.plane = await self.world.start()

        if self.world.host.reachable:
            self.do(again())
            self.at_rest = False

    @rule(number=NUMBERS, verb=st.sampled_from(["pause", "resume", "kill", "snapshot", "fork"]), at=st.integers(1, 8))
    def the_control_plane_dies_within(self, number: int, verb: str, at: int) -> None:
        async def die() -> None:
            self.world.die_at, self.world.points = at, 0
            self.world.died.clear()
            more: list[Any] = {"snapshot": ["name"], "fork": [1]}.get(verb, [])
            doing = asyncio.ensure_future(self._ask(verb, self.pick(number), *more))
            died = asyncio.ensure_future(self.world.died.wait())
            await asyncio.wait({doing, died}, return_when=asyncio.FIRST_COMPLETED)
            doing.cancel()
            died.cancel()
            await asyncio.gather(doing, died, return_exceptions=True)
            await self.world.kill(self.plane)
            self.plane = await self.world.start()

        if self.told and self.world.host.reachable and not self.world.host.faults:
            self.do(die())
            self.at_rest = False

    @rule(seconds=st.sampled_from([1.0, 60.0, 400.0, 4000.0, -500.0]))
    def time_leaps(self, seconds: float) -> None:
        async def leap() -> None:
            self.world.clock.move(seconds)
            await self.plane.timers.look()

        if self.world.host.reachable:
            self.do(leap())
            self.at_rest = False

    @rule()
    def everything_comes_to_rest(self) -> None:
        """Faults end, the host is there, and one whole comparison is made; twice, for what the first one left to do."""

        async def rest() -> None:
            self.world.host.faults.clear()
            for _ in range(2):
                await self.plane.timers.look()
                idle = asyncio.ensure_future(self.plane.operations.idle())
                while not idle.done():
                    await asyncio.wait({idle}, timeout=0.002)
                    self.world.clock.move(1)
                await self.plane.reconciler.run()
                await self.plane.operations.idle()
            await self.plane.timers.look()  # what became due while time passed; from here on it stands still
            await until(self.world, self._quiet)  # also what the timers' own task began a moment ago
            await self.plane.operations.idle()
            await self.world.check()
            for sandbox in await self.world.all():
                if sandbox.state not in FINAL:
                    await self._demand_kept(sandbox.id)

        self.do(rest())
        self.at_rest = True

    async def _quiet(self) -> bool:
        return all(sandbox.operation is None for sandbox in await self.world.all())

    async def _demand_kept(self, sandbox_id: str) -> None:
        told = self.told.get(sandbox_id)
        memory = self.world.host.memory(sandbox_id)
        assert told is None or memory == told, (sandbox_id, told, memory)

    @invariant()
    def nothing_that_ended_lives(self) -> None:
        async def look() -> None:
            if self.at_rest:
                await self.world.check()

        self.do(look())


@pytest.mark.parametrize("examples", [25, pytest.param(600, marks=pytest.mark.soak)])
def test_nemesis(empty_database: Path, examples: int) -> None:
    Nemesis.database = empty_database
    run_state_machine_as_test(
        Nemesis,
        settings=settings(max_examples=examples, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True),
    )
