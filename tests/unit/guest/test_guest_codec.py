"""The codec of the guest protocol: whatever arrives in whatever pieces, whole frames come out, nothing else does, and no memory grows."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.guest.pump import PieceSender
from torpor.wire import guest as wire

frames = st.builds(
    wire.Frame,
    st.integers(wire.REQUEST, wire.DONE),
    st.just(0),
    st.integers(0, 1 << 40),
    st.integers(0, 1 << 40),
    st.integers(0, wire.MAX_OFFSET - 1),
    st.binary(max_size=300),
    st.none(),
)


def encoded(frame: wire.Frame) -> bytes:
    return wire.encode(frame.type, frame.stream, frame.generation, frame.offset, frame.payload, frame.flags)


def hello(nonce: int = 7, generation: int = 3) -> bytes:
    return wire.encode(wire.HELLO, 0, generation, nonce, b"{}")


def feed(reader: wire.FrameReader, data: bytes, sizes: list[int]) -> list[wire.Frame]:
    """`data` in pieces of `sizes`, over and over."""
    out: list[wire.Frame] = []
    at = step = 0
    while at < len(data):
        size = min(sizes[step % len(sizes)], len(data) - at, len(reader.space()))
        reader.space()[:size] = data[at : at + size]
        out += reader.feed(size)
        at += size
        step += 1
    return out


def guest_reader() -> wire.FrameReader:
    return wire.FrameReader(lambda header: header.type == wire.HELLO, watchful=True)


pieces = st.lists(st.integers(1, 70), min_size=1, max_size=20)


@given(st.lists(frames, max_size=20), pieces)
def test_frames_survive_any_cutting(sent: list[wire.Frame], sizes: list[int]) -> None:
    got = feed(guest_reader(), hello() + b"".join(map(encoded, sent)), sizes)
    assert got[0].type == wire.HELLO
    assert got[1:] == sent


@given(st.binary(max_size=400), frames, st.integers(0, 400), pieces)
def test_a_hello_is_found_behind_garbage_and_half_a_frame(garbage: bytes, broken: wire.Frame, keep: int, sizes: list[int]) -> None:
    stream = hello(1) + garbage.replace(b"\xfa", b"") + encoded(broken)[:keep] + hello(2, generation=9)
    got = feed(guest_reader(), stream, sizes)
    assert (got[-1].type, got[-1].offset, got[-1].generation) == (wire.HELLO, 2, 9)


def test_half_of_the_largest_frame_does_not_swallow_the_hello() -> None:
    half = wire.encode(wire.DATA, 2, 3, 0, bytes(wire.MAX_PAYLOAD))[:40000]
    got = feed(guest_reader(), hello(1) + half + hello(2), [4096])
    assert [f.offset for f in got] == [1, 2]


@pytest.mark.parametrize("size", [1, 7, 4096, 100_000])
def test_half_a_frame_and_a_new_greeting_in_one_read(size: int) -> None:
    """As after a connection that broke in the middle of a frame and came back before the guest read on."""
    half = wire.encode(wire.DATA, 2, 3, 0, bytes(3000))[:1500]
    whole = wire.encode(wire.DATA, 2, 3, 0, b"x")
    got = feed(guest_reader(), hello(1) + whole + half + hello(2) + whole, [size])
    assert [f.offset for f in got if f.type == wire.HELLO] == [1, 2]
    assert [f.type for f in got][-2:] == [wire.HELLO, wire.DATA]


def test_the_host_believes_only_its_own_nonce() -> None:
    reader = wire.FrameReader(lambda header: header.type == wire.WELCOME and header.offset == 5, watchful=False)
    forged = wire.encode(wire.WELCOME, 0, 3, 4, b"{}")
    real = wire.encode(wire.WELCOME, 0, 3, 5, b'{"a":1}')
    got = feed(reader, forged + wire.MAGIC + b"x" * 50 + real, [33])
    assert [f.payload for f in got] == [b'{"a":1}']


def test_a_new_greeting_on_the_same_connection_ends_half_a_frame() -> None:
    reader = wire.FrameReader(lambda header: header.type == wire.WELCOME, watchful=False)
    big = wire.encode(wire.DATA, 2, 3, 0, bytes(60000))
    assert len(feed(reader, wire.encode(wire.WELCOME, 0, 3, 5, b"{}") + big[:30000], [4096])) == 1
    reader.hunting = True
    got = feed(reader, wire.encode(wire.WELCOME, 0, 4, 6, b"{}") + wire.encode(wire.DATA, 2, 4, 0, b"x"), [100])
    assert [f.type for f in got] == [wire.WELCOME, wire.DATA]


def test_magic_in_the_guests_data_is_data() -> None:
    reader = wire.FrameReader(lambda header: header.type == wire.WELCOME, watchful=False)
    data = wire.encode(wire.DATA, 2, 3, 0, wire.MAGIC * 3)
    got = feed(reader, wire.encode(wire.WELCOME, 0, 3, 5, b"{}") + data, [50])
    assert got[1].payload == wire.MAGIC * 3


@given(st.binary(min_size=32, max_size=200).filter(lambda b: b[0] > wire.DONE))
def test_the_host_refuses_a_senseless_header(garbage: bytes) -> None:
    reader = wire.FrameReader(lambda header: header.type == wire.WELCOME, watchful=False)
    with pytest.raises(wire.ProtocolError):
        feed(reader, wire.encode(wire.WELCOME, 0, 3, 5, b"{}") + garbage, [64])


@given(st.lists(st.one_of(st.binary(max_size=100), st.just(wire.MAGIC), st.just(wire.MAGIC[:40])), max_size=12), st.integers(1, 500))
def test_a_guarded_sender_never_shows_the_magic(parts: list[bytes], most: int) -> None:
    data = b"".join(parts)
    sender = wire.GuardedSender()
    sender.write(data)
    raw, payload = b"", b""
    while (frame := sender.pull(2, 3, most)) is not None:
        raw += frame
        payload += frame[wire.HEADER.size :]
    assert payload == data
    assert wire.MAGIC not in raw


class Link:
    """A sender and a receiver with a lossy wire between them."""

    def __init__(self, sender: wire.Sender, receiver: wire.Receiver) -> None:
        self.sender, self.receiver = sender, receiver
        self.got = b""

    def carry(self, frames: int, *, lose_from: int) -> None:
        """Sends up to `frames` frames, of which those from `lose_from` on are lost with the connection."""
        for number in range(frames):
            raw = self.sender.pull(2, 1, 1000)
            if raw is None:
                break
            if number >= lose_from:
                continue
            kind, _, _, length, _, _, offset = wire.HEADER.unpack_from(raw)
            if kind == wire.DATA:
                self.receiver.data(offset, length)
                self.got += raw[wire.HEADER.size :]
            else:
                self.receiver.end(offset)

    def consume(self, count: int) -> None:
        count = min(count, self.receiver.received - self.receiver.consumed)
        if count and self.receiver.consume(count):
            grant = self.receiver.grant(2, 1)
            self.sender.credit(*wire.window_pair(grant[wire.HEADER.size :]))

    def reconnect(self) -> None:
        self.sender.hold()
        raw = self.receiver.resumption(2, 1)
        self.sender.resume(wire.HEADER.unpack_from(raw)[6], *wire.window_pair(raw[wire.HEADER.size :]))


def wide() -> wire.Receiver:
    receiver = wire.Receiver()
    receiver.window = wire.WIDE_WINDOW
    return receiver


senders = pytest.mark.parametrize("ends", [lambda: (wire.Sender(), wire.Receiver()), lambda: (PieceSender(), wide())], ids=["usual", "files"])
Ends = Callable[[], tuple[wire.Sender, wire.Receiver]]


@senders
@given(steps=st.lists(st.tuples(st.binary(max_size=5000), st.integers(0, 8), st.integers(0, 8), st.integers(0, 9000)), max_size=30))
def test_reconnects_neither_lose_nor_double_bytes(ends: Ends, steps: list[tuple[bytes, int, int, int]]) -> None:
    link, written = Link(*ends()), b""
    for data, count, kept, used in steps:
        link.sender.write(data)
        written += data
        link.carry(count, lose_from=kept)
        link.consume(used)
        link.reconnect()
    link.sender.end()
    while not (link.receiver.ended and link.receiver.received == len(written)):
        link.carry(100, lose_from=100)
        link.consume(1 << 30)
    assert link.got == written
    assert link.sender.pending <= link.sender.window
    assert link.sender.top - link.sender.base <= link.sender.pending + 5000  # what was consumed is not kept, but for a piece's beginning


@senders
def test_a_window_that_was_used_is_opened_as_far_as_both_ends_agreed(ends: Ends) -> None:
    link = Link(*ends())
    link.sender.write(bytes(3 * wire.WIDE_WINDOW))
    link.carry(1000, lose_from=1000)
    assert link.receiver.received == wire.WINDOW
    link.consume(wire.WINDOW)
    link.carry(2000, lose_from=2000)
    assert link.receiver.received == wire.WINDOW + link.receiver.window


def test_a_reconnect_before_the_first_byte_was_heard_keeps_the_wide_window() -> None:
    sender = PieceSender()
    sender.write(bytes(wire.WIDE_WINDOW))
    raw = wide().resumption(2, 1)
    sender.resume(wire.HEADER.unpack_from(raw)[6], *wire.window_pair(raw[wire.HEADER.size :]))
    assert sender.limit == wire.WIDE_WINDOW  # the receiver counts on it, and grants nothing before half of it is used


def test_a_credit_beyond_what_was_agreed_is_refused() -> None:
    usual, files = wire.Sender(), PieceSender()
    with pytest.raises(wire.ProtocolError):
        usual.credit(0, wire.WIDE_WINDOW)
    files.credit(0, wire.WIDE_WINDOW)
    with pytest.raises(wire.ProtocolError):
        files.credit(0, wire.WIDE_WINDOW + 1)


class Port:
    """A virtio port: the host's bytes in pieces of at most a page, of which no read gives more than the rest of one."""

    def __init__(self, *parts: bytes) -> None:
        self.pieces = [part[at : at + wire.PAGE] for part in parts for at in range(0, len(part), wire.PAGE)]

    def read(self, place: memoryview) -> int:
        if not self.pieces:
            return 0
        piece = self.pieces.pop(0)
        count = min(len(piece), len(place))
        place[:count] = piece[:count]
        if count < len(piece):
            self.pieces.insert(0, piece[count:])
        return count

    def readv(self, places: list[memoryview]) -> int:
        """As Linux does it for a device that has only `read`."""
        total = 0
        for place in places:
            count = self.read(place)
            total += count
            if count < len(place):
                break
        return total


