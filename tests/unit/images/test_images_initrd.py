"""The initial RAM disk."""

import subprocess
from pathlib import Path

from torpor.images import initrd, recipes

MODULES = {"virtio_ring": b"ring", "virtio-rng": b"r" * 4097}


def test_busybox_unpacks_what_was_packed(tmp_path: Path) -> None:
    archive = initrd.build(b"the busybox", MODULES)
    subprocess.run(["busybox", "cpio", "-idm"], input=archive, cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "bin/busybox").read_bytes() == b"the busybox"
    assert (tmp_path / "lib/virtio-rng.ko").read_bytes() == b"r" * 4097
    assert (tmp_path / "init").stat().st_mode & 0o777 == 0o755
    assert all((tmp_path / name).is_dir() for name in ("dev", "proc", "sys", "root"))


def test_the_same_contents_make_the_same_bytes() -> None:
    assert initrd.build(b"b", MODULES) == initrd.build(b"b", dict(MODULES))
    assert initrd.build(b"b", MODULES) != initrd.build(b"c", MODULES)
    assert len(initrd.build(b"b", MODULES)) % 4 == 0


def test_the_script_is_a_shell_script_that_loads_in_order_and_hands_over() -> None:
    script = initrd.init_script(recipes.KERNEL_MODULES)
    subprocess.run(["busybox", "sh", "-n"], input=script.encode(), check=True)
    assert "for m in virtio_ring virtio virtio_mmio virtio_blk failover net_failover virtio_net virtio_console virtio-rng; do" in script
    assert script.splitlines()[-1] == (
        "exec $B switch_root /root /run/torpor/agent/lib/ld-linux-x86-64.so.2 --library-path /run/torpor/agent/lib"
        " /run/torpor/agent/bin/python3 -I -S -B /run/torpor/agent/app/__main__.py"
    )
    assert "sleep" not in script
