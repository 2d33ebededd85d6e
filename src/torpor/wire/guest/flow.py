"""Flow control of the guest protocol's streams: the two halves of one, in bytes. Sans-I/O, standard library only."""

from __future__ import annotations

from torpor.wire.guest.frames import CREDIT, DATA, END, MAGIC, RESUME, WINDOW, WINDOW_PAIR, ProtocolError, encode


class Sender:
    """The sending half of a stream: keeps what the receiver has not consumed yet, so that a reconnect can send it again. `start` is the first offset."""

    __slots__ = ("_end_sent", "acked", "base", "data", "end_payload", "ended", "held", "limit", "position", "start", "window")
    guarded = False
    """Cuts payloads so that none holds MAGIC: the host's duty."""

    def __init__(self, start: int = 0) -> None:
        self.data = bytearray()
        self.start = self.base = self.acked = self.position = start
        self.limit = start + WINDOW
        self.window = WINDOW  # the most that a credit may open
        self.ended = self._end_sent = self.held = False
        self.end_payload = b""

    @property
    def top(self) -> int:
        """The offset behind the last byte written."""
        return self.base + len(self.data)

    @property
    def pending(self) -> int:
        """Bytes written that the receiver has not consumed."""
        return self.top - self.acked

    @property
    def finished(self) -> bool:
        """Everything, the end included, was sent, and consumed as far as data goes."""
        return self._end_sent and self.acked == self.top

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.data += data

    def end(self, payload: bytes = b"") -> None:
        """No more will be written. `payload`: JSON that says why, for an end by error."""
        if not self.ended:
            self.ended, self.end_payload = True, payload

    def wants(self) -> bool:
        """Whether `pull` would give a frame now."""
        if self.held:
            return False
        return self.position < min(self.top, self.limit) or (self.ended and not self._end_sent and self.position == self.top)

    def pull(self, stream: int, generation: int, most: int) -> bytes | None:
        """The next DATA or END frame's bytes, or None."""
        if not self.wants():
            return None
        count = min(self.top, self.limit, self.position + most) - self.position
        if count <= 0:
            self._end_sent = True
            return encode(END, stream, generation, self.top, self.end_payload)
        at = self.position - self.base
        if self.guarded and (magic := self.data.find(MAGIC, at, at + count)) >= 0:
            count = magic - at + len(MAGIC) // 2
        with memoryview(self.data) as view, view[at : at + count] as piece:
            frame = encode(DATA, stream, generation, self.position, piece)
        self.position += count
        return frame

    def credit(self, consumed: int, limit: int) -> None:
        """The receiver consumed up to `consumed` and takes up to `limit`. Raises ProtocolError for numbers that cannot be."""
        if consumed > self.position or limit < consumed or limit > consumed + self.window:
            raise ProtocolError(f"credit of {consumed}..{limit} on a stream sent up to {self.position}")
        if consumed > self.acked:
            self.acked = consumed
            self.forget()
        self.limit = max(self.limit, limit)

    def forget(self) -> None:
        """Drops what was consumed. A ring that keeps more overrides this."""
        del self.data[: self.acked - self.base]
        self.base = self.acked

    def hold(self) -> None:
        """The connection broke: sends nothing until the peer's RESUME."""
        self.held = True

    def resume(self, received: int, consumed: int, limit: int) -> None:
        """After a reconnect the peer has everything below `received`; one that has not heard where the stream starts says 0. Raises ProtocolError if that
        was never sent, or is gone."""
        if received == consumed == 0 and self.acked == self.start:
            received, consumed, limit = self.start, self.start, self.start + limit
        if received > max(self.position, self.acked) or received < self.acked or received < consumed:
            raise ProtocolError(f"resume at {received} of a stream consumed up to {self.acked} and sent up to {self.position}")
        self.credit(consumed, limit)
        self.position, self.held, self._end_sent = received, False, False


class GuardedSender(Sender):
    """The host's."""

    __slots__ = ()
    guarded = True


class Receiver:
    """The receiving half of a stream: checks offsets and window, says when credit is due."""

    __slots__ = ("consumed", "ended", "limit", "received", "window")

    def __init__(self, start: int = 0) -> None:
        self.received = self.consumed = start
        self.limit = start + WINDOW
        self.window = WINDOW  # what a credit opens
        self.ended = False

    def data(self, offset: int, count: int) -> None:
        """Takes note of a DATA frame. Raises ProtocolError out of order, beyond the window, or behind the end."""
        if self.ended or offset != self.received or offset + count > self.limit or count == 0:
            raise ProtocolError(f"data {offset}+{count} where {self.received} was due and {self.limit} the limit")
        self.received += count

    def end(self, offset: int) -> bool:
        """Takes note of END; False if it was known. Raises ProtocolError if bytes are missing."""
        if offset != self.received:
            raise ProtocolError(f"end at {offset} where {self.received} was due")
        first, self.ended = not self.ended, True
        return first

    def consume(self, count: int) -> bool:
        """`count` bytes were used up; True when a CREDIT should be sent: half the window is used, or as many large frames as are nearly half of it."""
        self.consumed += count
        return not self.ended and self.limit - self.consumed <= self.window // 16 * 9

    def grant(self, stream: int, generation: int) -> bytes:
        """The CREDIT frame that reopens the window."""
        self.limit = self.consumed + self.window
        return encode(CREDIT, stream, generation, 0, WINDOW_PAIR.pack(self.consumed, self.limit))

    def resumption(self, stream: int, generation: int) -> bytes:
        """The RESUME frame for after a reconnect."""
        self.limit = max(self.limit, self.consumed + self.window)
        return encode(RESUME, stream, generation, self.received, WINDOW_PAIR.pack(self.consumed, self.limit))


def window_pair(payload: bytes) -> tuple[int, int]:
    """(consumed, limit) of a CREDIT or RESUME. Raises ProtocolError for another size."""
    if len(payload) != WINDOW_PAIR.size:
        raise ProtocolError("a window of the wrong size")
    consumed, limit = WINDOW_PAIR.unpack(payload)
    return consumed, limit