@given(st.lists(st.integers(0, wire.MAX_PAYLOAD), min_size=1, max_size=8), st.lists(st.integers(1, 200_000), max_size=8), st.integers(0, 70_000))
def test_large_frames_are_read_in_pages(lengths: list[int], cuts: list[int], missing: int) -> None:
    """As the agent reads. The host's connection breaks in the last frame, and a greeting comes in the rest's place: it is found, the half frame is not used."""
    sent = [wire.Frame(wire.DATA, 0, 6, 3, number, bytes([number]) * length) for number, length in enumerate(lengths)]
    raw = hello() + b"".join(map(encoded, sent))
    missing = min(missing, lengths[-1] + wire.HEADER.size)
    raw, ends = raw[: len(raw) - missing], sorted({0, *(cut for cut in cuts if cut < len(raw) - missing), len(raw) - missing})
    port = Port(*(raw[begin:end] for begin, end in itertools.pairwise(ends)), hello(nonce=8))
    reader, got = guest_reader(), []
    while port.pieces:
        pages = reader.pages()
        got += reader.feed(port.readv(pages) if pages else port.read(reader.space()))
    assert [frame for frame in got if frame.type == wire.DATA] == (sent[:-1] if missing else sent)
    assert [frame.offset for frame in got if frame.type == wire.HELLO] == [7, 8]


