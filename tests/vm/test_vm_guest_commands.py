"""Commands in a real microVM: users, terminals, deadlines, signals, and output that a later attach finds again."""

from __future__ import annotations

import pytest
from vm_world import collect, python, run, shell

from torpor.apps.engine import Engine
from torpor.host.sandbox import Sandbox
from torpor.model.errors import GuestOSError, InvalidInput, NotFound
from torpor.ports.guest import ExecSpec, Guest, GuestProcess, StreamName, Terminal

pytestmark = [pytest.mark.vm, pytest.mark.root]


class Talk:
    """Reads a command's output bit by bit."""

    def __init__(self, process: GuestProcess) -> None:
        self.output = process.output()
        self.said = b""

    async def until(self, text: bytes) -> bytes:
        """All up to and with `text`; the rest is left for the next call."""
        while text not in self.said:
            self.said += (await anext(self.output)).data
        before, _, self.said = self.said.partition(text)
        return before + text


async def alive(guest: Guest, name: str) -> bool:
    return (await run(guest, "pgrep", "-f", name, user="root")).ok


async def test_real_code_runs(sandbox: Sandbox) -> None:
    guest = await sandbox.guest()
    result = await run(guest, "python3", "-c", "import sys; print(6*7); print('no', file=sys.stderr); sys.exit(3)")
    assert (result.exited.code, result.out, result.err) == (3, "42\n", "no\n")


async def test_the_agent_comes_first_and_what_it_starts_does_not(sandbox: Sandbox) -> None:
    guest = await sandbox.guest()
    assert await shell(guest, "cut -d ' ' -f 19 /proc/1/stat; nice; (nice) & wait") == "-20\n0\n0\n"
    sleeper = await guest.exec(ExecSpec(["sleep", "1000"]))  # now a thread of the agent starts what follows
    assert (await run(guest, "nice", user="user")).out == "0\n"
    await sleeper.kill_tree()


async def test_users(sandbox: Sandbox) -> None:
    guest = await sandbox.guest()
    told = await run(guest, "bash", "-c", 'id -un; id -u; pwd; echo $HOME; echo "$GREETING"', env={"GREETING": "hello"})
    assert told.out == "user\n1000\n/home/user\n/home/user\nhello\n"
    assert (await run(guest, "id", "-un", user="root")).out == "root\n"
    assert (await run(guest, "sudo", "id", "-un")).out == "root\n"
    await shell(guest, "groupadd --gid 4242 painters && usermod --append --groups painters user")
    assert (await run(guest, "id", "-Gn")).out.split() == ["user", "painters"]
    with pytest.raises(InvalidInput, match="nobody-here"):
        await run(guest, "true", user="nobody-here")
    with pytest.raises(GuestOSError) as missing:
        await run(guest, "no-such-program")
    assert missing.value.name == "ENOENT"


async def test_stdin_reaches_the_command_and_ends(sandbox: Sandbox) -> None:
    process = await (await sandbox.guest()).exec(ExecSpec(["sort"], stdin=True))
    await process.write(b"b\na\n" * 20_000)
    await process.close_stdin()
    result = await collect(process)
    assert result.out == "a\n" * 20_000 + "b\n" * 20_000


async def test_a_terminal_has_a_size_and_job_control(sandbox: Sandbox) -> None:
    guest = await sandbox.guest()
    shell = await guest.exec(ExecSpec(["bash", "--norc", "-i"], terminal=Terminal(30, 100), env={"PS1": "", "TERM": "dumb"}))
    talk = Talk(shell)
    await shell.write(b"stty size; tty\n")
    assert b"30 100" in await talk.until(b"/dev/pts/")
    await shell.resize(Terminal(50, 132))
    await shell.write(b"stty size\n")
    await talk.until(b"50 132")
    await shell.write(b"sleep 1000\n")
    await talk.until(b"sleep 1000")
    while not await alive(guest, "^sleep 1000"):
        pass
    await shell.write(b"\x1a")
    await talk.until(b"Stopped")
    await shell.write(b"fg\n")
    while not (await run(guest, "sh", "-c", "ps -o stat= -C sleep | grep -q +")).ok:
        pass  # until it has the terminal
    await shell.write(b"\x03")
    await shell.write(b"echo $((700 + 77)); exit 5\n")
    await talk.until(b"777")
    assert (await shell.wait()).code == 5


