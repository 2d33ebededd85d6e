"""The jail from inside and outside, with real namespaces and cgroups."""

from __future__ import annotations

import os
import select
import subprocess
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from torpor.model.errors import HostError
from torpor.ports.processes import Bind, ChildSpec, Jail, Limits
from torpor.proc import LocalProcesses
from torpor.proc.keeper.cgroups import PARENT, hierarchies

pytestmark = pytest.mark.root

UID = 64002
BUSYBOX = Path("/bin/busybox")
LIMITS = Limits(64 << 20, 1.0, 16)


@pytest.fixture
async def processes(tmp_path: Path) -> AsyncIterator[LocalProcesses]:
    home = LocalProcesses(tmp_path)
    await home.open()
    yield home
    home.close()


def jailed(tmp_path: Path, script: str, *binds: Bind, **fields: object) -> ChildSpec:
    """busybox is static: the jail needs nothing else to run it."""
    jail = replace(Jail((Bind(BUSYBOX, "/bin/busybox"), *binds), LIMITS, uid=UID), **fields)  # type: ignore[arg-type]
    return ChildSpec("jailed", ["/bin/busybox", "sh", "-c", script], tmp_path / "exit", tmp_path / "out", jail=jail)


async def run(processes: LocalProcesses, spec: ChildSpec) -> str:
    child = await processes.spawn(spec)
    await child.wait()
    return spec.output.read_text()


def cgroups_left() -> list[Path]:
    return [path for mount in hierarchies().values() for path in (Path(mount) / PARENT).glob("*-jailed")]


async def test_it_sees_only_its_files(processes: LocalProcesses, tmp_path: Path) -> None:
    shown = tmp_path / "shown"
    shown.write_text("text")
    shown.chmod(0o444)
    script = 'busybox() { /bin/busybox "$@"; }; busybox ls /; busybox ls /dev; busybox cat /in/file; busybox id -u; busybox id -G; busybox hostname'
    out = await run(processes, jailed(tmp_path, script, Bind(shown, "/in/file")))
    assert out.split() == ["bin", "dev", "in", "proc", "tmp", "null", "urandom", "zero", "text" + str(UID), str(UID), "torpor"]


async def test_what_is_bound_read_only_cannot_be_written(processes: LocalProcesses, tmp_path: Path) -> None:
    for name, mode in (("closed", 0o777), ("open", 0o777)):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(mode)
    script = "echo x > /closed/file; echo x > /open/file; echo x > /file; echo x > /bin/busybox"
    await run(processes, jailed(tmp_path, script, Bind(tmp_path / "closed", "/closed"), Bind(tmp_path / "open", "/open", writable=True)))
    assert [path.name for path in (tmp_path / "open").iterdir()] == ["file"]
    assert list((tmp_path / "closed").iterdir()) == []
    assert (tmp_path / "out").read_text().lower().count("read-only file system") >= 2


async def test_it_is_alone_and_powerless(processes: LocalProcesses, tmp_path: Path) -> None:
    script = "/bin/busybox grep -E 'Cap(Prm|Eff|Bnd|Amb)|NoNewPrivs' /proc/self/status; /bin/busybox ls /proc; /bin/busybox cat /proc/net/dev"
    out = await run(processes, jailed(tmp_path, script))
    values = dict(line.split(":\t") for line in out.splitlines() if line.startswith(("Cap", "NoNew")))
    assert {int(value, 16) for key, value in values.items() if key.startswith("Cap")} == {0}
    assert values["NoNewPrivs"] == "1"
    numbers = [word for word in out.split() if word.isdigit() and len(word) < 3]
    assert "1" in numbers
    assert "eth0" not in out


async def test_cgroups_hold_its_limits_and_go_with_it(processes: LocalProcesses, tmp_path: Path) -> None:
    child = await processes.spawn(jailed(tmp_path, "/bin/busybox sleep 1000"))
    seen = {}
    for path in cgroups_left():
        assert str(child.pid) in (path / "cgroup.procs").read_text().split()
        for file in ("memory.limit_in_bytes", "memory.max", "pids.max", "cpu.cfs_quota_us", "cpu.max"):
            if (path / file).exists():
                seen[file.partition(".")[0]] = (path / file).read_text().strip()
    assert seen["memory"] == str(LIMITS.memory_bytes)
    assert seen["pids"] == str(LIMITS.pids)
    assert seen["cpu"] in ("100000", "100000 100000")
    child.kill(9)
    await child.wait()
    assert cgroups_left() == []


async def test_out_of_memory_is_told(processes: LocalProcesses, tmp_path: Path) -> None:
    child = await processes.spawn(jailed(tmp_path, "exec /bin/busybox tail -c 500000000 /dev/zero"))
    record = await child.wait()
    assert record.oom
    assert record.signal == 9


async def test_without_its_keeper_it_still_tells_out_of_memory_and_leaves_no_cgroup(processes: LocalProcesses, tmp_path: Path) -> None:
    """The keeper is killed first; the daemon sees the end by pidfd, reads the counter, and the next keeper sweeps what was still busy."""
    go = tmp_path / "go"
    go.mkdir()
    os.mkfifo(go / "fifo")
    (go / "fifo").chmod(0o666)
    script = "read line < /go/fifo; exec /bin/busybox tail -c 500000000 /dev/zero"
    child = await processes.spawn(jailed(tmp_path, script, Bind(go, "/go", writable=True)))
    keeper = int(Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[1])
    watch = os.pidfd_open(keeper)
    os.kill(keeper, 9)
    select.select([watch], [], [])
    os.close(watch)
    (go / "fifo").write_text("go\n")
    record = await child.wait()
    assert (record.signal, record.oom) == (None, True)
    # nobody reaps an orphan here before its parent init does, so its cgroups may still be busy: a keeper that starts later finds them empty
    while cgroups_left():
        processes.close()
        later = LocalProcesses(tmp_path)
        await later.open()
        later.close()


async def test_a_refused_step_is_named_and_leaves_nothing(processes: LocalProcesses, tmp_path: Path) -> None:
    with pytest.raises(HostError, match="bind /no/such/file"):
        await processes.spawn(jailed(tmp_path, "true", Bind(Path("/no/such/file"), "/x")))
    assert cgroups_left() == []


async def test_it_joins_the_network_namespace_it_is_given(processes: LocalProcesses, tmp_path: Path) -> None:
    holder = subprocess.Popen(["unshare", "-n", "sh", "-c", "echo ready; exec sleep 1000"], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    netns = Path(f"/proc/{holder.pid}/ns/net")
    wanted = os.readlink(netns)
    child = await processes.spawn(jailed(tmp_path, "/bin/busybox sleep 1000", netns=netns))
    assert os.readlink(f"/proc/{child.pid}/ns/net") == wanted
    child.kill(9)
    await child.wait()
    other = await processes.spawn(jailed(tmp_path, "/bin/busybox sleep 1000"))
    assert os.readlink(f"/proc/{other.pid}/ns/net") not in (wanted, os.readlink("/proc/self/ns/net"))
    other.kill(9)
    await other.wait()
    holder.kill()
    holder.wait()


async def test_every_kind_of_confinement_holds_for_root(processes: LocalProcesses) -> None:
    checks = {check.name: check for check in processes.confinement()}
    assert set(checks) == {"own uid", "no new privileges", "namespaces", "cgroup limits"}
    assert checks["own uid"].holds
    assert checks["namespaces"].holds
    assert all(check.holds or check.mend for check in checks.values())
