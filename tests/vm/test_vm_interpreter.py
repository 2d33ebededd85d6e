"""The code interpreter in microVMs: warm at the first cell, with its state through pauses, and its random numbers its own in every copy."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from interpreter_vm import request, run_code, text
from vm_world import shell

from torpor.apps.engine import Engine
from torpor.host.agent import CreateSpec
from torpor.host.sandbox import Sandbox
from torpor.model.shapes import Shape
from torpor.ports.guest import Guest

pytestmark = pytest.mark.timeout(1800)
"""The first run builds the template, and boots it once."""

NAME, ALIAS = "code-interpreter-v1", "code-runner-beta"
SHAPE = Shape(1, 512, 4096)
DRAW = "import random, ssl, numpy\n[random.random(), float(numpy.random.rand()), ssl.RAND_bytes(8).hex()]"


@pytest.fixture
async def interpreter(interpreter_home: Path, engine: Engine) -> Sandbox:
    return await engine.agent.create(CreateSpec(NAME, SHAPE))


@pytest.fixture
async def guest(interpreter: Sandbox) -> Guest:
    return await interpreter.guest()


async def test_the_first_cell_finds_everything_there(guest: Guest) -> None:
    first = await run_code(guest, "1+1")
    assert [line["type"] for line in first] == ["number_of_executions", "result"]
    assert (first[0]["execution_count"], first[1]["text"]) == (1, "2")
    assert await text(guest, "import sys; {'numpy', 'pandas', 'matplotlib.pyplot'} <= set(sys.modules)") == "True"
    assert await text(guest, "import scipy, sklearn, requests, openpyxl, getpass, os; getpass.getuser(), os.getcwd()") == "('user', '/home/user')"
    (drawn,) = [line for line in await run_code(guest, "import matplotlib.pyplot as plt\n_ = plt.bar(['a'], [2])") if line["type"] == "result"]
    assert base64.b64decode(drawn["png"]).startswith(b"\x89PNG")
    assert drawn["chart"]["elements"] == [{"label": "a", "group": "Group 0", "value": 2}]


async def test_languages_and_contexts(guest: Guest) -> None:
    assert await text(guest, "echo $((6 * 7)); whoami", language="bash") == "42\nuser\n"
    assert await text(guest, "const n: number = 6; await Promise.resolve(n * 7)", language="typescript") == "42"
    status, body = await request(guest, "POST", "/contexts", {"cwd": "/tmp"})
    context = json.loads(body)
    assert (status, context["language"], context["cwd"]) == (200, "python", "/tmp")
    assert await text(guest, "x = 1; import os; os.getcwd()", context_id=context["id"]) == "/tmp"
    assert (await request(guest, "POST", f"/contexts/{context['id']}/restart"))[0] == 200
    assert await text(guest, "'x' in globals()", context_id=context["id"]) == "False"
    assert (await request(guest, "DELETE", f"/contexts/{context['id']}"))[0] == 204
    assert await shell(guest, "npm --version && node --version && python3 -m pip check")


async def test_a_client_that_leaves_interrupts_and_the_state_stays(guest: Guest) -> None:
    context = json.loads((await request(guest, "POST", "/contexts", {}))[1])["id"]
    body = json.dumps({"code": "kept = 5\nprint('on')\nwhile True: pass", "context_id": context}).encode()
    stream = await guest.connect(49999)
    await stream.write(b"POST /execute HTTP/1.1\r\nHost: guest\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    said = b""
    while b'"on' not in said:
        said += await stream.read()
    stream.close()
    assert await text(guest, "kept", context_id=context) == "5"


async def test_variables_survive_a_pause_and_ten_copies_draw_their_own_numbers(engine: Engine, interpreter: Sandbox, guest: Guest) -> None:
    await run_code(guest, "kept = {'a': 1}\nimport random, numpy")
    await engine.agent.pause(interpreter.id)
    await engine.agent.resume(interpreter.id)
    guest = await interpreter.guest()
    assert await text(guest, "kept['a'], In[1][:4]") == "(1, 'kept')"
    await run_code(guest, "random.seed(1); numpy.random.seed(1)")
    copies = await engine.agent.fork(interpreter.id, 10)
    drawn = [json.loads((await text(await copy.guest(), DRAW)).replace("'", '"')) for copy in copies]
    for numbers in zip(*drawn, strict=True):
        assert len(set(numbers)) == 10
    assert [await text(await copy.guest(), "kept['a']") for copy in copies] == ["1"] * 10


WORK = """
import os, random, threading, time
def work():
    random.seed(1)
    state = random.getstate()
    while random.getstate() == state and not os.path.exists('go'):
        time.sleep(0.01)
    with open('drawn.new', 'w') as file:
        file.write(str(random.random()))
    os.rename('drawn.new', 'drawn')
threading.Thread(target=work).start()
"""


async def test_what_runs_while_a_copy_is_made_draws_its_own_numbers(engine: Engine, interpreter: Sandbox, guest: Guest) -> None:
    """No cell is run in the copies: the wake itself is what the kernel hears."""
    await run_code(guest, WORK)
    copies = await engine.agent.fork(interpreter.id, 2)
    drawn = [await shell(await copy.guest(), "until [ -e /home/user/drawn ]; do sleep 0.1; done; cat /home/user/drawn") for copy in copies]
    drawn.append(await shell(guest, "touch /home/user/go; until [ -e /home/user/drawn ]; do sleep 0.1; done; cat /home/user/drawn"))
    assert drawn[2] == "0.13436424411240122"  # the source sleeps through nothing: its seed is its own affair
    assert len(set(drawn)) == 3


async def test_two_creates_differ_and_both_names_are_one_template(interpreter_home: Path, engine: Engine) -> None:
    made = [await engine.agent.create(CreateSpec(name, SHAPE)) for name in (NAME, ALIAS)]
    assert [sandbox.record.template for sandbox in made] == [NAME, NAME]
    first, second = [await text(await sandbox.guest(), DRAW) for sandbox in made]
    assert first != second


async def test_a_cold_boot_of_its_disk_has_the_service_again(engine: Engine, interpreter: Sandbox, guest: Guest) -> None:
    await shell(guest, "echo stays > /home/user/file; sync")
    await engine.agent.pause(interpreter.id)
    await engine.agent.cold_boot(interpreter.id)
    guest = await interpreter.guest()
    await shell(guest, "curl -fsS -o /dev/null --retry 600 --retry-delay 1 --retry-connrefused http://127.0.0.1:49999/health")
    assert await text(guest, "open('/home/user/file').read()") == "stays\\n"
