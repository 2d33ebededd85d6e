"""A machine that wakes: random numbers are new, in idle kernels and in the middle of a cell; variables are not; what the sandbox was made with is there."""

from __future__ import annotations

import json
import os
from pathlib import Path

from interpreter_world import Service

SEEDED = "import random, numpy\nrandom.seed(1); numpy.random.seed(1)\nkept = 5"
DRAW = "random.random(), float(numpy.random.rand())"


def wake(generation: Path, number: int) -> None:
    """As the agent does it."""
    descriptor = os.open(generation, os.O_RDWR)
    os.pwrite(descriptor, b"%d\n" % number, 0)
    os.close(descriptor)


def test_an_idle_kernel_draws_anew_after_a_wake_and_keeps_its_variables(service: Service, context: str) -> None:
    service.run(SEEDED, context_id=context)
    foreseen = service.run(DRAW, context_id=context).text
    service.run(SEEDED, context_id=context)
    assert service.run(DRAW, context_id=context).text == foreseen
    service.run(SEEDED, context_id=context)
    wake(service.generation, 2)
    after = service.run(f"{DRAW}, kept", context_id=context).text
    assert after is not None
    numbers, before = json.loads(after.replace("(", "[").replace(")", "]")), json.loads((foreseen or "").replace("(", "[").replace(")", "]"))
    assert numbers[2] == 5
    assert not set(numbers[:2]) & set(before)


def test_a_cell_in_its_middle_draws_anew_too(service: Service, context: str) -> None:
    code = f"{SEEDED}\nprint('seeded')\nimport os, time\nwhile not os.path.exists('woken'): time.sleep(0.01)\nos.remove('woken')\n{DRAW}"
    texts = []
    for number in (3, 4):
        with service.client.stream("POST", "/execute", json={"code": code, "context_id": context}) as response:
            for line in map(json.loads, response.iter_lines()):
                if line["type"] == "stdout":
                    wake(service.generation, number)
                    service.run("open('woken', 'w').close()")
                elif line["type"] == "result":
                    texts.append(line["text"])
    assert len(set(texts)) == 2


def test_what_the_sandbox_was_made_with_is_in_the_environment_after_the_wake(service: Service, context: str) -> None:
    service.generation.with_name("names").write_text("GIVEN=to the sandbox\nE2B_SANDBOX=true\n")
    wake(service.generation, 5)
    answer = service.run("import os; os.environ['GIVEN']", context_id=context)
    assert answer.text == "to the sandbox", answer.lines


def test_bash_and_javascript_draw_anew(service: Service) -> None:
    bash, script = service.context(language="bash"), service.context(language="javascript")
    assert service.run("RANDOM=1; echo $RANDOM", context_id=bash).out != service.run("echo $RANDOM", context_id=bash).out
    service.run("const before = Math.random", context_id=script)
    wake(service.generation, 6)
    assert service.run("Math.random !== before && Math.random() >= 0 && Math.random() < 1", context_id=script).text == "true"
