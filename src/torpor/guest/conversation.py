"""Conversations: requests, executed at most once, and streams between one host process and one generation of the guest."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from torpor.guest.faults import Refusal, fault
from torpor.wire import guest as wire

Json = dict[str, Any]


class Stream:
    """One stream of a conversation. `sender` carries bytes to the host, `receiver` checks what comes. The owner sets the call-backs it needs."""

    __slots__ = ("conversation", "named", "number", "on_close", "on_data", "on_end", "on_lent", "on_room", "queued", "receiver", "sender")

    def __init__(self, conversation: Conversation, number: int, sender: wire.Sender | None, receiver: wire.Receiver | None) -> None:
        self.conversation = conversation
        self.number = number
        self.sender = sender
        self.receiver = receiver
        self.queued = False
        self.named = True
        """False after a reconnect until the host has said that it still uses the stream."""
        self.on_data: Callable[[bytes], None] | None = None
        self.on_lent: Callable[[wire.Lent], None] | None = None
        """For who gives large pieces back; without it they are copied for `on_data`."""
        self.on_end: Callable[[], None] | None = None
        self.on_room: Callable[[], None] | None = None
        self.on_close: Callable[[], None] | None = None

    def wake(self) -> None:
        """The sender may have something to send."""
        if not self.queued and self.sender is not None and self.sender.wants():
            self.queued = True
            self.conversation.ready.append(self)

    def consumed(self, count: int) -> None:
        """The owner used up `count` received bytes."""
        if self.receiver is not None and self.receiver.consume(count):
            self.conversation.send(self.receiver.grant(self.number, self.conversation.generation))

    def resume(self) -> None:
        """Tells the host where it goes on."""
        self.named = True
        self.conversation.send((self.receiver or wire.Receiver()).resumption(self.number, self.conversation.generation))

    def release(self) -> None:
        """Forgets the stream without a word; the host has closed it, or will find it gone."""
        self.conversation.streams.pop(self.number, None)


class Request:
    """One operation under way. Exactly one of `reply` and `fail` is called, once; after the conversation ended both do nothing."""

    __slots__ = ("args", "conversation", "id")

    def __init__(self, conversation: Conversation, id_: int, args: Json) -> None:
        self.conversation = conversation
        self.id = id_
        self.args = args

    def reply(self, **fields: Any) -> None:
        self.conversation.answer(self.id, fields)

    def fail(self, error: BaseException) -> None:
        self.conversation.answer(self.id, {"error": fault(error)})

    def stream(self, channel: int = wire.MAIN, *, sender: wire.Sender | None = None, receiver: wire.Receiver | None = None) -> Stream:
        """Opens a stream that belongs to this request."""
        stream = Stream(self.conversation, self.id * 2 + channel, sender, receiver)
        self.conversation.streams[stream.number] = stream
        if stream.number in self.conversation.awaited:
            self.conversation.awaited.discard(stream.number)
            stream.resume()
        return stream


class Conversation:
    """Requests and streams between one host process and this generation."""

    def __init__(self, generation: int, link: int) -> None:
        self.generation = generation
        self.link = link
        self.alive = True
        self.quiet = False
        """Between quiesce and thaw: nothing is sent but replies."""
        self._held_back: list[bytes] = []
        self.answers: dict[int, bytes | None] = {}
        self.fragments: dict[int, bytearray] = {}
        self.streams: dict[int, Stream] = {}
        self.awaited: set[int] = set()
        """Streams that the host resumed before they were opened: their requests are still under way."""
        self.control: deque[bytes] = deque()
        self.ready: deque[Stream] = deque()

    def send(self, frame: bytes) -> None:
        if self.alive:
            self.control.append(frame)

    def event(self, request: int, **fields: Any) -> None:
        """Something happened to what `request` started. Sent again by its owner after a reconnect."""
        frame = wire.encode(wire.EVENT, request * 2, self.generation, 0, wire.to_json(fields))
        if self.quiet:
            self._held_back.append(frame)
        else:
            self.send(frame)

    def speak(self) -> None:
        """Ends the quiet."""
        self.quiet = False
        self.control.extend(self._held_back)
        self._held_back.clear()

    def answer(self, request: int, fields: Json) -> None:
        if not self.alive or request not in self.answers:
            return
        payload = wire.to_json(fields)
        if len(payload) > wire.GUEST_PAYLOAD:
            payload = wire.to_json({"error": fault(Refusal("invalid", "the answer is too large"))})
        frame = wire.encode(wire.REPLY, request * 2, self.generation, 0, payload)
        self.answers[request] = frame
        self.send(frame)

    def end(self) -> None:
        """Streams are dropped, answers no longer kept; commands live on."""
        self.alive = False
        streams, self.streams = list(self.streams.values()), {}
        for stream in streams:
            if stream.on_close is not None:
                stream.on_close()
        self.control.clear()
        self.ready.clear()
        self.answers.clear()
        self.fragments.clear()
