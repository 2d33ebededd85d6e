"""Cells through /execute: what they print, show and raise, in every language, and what is refused."""

from __future__ import annotations

import itertools
import json
import threading
from typing import Any

import httpx
import pytest
from interpreter_world import Service, sdk_models


def test_the_first_cell_is_number_one_and_variables_stay(service: Service, context: str) -> None:
    first = service.run("x = 20\nx + 1", context_id=context)
    assert (first.text, first.count, first.error) == ("21", 1, None)
    second = service.run("x", context_id=context)
    assert (second.text, second.count) == ("20", 2)


def test_output_comes_in_the_order_of_the_code(service: Service, context: str) -> None:
    code = "import os, sys\nprint('a')\ndisplay(1)\nos.write(1, b'b\\n')\nprint('c', end='')\ndisplay(2)\n!echo d\nprint('é' * 3, file=sys.stderr)"
    run = service.run(code, context_id=context)
    said = [(line["type"], line["text"]) for line in run.lines if line["type"] in ("stdout", "result")]
    runs = [(kind, "".join(text for _, text in group)) for kind, group in itertools.groupby(said, key=lambda one: one[0])]
    assert runs == [("stdout", "a\n"), ("result", "1"), ("stdout", "b\nc"), ("result", "2"), ("stdout", "d\n")]
    assert run.err == "ééé\n"
    assert all(line["timestamp"] > 1.6e18 for line in run.lines if line["type"] == "stdout")


def test_output_streams_while_the_cell_runs(service: Service, context: str) -> None:
    code = "print('first')\nimport time, os\nwhile not os.path.exists('go'): time.sleep(0.01)\nos.remove('go')\nprint('second')"
    with service.client.stream("POST", "/execute", json={"code": code, "context_id": context}) as response:
        lines = response.iter_lines()
        seen = [json.loads(next(lines)) for _ in range(2)]
        assert seen[1]["text"] == "first\n"
        service.run("open('go', 'w').close()", language="python")
        assert [json.loads(line)["text"] for line in lines] == ["second\n"]


def test_an_error_has_name_value_and_traceback(service: Service, context: str) -> None:
    run = service.run("def f():\n    return 1 / 0\nprint('before')\nf()\nprint('after')", context_id=context)
    assert run.error is not None
    assert (run.error["name"], run.error["value"], run.out) == ("ZeroDivisionError", "division by zero", "before\n")
    assert "return 1 / 0" in run.error["traceback"]
    assert "\x1b" not in run.error["traceback"]
    assert service.run("def broken(:", context_id=context).error["name"] == "SyntaxError"
    assert service.run("import sys; sys.exit(3)", context_id=context).error["name"] == "SystemExit"
    assert service.run("input('name?')", context_id=context).error["name"] == "EOFError"
    assert service.run("'still ' + 'here'", context_id=context).text == "still here"


def test_both_ways_of_asyncio_work_and_tasks_run_on(service: Service, context: str) -> None:
    code = "import asyncio\nasync def say():\n    await asyncio.sleep(0.01)\n    return 'said'\n"
    assert service.run(code + "await say()", context_id=context).text == "said"
    assert service.run("asyncio.run(say())", context_id=context).text == "said"
    service.run("task = asyncio.get_event_loop().create_task(say()); await asyncio.sleep(0)", context_id=context)
    done = None
    while done != "True":
        done = service.run("task.done()", context_id=context).text


def test_variables_of_one_call_and_of_one_context(service: Service, context: str) -> None:
    assert service.run("import os; os.environ['ONE']", context_id=context, env_vars={"ONE": "1"}).text == "1"
    assert service.run("os.environ.get('ONE', 'none')", context_id=context).text == "none"
    bash = service.context(language="bash", cwd="/")
    assert service.run("pwd; echo $ONE", context_id=bash, env_vars={"ONE": "a'b c"}).out == "/\na'b c\n"
    assert service.run("echo ${ONE-none}", context_id=bash).out == "none\n"
    script = service.context(language="javascript")
    assert service.run("process.env.ONE", context_id=script, env_vars={"ONE": "1"}).text == "1"
    assert service.run("process.env.ONE === undefined", context_id=script).text == "true"


