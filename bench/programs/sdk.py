"""Rounds through E2B's Python SDK beside torpor.client's, in turns; prints a line of JSON for each sample. Addresses and keys are in the environment.

python bench/programs/sdk.py ROUNDS CELLS [PAUSE]      PAUSE: only cells, with so many seconds between two sandboxes
E2B_DOMAIN, E2B_API_KEY, SSL_CERT_FILE; TORPOR_URL, TORPOR_API_KEY, TORPOR_CA_FILE
"""

from __future__ import annotations

import json
import sys
import time

from e2b import Sandbox
from e2b_code_interpreter import Sandbox as Interpreter

from torpor.client import Client

TEMPLATE = "base"
AS_THEIRS = ["/bin/bash", "-l", "-c", "true"]
"""What their SDK makes of `true`."""


def say(key: str, engine: float | None = None, floor: float | None = None) -> None:
    print(json.dumps({"key": key, "engine": engine, "floor": floor}), flush=True)


def theirs() -> float:
    begin = time.perf_counter()
    sandbox = Sandbox.create(TEMPLATE)
    result = sandbox.commands.run("true")
    took = (time.perf_counter() - begin) * 1e3
    assert result.exit_code == 0
    sandbox.kill()
    return took


def ours(client: Client) -> float:
    begin = time.perf_counter()
    sandbox = client.sandboxes.create(TEMPLATE, network=True)
    result = sandbox.commands.run(AS_THEIRS)
    took = (time.perf_counter() - begin) * 1e3
    assert result.exit_code == 0
    sandbox.kill()
    return took


def cells(count: int) -> list[float]:
    with Interpreter.create() as sandbox:
        found = []
        for _ in range(count):
            begin = time.perf_counter()
            execution = sandbox.run_code("1+1")
            found.append((time.perf_counter() - begin) * 1e3)
            assert execution.text == "2", execution
        sandbox.kill()
    return found


def pooled(rounds: int, count: int, pause: float) -> None:
    """The first two, which import and connect, and may find no pool yet, do not count."""
    for number in range(rounds + 2):
        took = cells(count)
        if number > 1:
            say("e_cell_pooled", took[0], took[-1])
        time.sleep(pause)


def main() -> None:
    rounds, count, pause = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]) if len(sys.argv) > 3 else 0.0
    if pause:
        pooled(rounds, count, pause)
        return
    with Client() as client:
        for number in range(rounds + 1):
            floor, engine = ours(client), theirs()
            if number:  # the first ones import and connect
                say("e_first_result", engine, floor)
    for number in range(rounds + 1):
        took = cells(count)
        if number:
            say("e_cell_first", took[0], took[-1])


if __name__ == "__main__":
    main()
