"""The server name in a TLS ClientHello (RFC 8446 4.1.2, RFC 6066 3, records by RFC 8446 5.1). Pure.

Read strictly: what two readers could take for different names (a name twice, extensions twice, something behind the message in its record) is Broken. After
a HelloRetryRequest the client says hello again, and a server may go by the second one: `is_retry` tells when there will be one to be read.
"""

from __future__ import annotations

HANDSHAKE, CHANGE_CIPHER_SPEC, APPLICATION_DATA = 22, 20, 23
CLIENT_HELLO, SERVER_HELLO = 1, 2
RECORD_HEAD = 5
LARGEST_RECORD = 1 << 14
LARGEST_HELLO = 1 << 15
SERVER_HEAD = RECORD_HEAD + 4 + 2 + 32
_RETRY = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
_SERVER_NAME, _HOST_NAME = 0, 0

ACCESS_DENIED, UNRECOGNIZED_NAME, INTERNAL_ERROR, DECODE_ERROR = 49, 112, 80, 50


class Broken(ValueError):
    """Not a ClientHello, or one that can be read in two ways."""


class _Reader:
    """Takes fields off the front. Raises Broken where there is too little."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int) -> bytes:
        piece = self._data[self._at : self._at + size]
        if len(piece) != size:
            raise Broken("a field beyond the end")
        self._at += size
        return piece

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size))

    def vector(self, size: int) -> bytes:
        return self.take(self.number(size))

    @property
    def done(self) -> bool:
        return self._at == len(self._data)


class Hello:
    """Collects a ClientHello out of records, however it is cut. `raw` holds them as they came, once `message` is there."""

    def __init__(self) -> None:
        self.raw = b""
        self.message = b""
        self._body = b""
        self._rest = b""

    def feed(self, data: bytes) -> bytes | None:
        """None while it is not whole; then what came behind it. Raises Broken."""
        self._rest += data
        while len(self._rest) >= RECORD_HEAD:
            size = record_size(self._rest, HANDSHAKE)
            if len(self._rest) < RECORD_HEAD + size:
                break
            self._body += self._rest[RECORD_HEAD : RECORD_HEAD + size]
            self.raw += self._rest[: RECORD_HEAD + size]
            self._rest = self._rest[RECORD_HEAD + size :]
            if self._whole():
                return self._rest
        if self._rest and self._rest[0] != HANDSHAKE:
            raise Broken("no handshake record")
        return None

    def _whole(self) -> bool:
        if self._body[0] != CLIENT_HELLO:
            raise Broken("no ClientHello")
        if len(self._body) < 4:
            return False
        size = 4 + int.from_bytes(self._body[1:4])
        if size > LARGEST_HELLO or len(self._body) > size:
            raise Broken("a ClientHello too long, or with something behind it")
        if len(self._body) < size:
            return False
        self.message = self._body
        return True


def record_size(head: bytes, *kinds: int) -> int:
    """The length of the record that begins here, which must be of one of these kinds. Raises Broken."""
    size = int.from_bytes(head[3:RECORD_HEAD])
    if head[0] not in kinds or head[1] != 3 or not 0 < size <= LARGEST_RECORD + 256:
        raise Broken("no record that is expected here")
    return size


def server_name(message: bytes) -> str | None:
    """The name in a ClientHello message, as it is written; None where it has none. Raises Broken."""
    reader = _Reader(message)
    reader.take(4 + 2 + 32)
    reader.vector(1)
    reader.vector(2)
    reader.vector(1)
    if reader.done:
        return None
    extensions = _Reader(reader.vector(2))
    if not reader.done:
        raise Broken("something behind the extensions")
    found: dict[int, bytes] = {}
    while not extensions.done:
        kind = extensions.number(2)
        if kind in found:
            raise Broken("an extension that comes twice")
        found[kind] = extensions.vector(2)
    return _host_name(found[_SERVER_NAME]) if _SERVER_NAME in found else None


def _host_name(extension: bytes) -> str:
    outer = _Reader(extension)
    names = _Reader(outer.vector(2))
    kind, name = names.number(1), names.vector(2)
    if kind != _HOST_NAME or not names.done or not outer.done:
        raise Broken("not exactly one host name")
    try:
        return name.decode("ascii")
    except UnicodeDecodeError:
        raise Broken("a host name that is not ASCII") from None


def is_retry(head: bytes) -> bool:
    """Of the beginning of a server's answer, SERVER_HEAD bytes of it or the whole: whether it asks for another hello. Raises Broken for a ServerHello that is
    cut before it tells."""
    if head[:1] != bytes([HANDSHAKE]):
        return False
    if len(head) < SERVER_HEAD or record_size(head, HANDSHAKE) < SERVER_HEAD - RECORD_HEAD:
        raise Broken("a ServerHello in pieces")
    return head[RECORD_HEAD] == SERVER_HELLO and head[SERVER_HEAD - 32 : SERVER_HEAD] == _RETRY


def alert(description: int) -> bytes:
    """A fatal alert, readable before any key is agreed on."""
    return bytes([21, 3, 1, 0, 2, 2, description])