def test_bash_keeps_its_state_and_tells_the_status(service: Service) -> None:
    context = service.context(language="bash")
    assert service.run('x=5; f() { echo "f $1"; }; cd /tmp', context_id=context).error is None
    assert service.run("f $x; pwd; cat <<END\nlines\nEND", context_id=context).out == "f 5\n/tmp\nlines\n"
    failed = service.run("ls /nowhere; false", context_id=context)
    assert failed.error is not None
    assert (failed.error["name"], failed.error["value"]) == ("ExitError", "exit status 1")
    assert "/nowhere" in failed.err
    for broken in ("echo 'open", "if then"):
        assert service.run(broken, context_id=context).error is not None
    assert service.run("echo $x; cat", context_id=context).out == "5\n"
    assert service.run("exit 4", context_id=context).error["name"] == "KernelDied"
    assert service.run("echo ${x-new}", context_id=context).out == "new\n"


def test_javascript_and_typescript(service: Service) -> None:
    script, typed = service.context(language="js"), service.context(language="typescript")
    assert service.run("const a = 1; let o = {a}; o", context_id=script).text == "{ a: 1 }"
    assert service.run("console.log('out'); console.error('err'); await Promise.resolve(a + 1)", context_id=script).text == "2"
    run = service.run("console.log('x'.repeat(300000)); throw new TypeError('bad')", context_id=script)
    assert len(run.out) == 300001
    assert (run.error["name"], run.error["value"]) == ("TypeError", "bad")
    assert service.run("const n: number = 2; n as number", context_id=typed).text == "2"
    assert service.run("require('node:path').basename('/a/b')", context_id=script).text == "b"
    shown = service.run("display({'text/html': '<b>x</b>'})", context_id=script).results
    assert [result["html"] for result in shown] == ["<b>x</b>"]


@pytest.mark.parametrize(
    ("language", "forever", "after"),
    [
        ("python", "x = 7; print('on')\nwhile True: pass", "x"),
        ("python", "x = 7; print('on')\nimport time\ntime.sleep(1000)", "x"),
        ("python", "x = 7; print('on')\nimport asyncio\nawait asyncio.sleep(1000)", "x"),
        ("python", "x = 7; print('on')\n!sleep 1000", "x"),
        ("bash", "x=7; echo on; f() { while :; do sleep 0.1; done; }; f", "echo $x"),
        ("javascript", "globalThis.x = 7; console.log('on'); while (true) {}", "x"),
        ("javascript", "globalThis.x = 7; console.log('on'); await new Promise(() => {})", "x"),
    ],
)
def test_a_client_that_leaves_interrupts_its_cell_and_the_state_stays(service: Service, language: str, forever: str, after: str) -> None:
    context = service.context(language=language)
    with service.client.stream("POST", "/execute", json={"code": forever, "context_id": context}) as response:
        lines = response.iter_lines()
        while json.loads(next(lines))["type"] != "stdout":
            pass
    run = service.run(after, context_id=context)
    assert (run.text or run.out.strip(), run.error) == ("7", None)
    service.client.delete(f"/contexts/{context}")


def test_an_interrupt_by_request_is_an_error_of_the_cell(service: Service, context: str) -> None:
    lines: list[dict[str, Any]] = []
    with service.client.stream("POST", "/execute", json={"code": "print('on')\nimport time\ntime.sleep(1000)", "context_id": context}) as response:
        for line in response.iter_lines():
            lines.append(json.loads(line))
            if lines[-1]["type"] == "stdout":
                assert httpx.post(f"http://127.0.0.1:{service.port}/contexts/{context}/interrupt").status_code == 204
    assert lines[-1]["type"] == "error"
    assert lines[-1]["name"] == "KeyboardInterrupt"


def test_cells_of_one_context_take_turns_and_those_of_two_do_not(service: Service, context: str) -> None:
    other = service.context()
    ended: list[str] = []

    def run(code: str, name: str, where: str) -> None:
        service.run(code, context_id=where)
        ended.append(name)

    wait = "import os, time\nwhile not os.path.exists('turn'): time.sleep(0.01)"
    threads = [threading.Thread(target=run, args=(wait, "first", context))]
    threads[0].start()
    while "busy" not in httpx.get(f"{service.jupyter}/api/kernels/{context}").text:
        pass
    threads.append(threading.Thread(target=run, args=("1", "second", context)))
    threads[1].start()
    run("open('turn', 'w').close()", "other", other)
    for thread in threads:
        thread.join()
    service.run("import os; os.remove('turn')", context_id=other)
    assert ended == ["other", "first", "second"] or ended == ["first", "other", "second"]


