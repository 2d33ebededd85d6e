"""The local protocol: frames survive any cutting, hostile frames are refused, every error of the tree comes out as it went in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.model import errors
from torpor.model.errors import (
    AccountReason,
    AccountRefused,
    Corrupt,
    Denied,
    DenyReason,
    GuestOSError,
    HostUnavailable,
    Incompatible,
    Overloaded,
    RateLimited,
    TorporError,
    Undelivered,
)
from torpor.wire.host import Decoder, decode_error, encode, encode_error

headers = st.dictionaries(st.text(max_size=8), st.integers() | st.text(max_size=20) | st.none(), max_size=4)


@given(st.lists(st.tuples(headers, st.binary(max_size=200)), max_size=8), st.lists(st.integers(1, 50), min_size=1))
def test_frames_survive_any_cutting(frames: list[tuple[dict[str, object], bytes]], cuts: list[int]) -> None:
    stream = b"".join(encode(header, body) for header, body in frames)
    decoder, seen, at, turn = Decoder(), [], 0, 0
    while at < len(stream):
        step = cuts[turn % len(cuts)]
        seen += decoder.feed(stream[at : at + step])
        at, turn = at + step, turn + 1
    assert seen == frames


@pytest.mark.parametrize(
    "hostile",
    [
        b"\xff\xff\xff\xff\x00\x00\x00\x01x",
        b"\x00\x00\x00\x05\x00\x00\x00\x09x",
        b"\x00\x00\x00\x05\x00\x00\x00\x01{",
        b"\x00\x00\x00\x06\x00\x00\x00\x02[]",
    ],
)
def test_a_frame_that_no_peer_sends_is_corrupt(hostile: bytes) -> None:
    with pytest.raises(Corrupt):
        list(Decoder().feed(hostile))


def every_error() -> list[TorporError]:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, TorporError) and "code" in vars(kind)]
    special: dict[type[TorporError], TorporError] = {
        Denied: Denied(DenyReason.BUSY, "m", mend="d"),
        AccountRefused: AccountRefused(AccountReason.WRONG_PASSWORD, "m", mend="d"),
        Incompatible: Incompatible("m", {"cpu": ("a", "b")}, mend="d"),
        GuestOSError: GuestOSError(2, "m", "/x"),
        HostUnavailable: HostUnavailable("m", 7, mend="d"),
        Overloaded: Overloaded("m", 8, mend="d"),
        RateLimited: RateLimited("m", 9, mend="d"),
        Undelivered: Undelivered("m", 2.5, mend="d"),
    }
    return [special.get(kind) or kind("m", mend="d") for kind in kinds]


@pytest.mark.parametrize("error", every_error(), ids=lambda error: type(error).__name__)
def test_every_error_comes_out_as_it_went_in(error: TorporError) -> None:
    again = decode_error(encode_error(error))
    assert again.code == error.code
    assert (again.message, again.mend) == (error.message, error.mend)
    assert vars(again) == vars(error)


def test_codes_are_not_shared() -> None:
    codes = [error.code for error in every_error() if type(error) not in (TorporError,) and error.code != "internal"]
    assert len(codes) == len(set(codes))
