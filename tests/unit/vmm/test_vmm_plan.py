"""The plan: golden command lines, and the promises that are readable from them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from torpor.model.errors import InvalidInput
from torpor.model.shapes import Shape
from torpor.ports.vmm import Accelerator, ColdBoot, DiskSpec, LaunchSpec, Restore
from torpor.vmm.qemu import plan

GOLDEN = Path(__file__).parent / "golden"
RESTORE = LaunchSpec(
    machine_id="m1",
    shape=Shape(2, 512, 4096),
    profile=1,
    boot=Restore(Path("/store/memory"), Path("/store/state")),
    disk=DiskSpec(Path("/run/m1/disk.qcow2"), (Path("/store/layer.qcow2"), Path("/store/base.raw"))),
    agent_disk=Path("/store/agent.img"),
    run_dir=Path("/run/m1"),
)
COLD = replace(RESTORE, boot=ColdBoot(Path("/boot/vmlinuz"), Path("/boot/initrd"), "console=ttyS0 quiet", Path("/store/memory")))


def planned(spec: LaunchSpec, accelerator: Accelerator = Accelerator.TCG) -> plan.Plan:
    return plan.make_plan(spec, Path("/usr/bin/qemu-system-x86_64"), accelerator, Path("/store/memory"), 2_596_138)


def blocks(made: plan.Plan) -> dict[str, dict[str, object]]:
    nodes = [json.loads(made.argv[i + 1]) for i, word in enumerate(made.argv) if word == "-blockdev"]
    return {node["node-name"]: node for node in nodes}


def value_of(made: plan.Plan, option: str) -> str:
    return made.argv[made.argv.index(option) + 1]


@pytest.mark.parametrize(
    ("name", "spec", "accelerator"),
    [
        ("restore-tcg", RESTORE, Accelerator.TCG),
        ("restore-kvm-tap", replace(RESTORE, netns=Path("/run/netns/x"), tap_fd=9), Accelerator.KVM),
        ("cold-tcg", COLD, Accelerator.TCG),
    ],
)
def test_golden(name: str, spec: LaunchSpec, accelerator: Accelerator) -> None:
    """Profile 1 is fixed for ever: a changed device line strands every snapshot, so a new golden file needs a new profile."""
    assert "\n".join(planned(spec, accelerator).argv) + "\n" == (GOLDEN / f"{name}.txt").read_text()


def test_a_restored_memory_file_cannot_be_written() -> None:
    backend = json.loads(value_of(planned(RESTORE), "-object"))
    assert (backend["share"], backend["readonly"], backend["rom"]) == (False, True, "off")
    assert json.loads(value_of(planned(COLD), "-object"))["share"] is True


def test_only_the_overlay_is_writable_and_every_format_is_explicit() -> None:
    nodes = blocks(planned(RESTORE))
    assert [name for name, node in nodes.items() if node.get("read-only") is False] == ["root-0"]
    assert {node["driver"] for node in nodes.values()} == {"qcow2", "raw", "null-co"}
    assert nodes["root-0"]["backing"] == "layer-0"
    assert nodes["layer-0"]["backing"] == "layer-1"
    assert "backing" not in nodes["layer-1"]


def test_a_qcow2_base_has_no_backing_whatever_its_header_says() -> None:
    spec = replace(RESTORE, disk=replace(RESTORE.disk, base_format="qcow2"))
    assert blocks(planned(spec))["layer-1"]["backing"] is None


def test_flushes_reach_the_disk_only_when_asked() -> None:
    for strict in (False, True):
        node = blocks(planned(replace(RESTORE, cache_strict=strict)))["root-0"]
        assert node["cache"] == {"direct": False, "no-flush": not strict}


def test_devices_are_the_same_cold_restored_with_and_without_a_tap() -> None:
    def devices(spec: LaunchSpec) -> list[str]:
        argv = planned(spec).argv
        return [argv[i + 1].removesuffix(",netdev=net") for i, word in enumerate(argv) if word == "-device"]

    tapped = replace(RESTORE, netns=Path("/run/netns/x"), tap_fd=9)
    assert devices(RESTORE) == devices(COLD) == devices(tapped)


def test_paths_with_commas_stay_one_path() -> None:
    odd = replace(RESTORE, agent_disk=Path("/store/a,b=c.img"))
    assert blocks(planned(odd))["agent"]["file"]["filename"] == "/store/a,b=c.img"  # type: ignore[index]


def test_a_tcg_guest_is_told_its_counter_frequency() -> None:
    assert value_of(planned(COLD), "-append") == "console=ttyS0 quiet tsc_early_khz=2596138"
    assert value_of(planned(COLD, Accelerator.KVM), "-append") == "console=ttyS0 quiet"
    assert "-append" not in planned(RESTORE).argv


def test_files_name_what_is_opened() -> None:
    files = dict(planned(COLD).files)
    assert files[Path("/store/memory")] is True
    assert files[Path("/boot/vmlinuz")] is False
    assert dict(planned(RESTORE).files)[Path("/store/memory")] is False
    assert Path("/store/base.raw") in files


def test_an_unknown_profile_is_refused() -> None:
    with pytest.raises(InvalidInput, match="profile 2"):
        planned(replace(RESTORE, profile=2))