@given(
    st.lists(st.tuples(st.sampled_from([0, 100, 30_000, 65_504, wire.BULK_PAYLOAD - 1, wire.BULK_PAYLOAD]), st.integers(0, 9)), min_size=1, max_size=14),
    st.integers(0, 13),
)
def test_what_is_lent_stays_as_it_came_until_it_is_given_back(steps: list[tuple[int, int]], broken: int) -> None:
    """Each large payload is held for as many more frames as its step says; at frame `broken` the connection begins anew."""
    reader = wire.FrameReader(lambda header: header.type == wire.HELLO, watchful=True, lends=True)
    sent = [(wire.Frame(wire.DATA, 0, 6, 3, number, bytes([number + 1]) * length), hold) for number, (length, hold) in enumerate(steps)]
    held: list[tuple[int, wire.Lent, bytes]] = []
    got: list[bytes] = []
    for number, (frame, hold) in enumerate(sent):
        if number == broken:
            reader.reset()
        port = Port(hello() * (number in (0, broken)) + encoded(frame))
        while port.pieces:
            pages = reader.pages()
            for one in reader.feed(port.readv(pages) if pages else port.read(reader.space())):
                if one.lent is not None:
                    assert len(one.lent) >= 32768
                    held.append((number + hold, one.lent, bytes(one.lent.view)))
                if one.type == wire.DATA:
                    got.append(bytes(one.lent.view) if one.lent is not None else one.payload)
        for each in [each for each in held if each[0] <= number]:
            assert each[1].view == each[2]
            each[1].release()
            held.remove(each)
    assert got == [frame.payload for frame, _ in sent]
    assert all(lent.view == data for _, lent, data in held)
    assert reader.shrink() in ((True,) if not held else (True, False))