def test_a_kernel_that_dies_says_so_and_the_next_cell_has_a_new_one(service: Service, context: str) -> None:
    run = service.run("print('last words')\nimport os, signal\nos.kill(os.getpid(), signal.SIGKILL)", context_id=context)
    assert run.out == "last words\n"
    assert run.error is not None
    assert (run.error["name"], "SIGKILL" in run.error["value"]) == ("KernelDied", True)
    after = service.run("'x' in globals()", context_id=context)
    assert (after.text, after.count) == ("False", 1)


def test_contexts_are_listed_restarted_and_removed(service: Service) -> None:
    made = service.client.post("/contexts", json={"language": "python", "cwd": "/tmp"}).json()
    assert made == {"id": made["id"], "language": "python", "cwd": "/tmp"}
    assert made in service.client.get("/contexts").json()
    assert service.run("x = 1\nimport os\nos.getcwd()", context_id=made["id"]).text == "/tmp"
    assert service.client.post(f"/contexts/{made['id']}/restart").status_code == 200
    assert service.run("'x' in globals()", context_id=made["id"]).text == "False"
    assert service.client.delete(f"/contexts/{made['id']}").status_code == 204
    assert made not in service.client.get("/contexts").json()
    for method, path in (("POST", f"/contexts/{made['id']}/restart"), ("DELETE", f"/contexts/{made['id']}"), ("POST", "/execute")):
        response = service.client.request(method, path, json={"code": "1", "context_id": made["id"]})
        assert response.status_code == 404
        assert made["id"] in response.json()["message"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/execute", b"{"),
        ("/execute", b"[]"),
        ("/execute", b"{}"),
        ("/execute", b'{"code": 1}'),
        ("/execute", b'{"code": "1", "context_id": "a", "language": "python"}'),
        ("/execute", b'{"code": "1", "language": "cobol"}'),
        ("/execute", b'{"code": "1", "env_vars": {"A=B": "1"}}'),
        ("/contexts", b'{"language": 1}'),
        ("/contexts", b'{"language": "cobol"}'),
        ("/contexts", b'{"cwd": "/nowhere"}'),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(service: Service, path: str, body: bytes) -> None:
    before = service.client.get("/contexts").json()
    response = service.client.post(path, content=body)
    assert response.status_code == 400
    assert response.json()["message"]
    assert service.client.get("/contexts").json() == before


def test_a_slow_reader_holds_the_cell_up_and_nothing_is_lost(service: Service, context: str) -> None:
    code = "for number in range(400): print(f'{number:06}' * 10000)"
    with service.client.stream("POST", "/execute", json={"code": code, "context_id": context}) as response:
        text = "".join(json.loads(line).get("text", "") for line in response.iter_lines())
    assert [int(line[:6]) for line in text.splitlines()] == list(range(400))
    assert all(len(line) == 60000 for line in text.splitlines())


def test_the_published_models_read_every_line(service: Service, context: str) -> None:
    models, _ = sdk_models()
    code = "print('o')\nimport sys\nprint('e', file=sys.stderr)\ndisplay({'application/json': {'a': 1}, 'x/y': 'z'}, raw=True)\n1 + 1"
    execution = models.Execution()
    for line in service.lines(code, context_id=context):
        models.parse_output(execution, json.dumps(line))
    assert (execution.text, execution.execution_count, execution.error) == ("2", 1, None)
    assert (execution.logs.stdout, execution.logs.stderr) == (["o\n"], ["e\n"])
    assert execution.results[0].json == {"a": 1}
    assert execution.results[0].extra == {"x/y": "z"}


def test_a_rehearsal_leaves_nothing_and_is_refused_after_the_first_cell(own_service: Service) -> None:
    assert own_service.client.get("/health").status_code == 200
    assert len(own_service.client.get("/contexts").json()) == 1
    assert own_service.client.post("/rehearse").status_code == 200
    run = own_service.run("len(In), 'x' in globals()")
    assert (run.text, run.count) == ("(2, False)", 1)
    assert own_service.client.post("/rehearse").status_code == 409
