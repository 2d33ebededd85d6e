"""What a guest says of its wake decides whether it may be used: most failed steps forbid it, two kinds are told and borne."""

from __future__ import annotations

from pathlib import Path

import pytest

from torpor.guestlink.channel import Channel
from torpor.guestlink.guest import RemoteGuest
from torpor.model.errors import GuestProtocolError


def welcomed(failures: object) -> RemoteGuest:
    channel = Channel(Path("nowhere"))
    channel.welcome = {"failures": failures}
    return RemoteGuest(channel)


def test_a_file_system_that_did_not_grow_is_told() -> None:
    guest = welcomed([{"step": "disk", "kind": "os", "errno": 30, "message": "Read-only file system", "path": ""}])
    guest.check_wake()
    assert guest.disk_fault == "Read-only file system"


def test_a_hook_that_failed_is_borne_and_no_fault_of_the_disk() -> None:
    guest = welcomed([{"step": "/etc/torpor/wake.d/one", "status": 256}])
    guest.check_wake()
    assert guest.disk_fault == ""


@pytest.mark.parametrize("failures", [None, []])
def test_nothing_failed(failures: object) -> None:
    guest = welcomed(failures)
    guest.check_wake()
    assert guest.disk_fault == ""


@pytest.mark.parametrize(
    "failures",
    [[{"step": "entropy", "message": "no"}], [{"step": "disk", "message": "no"}, {"step": "clock", "message": "no"}], ["disk"], {"step": "disk"}, "all"],
)
def test_any_other_failure_forbids_its_use(failures: object) -> None:
    with pytest.raises(GuestProtocolError, match="could not wake"):
        welcomed(failures).check_wake()