DAEMONS = """
setsid sleep 1001 > /dev/null 2>&1 < /dev/null &
(setsid setsid sleep 1002 &) > /dev/null 2>&1 < /dev/null
echo started
sleep 1003
"""


@pytest.mark.parametrize("how", ["deadline", "kill_tree"])
async def test_the_whole_tree_ends_daemons_included(sandbox: Sandbox, how: str) -> None:
    guest = await sandbox.guest()
    process = await guest.exec(ExecSpec(["bash", "-c", DAEMONS], timeout=3.0 if how == "deadline" else None))
    await Talk(process).until(b"started")
    if how == "kill_tree":
        assert await alive(guest, "^sleep 100[12]")
        await process.kill_tree()
    exited = await process.wait()
    assert (exited.signal, exited.timed_out) == (9, how == "deadline")
    while await alive(guest, "^sleep 100"):
        pass


async def test_signals(sandbox: Sandbox) -> None:
    guest = await sandbox.guest()
    process = await guest.exec(ExecSpec(["bash", "-c", "trap 'echo got it; exit 9' TERM; echo ready; while :; do sleep 0.01; done"]))
    await Talk(process).until(b"ready")
    await process.signal(15)
    assert (await process.wait()).code == 9
    await process.signal(15)
    untrapped = await guest.exec(ExecSpec(["sleep", "1000"]))
    await untrapped.signal(2)
    assert (await untrapped.wait()).signal == 2


COUNT = "import sys\nfor n in range(40000): print(f'{n:07}')\nprint('no more', file=sys.stderr); sys.stdin.read()"


async def test_output_is_found_again_over_a_detach_a_pause_and_a_new_session(engine: Engine, sandbox: Sandbox) -> None:
    """No byte lost, none doubled, by offsets."""
    guest = await sandbox.guest()
    process = await guest.exec(ExecSpec(["python3", "-c", COUNT], stdin=True, tag="counter"))
    said = bytearray()
    async for piece in process.output():
        assert piece.offset == len(said)
        said += piece.data
        if len(said) > 50_000:
            break
    process.detach()
    await engine.agent.pause(sandbox.id)
    await engine.agent.resume(sandbox.id)

    guest = await sandbox.guest()
    (listed,) = [info for info in await guest.processes() if info.tag == "counter"]
    assert (listed.exec_id, listed.exited) == (process.exec_id, None)
    again = await guest.attach(process.exec_id, stdout_offset=len(said))
    await again.close_stdin()
    errors = b""
    async for piece in again.output():
        if piece.stream is StreamName.STDOUT:
            assert piece.offset == len(said)
            said += piece.data
        else:
            errors += piece.data
    assert bytes(said) == b"".join(b"%07d\n" % n for n in range(40_000))
    assert errors == b"no more\n"
    assert (await again.wait()).code == 0
    await guest.forget(process.exec_id)
    with pytest.raises(NotFound):
        await guest.attach(process.exec_id)


async def test_a_flood_that_nobody_reads_keeps_its_newest_bytes(sandbox: Sandbox) -> None:
    guest = await sandbox.guest()
    flood = ["python3", "-c", "import sys; sys.stdout.write('x' * 8_000_000 + 'the end')"]
    process = await guest.exec(ExecSpec(flood, output_limit=65536))
    process.detach()
    assert (await process.wait()).code == 0
    await guest.ping()
    again = await guest.attach(process.exec_id)
    pieces = [piece async for piece in again.output()]
    assert b"".join(piece.data for piece in pieces).endswith(b"xthe end")
    assert pieces[0].offset > 7_000_000
    assert pieces[-1].offset + len(pieces[-1].data) == 8_000_007


async def test_ended_children_of_others_are_reaped(sandbox: Sandbox) -> None:
    """As PID 1 the agent inherits orphans."""
    guest = await sandbox.guest()
    await shell(guest, "for n in 1 2 3 4 5; do (true &) ; done")
    zombies = (
        "import os; print([s for s in (open(f'/proc/{p}/stat').read().rpartition(')')[2].split()[0] for p in os.listdir('/proc') if p.isdigit()) if s == 'Z'])"
    )
    assert (await python(guest, zombies)).strip() == "[]"
