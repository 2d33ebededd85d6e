"""Drives the code interpreter of the published package wrenn, which is on the path: drive_code_runner.py URL KEY HOME SECTION... (HOME: of the sandbox's user).
Says `done` after each. It was called `code_interpreter` in 0.1.2 and is `code_runner` since."""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import inspect
import sys
from typing import Any

if importlib.util.find_spec("wrenn.code_runner"):
    from wrenn.code_runner import AsyncCapsule, Capsule
else:
    from wrenn.code_interpreter import AsyncCapsule, Capsule

URL, KEY, HOME, *SECTIONS = sys.argv[1:]
HOW = {"api_key": KEY, "base_url": URL}
PATIENT = {"timeout": 120.0}
STREAMED = """
import os, sys, time
print('first', flush=True)
while not os.path.exists('/tmp/heard'): time.sleep(0.01)
print('second', file=sys.stderr)
6 * 7
"""


def cells(capsule: Any) -> None:
    first = capsule.run_code("6 * 7", **PATIENT)
    assert (first.text, first.error, first.execution_count) == ("42", None, 1), first
    capsule.run_code("kept = [1, 2]")
    assert capsule.run_code("kept").text == "[1, 2]"
    said = capsule.run_code("import sys\nprint('ü' * 100_000)\nprint('wrong', file=sys.stderr)")
    assert ("".join(said.logs.stdout), "".join(said.logs.stderr)) == ("ü" * 100_000 + "\n", "wrong\n")
    assert capsule.run_code("import os; [os.getcwd()]").text == f"['{HOME}']"


def errors(capsule: Any) -> None:
    heard: list[str] = []
    failed = capsule.run_code("print('before')\n1 / 0", on_error=lambda error: heard.append(error.name))
    assert (failed.error.name, failed.error.value, failed.logs.stdout, failed.text) == ("ZeroDivisionError", "division by zero", ["before\n"], None), failed
    assert "ZeroDivisionError" in failed.error.traceback and heard == ["ZeroDivisionError"]
    assert capsule.run_code("def f(:").error.name == "SyntaxError"
    assert capsule.run_code("import os; os._exit(3)").error.name == "KernelDied"
    assert capsule.run_code("1 + 1", **PATIENT).text == "2"


def results(capsule: Any) -> None:
    (drawn,) = capsule.run_code("import matplotlib.pyplot as plt\nplt.plot([1, 4, 9]); plt.show()", **PATIENT).results
    assert base64.b64decode(drawn.png).startswith(b"\x89PNG") and not drawn.is_main_result and "png" in drawn.formats()
    (large,) = capsule.run_code("from IPython.display import HTML; HTML('<p>' * 100_000)", **PATIENT).results
    assert large.is_main_result and large.html == "<p>" * 100_000  # more than the package takes out of a connection at a time
    shown = capsule.run_code("from IPython.display import display, JSON\ndisplay(JSON({'a': 1}))\n7").results
    assert [each.json or each.text for each in shown] == [{"a": 1}, "7"]


def streaming(capsule: Any) -> None:
    """The cell goes on when its first line was heard here: nothing is kept back until its end."""
    heard: list[str] = []

    def hear(text: str) -> None:
        heard.append(text)
        capsule.files.write("/tmp/heard", "")

    execution = capsule.run_code(STREAMED, on_stdout=hear, on_stderr=heard.append, on_result=lambda result: heard.append(result.text))
    assert (heard, execution.text) == (["first\n", "second\n", "42"], "42"), execution


def pausing(capsule: Any) -> None:
    capsule.run_code("slept = [8]")
    capsule.close()  # its connections do not outlive the pause
    assert capsule.pause().status == "paused"
    assert capsule.resume().status == "running"
    assert capsule.run_code("slept", **PATIENT).text == "[8]"


async def asynchronous() -> None:
    capsule = AsyncCapsule.create(wait=True, **HOW)
    capsule = await capsule if inspect.isawaitable(capsule) else capsule
    async with capsule:
        assert (await capsule.run_code("x = 6 * 7; x", **PATIENT)).text == "42"
        assert (await capsule.run_code("x + 1")).text == "43"
        assert (await capsule.run_code("nothing")).error.name == "NameError"


KNOWN = {each.__name__: each for each in (cells, errors, results, streaming, pausing)}

with Capsule(wait=True, **HOW) as shared:
    for section in SECTIONS:
        if section == "asynchronous":
            asyncio.run(asynchronous())
        else:
            KNOWN[section](shared)
        print("done", section, flush=True)
