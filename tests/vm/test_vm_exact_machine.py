"""Whatever is done to a sandbox, in whatever order: its files and its memory are what they were told to be. A model says what each artefact holds; after every
step the guest is asked what is there.

Every step on files ends with fsync, so what is on the disk must also outlive a killed VMM and a cold boot; tmpfs is memory and lives with pauses alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from vm_world import clear, kill_vmm, open_engine, run

from torpor.apps.engine import Engine
from torpor.host.agent import CreateSpec
from torpor.host.sandbox import Sandbox
from torpor.model.sandbox import MachineState
from torpor.model.shapes import Shape

pytestmark = [pytest.mark.vm, pytest.mark.root]

PROGRAM = (Path(__file__).parent / "programs" / "files.py").read_bytes()
NAMES = st.sampled_from(["a", "b", "c"])
PLACES = st.sampled_from(["disk", "tmpfs"])
TEXT = st.tuples(st.sampled_from("xyz"), st.sampled_from([1, 100, 4096, 70_000])).map(lambda pair: pair[0] * pair[1])
AT = st.sampled_from([0, 1, 4095, 8192, 100_000])
Files = dict[str, dict[str, str]]
MOST_SANDBOXES = 3


@dataclass
class Model:
    """What one sandbox holds now, and what its artefact does. `paused` None: there is nothing to resume."""

    sandbox: Sandbox
    now: Files = field(default_factory=lambda: {"disk": {}, "tmpfs": {}})
    paused: Files | None = None
    snapshots: dict[str, Files] = field(default_factory=dict)

    @property
    def runs(self) -> bool:
        return self.sandbox.record.state is MachineState.READY


def put(files: dict[str, str], name: str, text: str, at: int) -> None:
    before = files.get(name, "")
    files[name] = before[:at].ljust(at, "\0") + text + before[at + len(text) :]


class Exactness(RuleBasedStateMachine):
    """One example. `engine` and `runner` outlive it."""

    engine: Engine
    runner: asyncio.Runner
    cold_boots = 1

    @initialize()
    def create(self) -> None:
        sandbox = self.runner.run(self.engine.agent.create(CreateSpec("minimal", Shape(1, 256, 1024))))
        self.models = [Model(sandbox)]
        self.runner.run(self.install(sandbox))

    async def install(self, sandbox: Sandbox) -> None:
        await (await sandbox.guest()).write_file("/root/files.py", PROGRAM, sync=True)
        await (await sandbox.guest()).sync()

    def pick(self, number: int, runs: bool | None = None) -> Model | None:
        fitting = [model for model in self.models if runs is None or model.runs is runs]
        return fitting[number % len(fitting)] if fitting else None

    def step(self, model: Model, *steps: list[object]) -> None:
        """Does it in the guest, and compares all that is there with the model."""

        async def work() -> Files:
            result = await run(await model.sandbox.guest(), "python3", "/root/files.py", json.dumps(steps))
            assert result.ok, result
            return dict(json.loads(result.out))

        assert self.runner.run(work()) == model.now

    # What the guest does

    @rule(number=st.integers(0, 9), where=PLACES, name=NAMES, text=TEXT, at=AT)
    def write(self, number: int, where: str, name: str, text: str, at: int) -> None:
        if model := self.pick(number, runs=True):
            put(model.now[where], name, text, at)
            self.step(model, [where, "write", name, text, at])

    @rule(number=st.integers(0, 9), where=PLACES, text=TEXT, at=AT)
    def write_mapped(self, number: int, where: str, text: str, at: int) -> None:
        model = self.pick(number, runs=True)
        fitting = [name for name, content in model.now[where].items() if len(content) >= at + len(text)] if model else []
        if model and fitting:
            put(model.now[where], fitting[0], text, at)
            self.step(model, [where, "mapped", fitting[0], text, at])

    @rule(number=st.integers(0, 9), where=PLACES, size=AT)
    def truncate(self, number: int, where: str, size: int) -> None:
        model = self.pick(number, runs=True)
        if model and model.now[where]:
            name = min(model.now[where])
            model.now[where][name] = model.now[where][name][:size].ljust(size, "\0")
            self.step(model, [where, "truncate", name, size])

    @rule(number=st.integers(0, 9), where=PLACES, to=NAMES)
    def rename(self, number: int, where: str, to: str) -> None:
        model = self.pick(number, runs=True)
        if model and model.now[where]:
            name = max(model.now[where])
            model.now[where][to] = model.now[where].pop(name)
            self.step(model, [where, "rename", name, to])

    @rule(number=st.integers(0, 9), where=PLACES)
    def unlink(self, number: int, where: str) -> None:
        model = self.pick(number, runs=True)
        if model and model.now[where]:
            name = min(model.now[where])
            del model.now[where][name]
            self.step(model, [where, "unlink", name])

    # What is done to the sandbox

    @rule(number=st.integers(0, 9))
    def pause(self, number: int) -> None:
        if model := self.pick(number, runs=True):
            self.runner.run(self.engine.agent.pause(model.sandbox.id))
            model.paused = copy.deepcopy(model.now)

    @rule(number=st.integers(0, 9))
    def resume(self, number: int) -> None:
        model = self.pick(number, runs=False)
        if model and model.paused is not None:
            self.runner.run(self.engine.agent.resume(model.sandbox.id))
            model.now = copy.deepcopy(model.paused)
            self.step(model)

    @rule(number=st.integers(0, 9))
    def kill_the_vmm_and_resume_again(self, number: int) -> None:
        model = self.pick(number, runs=True)
        if model and model.paused is not None:
            self.runner.run(kill_vmm(model.sandbox))
            self.runner.run(self.engine.agent.resume(model.sandbox.id))
            model.now = copy.deepcopy(model.paused)
            self.step(model)

    @precondition(lambda self: len(self.models) < MOST_SANDBOXES)
    @rule(number=st.integers(0, 9), count=st.integers(1, 2))
    def fork(self, number: int, count: int) -> None:
        if model := self.pick(number, runs=True):
            for child in self.runner.run(self.engine.agent.fork(model.sandbox.id, count)):
                self.models.append(Model(child, copy.deepcopy(model.now)))
                self.step(self.models[-1])
            self.step(model)

    @rule(number=st.integers(0, 9))
    def snapshot(self, number: int) -> None:
        if model := self.pick(number, runs=True):
            artefact = self.runner.run(self.engine.agent.snapshot(model.sandbox.id, f"snapshot-{len(model.snapshots)}-{model.sandbox.id}"))
            model.snapshots[artefact.id] = copy.deepcopy(model.now)
            self.step(model)

    @rule(number=st.integers(0, 9), which=st.integers(0, 9))
    def roll_back(self, number: int, which: int) -> None:
        model = self.pick(number)
        if model and model.snapshots:
            artefact = sorted(model.snapshots)[which % len(model.snapshots)]
            self.runner.run(self.engine.agent.rollback(model.sandbox.id, artefact))
            model.paused, model.now = copy.deepcopy(model.snapshots[artefact]), copy.deepcopy(model.snapshots[artefact])
            self.step(model)

    @precondition(lambda self: self.cold_boots > 0)
    @rule(number=st.integers(0, 9), kill=st.booleans())
    def cold_boot(self, number: int, kill: bool) -> None:
        """From the disk as it was last left: at the pause, or when the VMM was killed."""
        model = self.pick(number, runs=kill)
        if not model:
            return
        self.cold_boots -= 1
        if kill:
            self.runner.run(kill_vmm(model.sandbox))
        self.runner.run(self.engine.agent.cold_boot(model.sandbox.id))
        model.now = {"disk": model.now["disk"], "tmpfs": {}}
        model.paused = copy.deepcopy(model.now)
        self.step(model)

    @rule()
    def do_chores(self) -> None:
        """Merges, re-bases, collects: nothing of it may be seen."""
        self.runner.run(self.engine.agent.idle())

    @invariant()
    def records_tell_the_truth(self) -> None:
        for model in getattr(self, "models", []):
            assert model.sandbox.record.state in (MachineState.READY, MachineState.PAUSED)

    def teardown(self) -> None:
        self.runner.run(clear(self.engine))


@pytest.mark.parametrize(("examples", "steps"), [(2, 14), pytest.param(60, 30, marks=pytest.mark.soak)])
def test_a_sandbox_holds_what_it_was_told_to_keep(images_home: Path, examples: int, steps: int) -> None:
    with asyncio.Runner() as runner:
        stack = contextlib.AsyncExitStack()
        try:
            engine = runner.run(stack.enter_async_context(open_engine(images_home)))
            machine = type("Machine", (Exactness,), {"engine": engine, "runner": runner})
            run_state_machine_as_test(
                machine,
                settings=settings(
                    max_examples=examples,
                    stateful_step_count=steps,
                    deadline=None,
                    suppress_health_check=list(HealthCheck),
                    phases=[Phase.explicit, Phase.reuse, Phase.generate],
                    print_blob=True,
                ),
            )
        finally:
            runner.run(stack.aclose())