def test_a_sender_stops_at_the_window_and_goes_on_with_credit() -> None:
    sender = wire.Sender()
    sender.write(bytes(wire.WINDOW + 10))
    sent = 0
    while (frame := sender.pull(2, 1, 60000)) is not None:
        sent += len(frame) - wire.HEADER.size
    assert sent == wire.WINDOW
    sender.credit(10, 10 + wire.WINDOW)
    assert sender.wants()


@pytest.mark.parametrize(("consumed", "limit"), [(11, 20), (5, 4), (0, wire.WINDOW * 2)])
def test_impossible_credit_is_refused(consumed: int, limit: int) -> None:
    sender = wire.Sender()
    sender.write(bytes(10))
    sender.pull(2, 1, 10)
    with pytest.raises(wire.ProtocolError):
        sender.credit(consumed, limit)


def test_a_receiver_refuses_gaps_doubles_and_floods() -> None:
    receiver = wire.Receiver()
    receiver.data(0, 100)
    for offset, count in ((50, 10), (200, 10), (100, wire.WINDOW), (100, 0)):
        with pytest.raises(wire.ProtocolError):
            receiver.data(offset, count)
    with pytest.raises(wire.ProtocolError):
        receiver.end(99)


@pytest.mark.parametrize("payload", [b"", b"[]", b"nan", b"{" * 5000, b"\xff"])
def test_control_payloads_must_be_objects(payload: bytes) -> None:
    with pytest.raises(wire.ProtocolError):
        wire.from_json(payload)


@pytest.mark.parametrize("payload", [b'{"a":1} ', b'{"a":1}{}', b' {"a":1}'])
def test_control_payloads_are_an_object_and_nothing_else(payload: bytes) -> None:
    with pytest.raises(wire.ProtocolError):
        wire.from_json(payload)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_json_is_what_the_library_writes(value: object) -> None:
    assert wire.to_json(value) == json.dumps(value, separators=(",", ":")).encode()


def test_what_is_no_json_is_refused() -> None:
    with pytest.raises(TypeError):
        wire.to_json({"a": b""})
