import errno
import fcntl
import mmap
import os
import signal
import socket
from pathlib import Path

import pytest

from torpor.durable import files
from torpor.model.errors import NoPermission, NoSpace


def test_replace_changes_the_content_and_leaves_no_second_file(tmp_path: Path) -> None:
    path = tmp_path / "record"
    files.replace(path, b"one")
    files.replace(path, b"two", 0o600)
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["record"]


def test_replace_clears_what_a_killed_one_left(tmp_path: Path) -> None:
    (tmp_path / "record.new").write_bytes(b"half")
    files.replace(tmp_path / "record", b"whole")
    assert os.listdir(tmp_path) == ["record"]


def test_write_new_refuses_an_existing_file(tmp_path: Path) -> None:
    files.write_new(tmp_path / "a", b"x")
    with pytest.raises(FileExistsError):
        files.write_new(tmp_path / "a", b"y")
    assert (tmp_path / "a").read_bytes() == b"x"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_no_space_and_says_what_was_done(number: int) -> None:
    with pytest.raises(NoSpace, match="while baking") as caught, files.disk_errors("baking"):
        raise OSError(number, os.strerror(number))
    assert "Free space" in caught.value.mend


def test_other_refusals_keep_their_kind() -> None:
    with pytest.raises(NoPermission), files.disk_errors("baking"):
        raise PermissionError(errno.EACCES, "denied", "/x")
    with pytest.raises(OSError, match="I/O"), files.disk_errors("baking"):
        raise OSError(errno.EIO, "I/O")


def test_allocated_counts_blocks_not_length(tmp_path: Path) -> None:
    sparse = tmp_path / "sparse"
    sparse.touch()
    os.truncate(sparse, 1 << 30)
    assert files.allocated(sparse) == 0
    assert files.allocated(tmp_path / "none") == 0


def test_a_writer_is_seen_wherever_it_hides(tmp_path: Path) -> None:
    path = tmp_path / "layer"
    path.write_bytes(b"x" * mmap.PAGESIZE)
    with path.open("rb") as reading:
        assert not files.has_writer(reading.fileno())
        with path.open("r+b") as writing:
            assert files.has_writer(reading.fileno())
            view = mmap.mmap(writing.fileno(), 0)
            left, right = socket.socketpair()
            socket.send_fds(left, [b"x"], [writing.fileno()])
        assert files.has_writer(reading.fileno()), "in a mapping, and on its way through a socket"
        view.close()
        assert files.has_writer(reading.fileno()), "on its way through a socket"
        for end in (left, right):
            end.close()
        assert not files.has_writer(reading.fileno())
        with path.open("rb"), mmap.mmap(reading.fileno(), 0, flags=mmap.MAP_PRIVATE):
            assert not files.has_writer(reading.fileno()), "readers, and a private mapping, are none"


def test_who_comes_to_write_in_the_moment_of_the_look_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease that is broken is told by a signal, which must not be the one that ends us."""
    path = tmp_path / "layer"
    path.write_bytes(b"x")
    told: list[int] = []
    real = fcntl.fcntl

    def meddled(fd: int, command: int, argument: int = 0) -> int:
        result = real(fd, command, argument)
        if (command, argument) == (fcntl.F_SETLEASE, fcntl.F_RDLCK):
            with pytest.raises(BlockingIOError):
                os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        return result

    monkeypatch.setattr(fcntl, "fcntl", meddled)
    before = {number: signal.signal(number, lambda number, _: told.append(number)) for number in (signal.SIGIO, signal.SIGURG)}
    try:
        with path.open("rb") as reading:
            assert not files.has_writer(reading.fileno())
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert told == [signal.SIGURG]
