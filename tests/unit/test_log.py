"""Events come out on standard error, one line each, from the level on that was set."""

from collections.abc import Iterator

import pytest

from torpor import log


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = log._least
    yield
    log._least = before


def test_events_below_the_level_are_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("error")
    log.Log().warning("small", size=1)
    assert capsys.readouterr() == ("", "")


def test_an_event_is_one_line_with_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("info")
    log.Log().info("warm_image_building", template="base", size=3)
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert all(word in err for word in ("info", "warm_image_building", "template=base", "size=3"))


def test_an_exception_brings_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise ValueError("odd")
    except ValueError as error:
        log.Log().error("operation_failed", exc_info=error)
    err = capsys.readouterr().err
    assert "operation_failed" in err
    assert "ValueError: odd" in err


def test_without_a_word_from_anybody_only_warnings_are_written(capsys: pytest.CaptureFixture[str]) -> None:
    log._least = log.Level.WARNING
    log.Log().info("quiet")
    log.Log().warning("loud")
    err = capsys.readouterr().err
    assert "loud" in err
    assert "quiet" not in err
