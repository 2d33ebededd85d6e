"""Records: what is written is read again; what is damaged or of a later version is named and left alone."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from torpor.host.record import Records, Running, SandboxRecord, decode, encode
from torpor.model.errors import Corrupt, Incompatible
from torpor.model.sandbox import Condition, EndReason, MachineState, NetworkMode, base36
from torpor.model.shapes import Shape
from torpor.model.snapshots import Fingerprint
from torpor.ports.store import DiskChain
from torpor.ports.vmm import Handle


def record(number: int = 7) -> SandboxRecord:
    running = Running(4, "vm-4", "a", "m", "disk-4.qcow2", 7_602_177, "slot-1", Fingerprint({"cpu": "max"}, {"qemu": "10"}), Handle(1, "qemu", "x", {"pid": 9}))
    return SandboxRecord(
        id=base36(number),
        template="base",
        shape=Shape(2, 1024, 4096),
        network=NetworkMode.ON,
        state=MachineState.READY,
        created_at=1.5,
        changed_at=2.5,
        generation=4,
        disk=DiskChain("d" * 64, ("l1", "l2"), 4 << 30),
        artefact_id="a",
        running=running,
        end_reason=EndReason.OOM,
        end_note="n",
        hostname="h",
        names={"k": "v"},
        leash=(12, 34),
        conditions={Condition.DISK_NOT_GROWN: "why", Condition.HOST_DISK_FULL: "still"},
    )


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.write(record())
    found, damaged = records.load()
    assert found == [record()]
    assert damaged == {}


def test_a_record_from_before_conditions_is_read(tmp_path: Path) -> None:
    tree = json.loads(encode(record(), 3))
    del tree["sandbox"]["conditions"]
    assert decode(json.dumps(tree).encode(), tmp_path / "record.json") == (replace(record(), conditions={}), 3)


@pytest.mark.parametrize("text", [b"", b"{}", b"[1]", b'{"format": 1}', b'{"format": 1, "sandbox": {"id": "../../etc"}}', b"\xff\xfe"])
def test_a_damaged_record_is_named(text: bytes, tmp_path: Path) -> None:
    with pytest.raises(Corrupt, match=r"record\.json"):
        decode(text, tmp_path / "record.json")


def test_a_record_of_a_later_version_is_refused_not_guessed(tmp_path: Path) -> None:
    later = json.loads(encode(record())) | {"format": 2}
    with pytest.raises(Incompatible):
        decode(json.dumps(later).encode(), tmp_path / "record.json")


def test_one_damaged_record_does_not_hide_the_others(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.write(record(1))
    records.write(record(2))
    for name in ("record.json", "record.json.new"):
        (records.directory(base36(1)) / name).write_text("{")
    found, damaged = records.load()
    assert [one.id for one in found] == [base36(2)]
    assert list(damaged) == [records.directory(base36(1))]
    assert (records.directory(base36(1)) / "record.json").read_text() == "{"


@pytest.mark.parametrize("left", ["half", "older"])
def test_of_what_a_power_cut_leaves_the_later_readable_record_counts(left: str, tmp_path: Path) -> None:
    """The exchange of the two files reached the disk, the bytes of the new record did not: record.json is half a record, or one before the last."""
    records = Records(tmp_path)
    for generation in (1, 2, 3):
        records.write(replace(record(), generation=generation))
    current, spare = (records.directory(record().id) / name for name in ("record.json", "record.json.new"))
    if left == "half":
        current.write_bytes(current.read_bytes()[:100])
        expected = 2
    else:
        older, newer = spare.read_bytes(), current.read_bytes()
        current.write_bytes(older)
        spare.write_bytes(newer)
        expected = 3
    again = Records(tmp_path)
    found, damaged = again.load()
    assert [one.generation for one in found] == [expected]
    assert damaged == {}
    again.write(replace(record(), generation=9))
    assert [one.generation for one in Records(tmp_path).load()[0]] == [9]
