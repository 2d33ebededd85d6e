"""DNS messages (RFC 1035 4.1), as far as names have to be judged or looked up here. Pure.

Whoever judges reads a question strictly: one question, nothing beside it but EDNS (RFC 6891). What is read otherwise by a resolver is refused, so that no
message means one name here and another there.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address

from torpor.model.domains import normal

HEADER = 12
FORMAT_ERROR, SERVER_FAILURE, NO_SUCH_NAME = 1, 2, 3
_QUERY, _OPCODE, _CUT, _RECURSION = 0x8000, 0x7800, 0x0200, 0x0100
_IN, _A, _OPT = 1, 1, 41
_COUNTS = struct.Struct(">HHHHHH")
_RECORD = struct.Struct(">HHIH")
_FIXED = 4  # type and class of a question


class Broken(ValueError):
    """No message, or not the answer to what was asked."""


@dataclass(frozen=True, slots=True)
class Found:
    """What an answer says: addresses, none for a name without any; how long that holds; `cut`: it did not fit, ask by TCP; the response code."""

    addresses: tuple[IPv4Address, ...]
    seconds: int
    cut: bool
    code: int


def asked_name(question: bytes) -> str | None:
    """The name that a question asks for, None for what is no plain question or no name."""
    try:
        _, flags, questions, answers, authorities, additional = _COUNTS.unpack_from(question)
        if flags & (_QUERY | _OPCODE) or (questions, answers, authorities) != (1, 0, 0) or additional > 1:
            return None
        labels, end = _labels(question, HEADER)
        kind_class = question[end : end + _FIXED]
        if len(kind_class) != _FIXED or kind_class[2:] != b"\0\1" or not _nothing_but_edns(question[end + _FIXED :], additional):
            return None
        if any(b"." in label for label in labels):  # one label to a resolver, two in our spelling
            return None
        return normal(b".".join(labels).decode("ascii"))
    except (Broken, struct.error, UnicodeDecodeError):
        return None


def _nothing_but_edns(rest: bytes, additional: int) -> bool:
    if not additional:
        return not rest
    if len(rest) < 1 + _RECORD.size or rest[0]:
        return False
    kind, _, _, length = _RECORD.unpack_from(rest, 1)
    return bool(kind == _OPT and len(rest) == 1 + _RECORD.size + length)


def refusal(question: bytes, code: int) -> bytes:
    """An answer without records. It repeats the question, where there is one: without it stub resolvers take an answer for somebody else's."""
    try:
        end = _labels(question, HEADER)[1] + _FIXED
        repeated = question[HEADER:end] if end <= len(question) and question[4:6] == b"\0\1" else b""
    except Broken:
        repeated = b""
    head = question[:2] + bytes([question[2] & 0x79 | 0x80, 0x80 | code])
    return head + (b"\0\1" if repeated else b"\0\0") + bytes(6) + repeated


def ask(number: int, name: str) -> bytes:
    """A question for the IPv4 addresses of a name as `normal` makes it."""
    labels = b"".join(bytes([len(label)]) + label.encode("ascii") for label in name.split("."))
    return _COUNTS.pack(number, _RECURSION, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", _A, _IN)


def found(answer: bytes, question: bytes) -> Found:
    """What the answer to our own question says. The addresses are those of the name itself or of what it is an alias for: the resolver has followed them.
    Raises Broken."""
    try:
        number, flags, questions, answers, _, _ = _COUNTS.unpack_from(answer)
        asked = question[HEADER:]
        if question[:2] != number.to_bytes(2) or not flags & _QUERY or questions != 1 or answer[HEADER : HEADER + len(asked)].lower() != asked:
            raise Broken("the answer to another question")
        if flags & _CUT:
            return Found((), 0, True, flags & 15)
        addresses, seconds = _addresses(answer, HEADER + len(asked), answers)
    except struct.error:
        raise Broken("a message that ends too early") from None
    return Found(tuple(addresses), seconds, False, flags & 15)


def _addresses(answer: bytes, at: int, records: int) -> tuple[list[IPv4Address], int]:
    """Those in so many records, and how long all of these hold: 0 without any address."""
    addresses, seconds = [], 1 << 31
    for _ in range(records):
        at = _skip_name(answer, at)
        kind, group, lasts, length = _RECORD.unpack_from(answer, at)
        value = answer[at + _RECORD.size : at + _RECORD.size + length]
        at += _RECORD.size + length
        if len(value) != length:
            raise Broken("a record beyond the end")
        seconds = min(seconds, lasts)
        if (kind, group, length) == (_A, _IN, 4):
            addresses.append(IPv4Address(value))
    return addresses, seconds if addresses else 0


def _labels(message: bytes, at: int) -> tuple[list[bytes], int]:
    """A name without compression, and where it ends. Raises Broken."""
    labels: list[bytes] = []
    while True:
        if at >= len(message) or message[at] > 63:
            raise Broken("no plain name")
        size = message[at]
        at += 1
        if not size:
            return labels, at
        if at + size > len(message):
            raise Broken("a label beyond the end")
        labels.append(message[at : at + size])
        at += size


def _skip_name(message: bytes, at: int) -> int:
    while at < len(message):
        size = message[at]
        if size >= 0xC0:
            return at + 2
        at += 1 + size
        if not size:
            return at
    raise Broken("a name beyond the end")
