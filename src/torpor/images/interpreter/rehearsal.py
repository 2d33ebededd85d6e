"""What the fork server does once before anybody asks, so that no kernel does it for the first time: Python's specialisation, lazy imports, font caches."""

from __future__ import annotations

import contextlib
import io
import json

from .mimes import CHART
from .shell import Json, Shell

CELLS = (
    "1+1",
    "x = 1\nprint(x)",
    "import random, ssl, uuid, asyncio, collections, datetime, math, re, json, os, sys, time\nrandom.random(), ssl.RAND_bytes(1), uuid.uuid4()",
    "await asyncio.sleep(0)",
    "1/0",
    "def broken(:",
    "import numpy as np\nnp.random.rand(3) @ np.ones(3)",
    "import pandas as pd\nframe = pd.DataFrame({'a': [1, 2, 3], 'b': [1.5, None, 2.5]})\nframe.describe()\nframe",
    "import matplotlib.pyplot as plt\nplt.plot([1, 2, 3], [3, 1, 2], label='x')\nplt.title('t')\nplt.legend()\nplt.show()",
    "_ = plt.bar(['a', 'b'], [1, 2])",
)


def rehearse(shell: Shell, rounds: int = 2) -> None:
    """Runs the cells, throws away what they say, and leaves the shell as new. Raises RuntimeError when one that must work does not."""
    failures: list[Json] = []
    charts: list[str] = []

    def listen(event: Json) -> None:
        json.dumps(event, default=str)
        if event["event"] == "error":
            failures.append(event)
        elif CHART in event.get("data", ()):
            charts.append(event["data"][CHART]["type"])

    shell.send = listen
    for _ in range(rounds):
        failures.clear()
        charts.clear()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            for count, cell in enumerate(CELLS, 1):
                shell.execution_count = count
                shell.run_cell(cell, store_history=True)
        wrong = [failure for failure in failures if failure["name"] not in ("ZeroDivisionError", "SyntaxError")]
        if wrong or len(failures) != 2 or charts != ["line", "bar"]:
            raise RuntimeError(f"The rehearsal failed: {wrong or failures}, {charts}")
    shell.reset(new_session=True)
    shell.execution_count = 1
