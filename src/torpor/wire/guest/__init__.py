"""The private protocol between host and guest agent, version 1: frames, resynchronisation, flow control. Sans-I/O, standard library only, both ends.

`frames` are its words, `reader` finds them in what arrives, `flow` keeps account of streams.

What happens on a new connection, and after every restore:

    host                                         guest
      MAGIC HELLO(generation, nonce, wake?)  ->    drops all it had buffered, also half a frame; applies the wake
      drops all up to it                    <-   MAGIC WELCOME(generation, nonce)
      frames of this generation            <->   frames of this generation

MAGIC never occurs in what the host sends elsewhere (payloads that hold it are cut in its middle), so the guest may look for it in the middle of a frame;
no text holds its bytes. The guest's payloads are free, so the host believes a MAGIC only with its own fresh nonce behind it. A frame of another generation
is dropped.

docs/guest-protocol.md describes operations and their fields.
"""

from torpor.wire.guest.flow import GuardedSender, Receiver, Sender, window_pair
from torpor.wire.guest.frames import (
    ALL_NAMED,
    BULK_PAYLOAD,
    CLOSE,
    CREDIT,
    DATA,
    DONE,
    END,
    EVENT,
    FLAG_MORE,
    GUEST_PAYLOAD,
    HEADER,
    HELLO,
    LEVEL,
    MAGIC,
    MAIN,
    MAX_OFFSET,
    MAX_PAYLOAD,
    MAX_REQUEST,
    PAGE,
    REPLY,
    REQUEST,
    RESUME,
    STDERR,
    TYPE_NAMES,
    VERSION,
    WELCOME,
    WIDE_WINDOW,
    WINDOW,
    WINDOW_PAIR,
    Frame,
    Header,
    Lent,
    ProtocolError,
    encode,
    from_json,
    to_json,
)
from torpor.wire.guest.reader import FrameReader

__all__ = [
    "ALL_NAMED",
    "BULK_PAYLOAD",
    "CLOSE",
    "CREDIT",
    "DATA",
    "DONE",
    "END",
    "EVENT",
    "FLAG_MORE",
    "GUEST_PAYLOAD",
    "HEADER",
    "HELLO",
    "LEVEL",
    "MAGIC",
    "MAIN",
    "MAX_OFFSET",
    "MAX_PAYLOAD",
    "MAX_REQUEST",
    "PAGE",
    "REPLY",
    "REQUEST",
    "RESUME",
    "STDERR",
    "TYPE_NAMES",
    "VERSION",
    "WELCOME",
    "WIDE_WINDOW",
    "WINDOW",
    "WINDOW_PAIR",
    "Frame",
    "FrameReader",
    "GuardedSender",
    "Header",
    "Lent",
    "ProtocolError",
    "Receiver",
    "Sender",
    "encode",
    "from_json",
    "to_json",
    "window_pair",
]
