"""The server name in a ClientHello: OpenSSL's own hellos, every cut of them, and those that try to be two things at once."""

from __future__ import annotations

import contextlib
import itertools
import ssl
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.net.gate import hello
from torpor.net.gate.hello import Broken, Hello, is_retry, server_name


def openssl(name: str | None, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode, context.maximum_version = False, ssl.CERT_NONE, version
    context.set_alpn_protocols(["h2", "http/1.1"])
    out = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name).do_handshake()
    return out.read()


def message_of(data: bytes) -> bytes:
    reader = Hello()
    assert reader.feed(data) == b""
    assert reader.raw == data
    return reader.message


def records(body: bytes, *cuts: int) -> bytes:
    pieces = [body[start:end] for start, end in itertools.pairwise((0, *cuts, len(body)))]
    return b"".join(b"\x16\x03\x01" + len(piece).to_bytes(2) + piece for piece in pieces)


def extension(kind: int, body: bytes) -> bytes:
    return kind.to_bytes(2) + len(body).to_bytes(2) + body


def sni(*names: bytes, kind: int = 0) -> bytes:
    listed = b"".join(bytes([kind]) + len(name).to_bytes(2) + name for name in names)
    return extension(0, len(listed).to_bytes(2) + listed)


def client_hello(*extensions: bytes, tail: bytes = b"") -> bytes:
    listed = b"".join(extensions)
    body = b"\x03\x03" + bytes(32) + b"\0" + b"\0\2\x13\x01" + b"\1\0" + len(listed).to_bytes(2) + listed + tail
    return b"\1" + len(body).to_bytes(3) + body


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_openssls_hello_is_read(version: ssl.TLSVersion) -> None:
    assert server_name(message_of(openssl("www.example.com", version))) == "www.example.com"
    assert server_name(message_of(openssl("WWW.Example.com", version))) == "WWW.Example.com"
    assert server_name(message_of(openssl(None, version))) is None


@given(st.data())
def test_however_it_is_cut(data: st.DataObject) -> None:
    body = message_of(openssl("a.test"))
    cuts = sorted(data.draw(st.lists(st.integers(1, len(body) - 1), unique=True, max_size=6)))
    stream = records(body, *cuts) + b"\x14\x03\x03\x00\x01\x01"
    edge = data.draw(st.integers(0, len(stream)))
    reader = Hello()
    rest = reader.feed(stream[:edge])
    if rest is None:
        rest = reader.feed(stream[edge:])
    else:
        rest += stream[edge:]
    assert rest == b"\x14\x03\x03\x00\x01\x01"
    assert server_name(reader.message) == "a.test"


def refused() -> Iterator[bytes]:
    two = client_hello(sni(b"a.test"), sni(b"b.test"))
    yield records(two)
    yield records(client_hello(sni(b"a.test", b"b.test")))
    yield records(client_hello(sni()))
    yield records(client_hello(sni(b"a.test", kind=1)))
    yield records(client_hello(extension(0, b"")))
    yield records(client_hello(extension(0, sni(b"a.test")[4:] + b"x")))
    yield records(client_hello(sni("ä.test".encode())))
    yield records(client_hello(extension(5, b""), extension(5, b""), sni(b"a.test")))
    yield records(client_hello(sni(b"a.test"), tail=b"more"))
    yield records(client_hello(sni(b"a.test")) + client_hello(sni(b"b.test")))
    yield records(b"\2" + client_hello(sni(b"a.test"))[1:])
    yield b"\x16\x02\x00" + records(client_hello(sni(b"a.test")))[3:]
    yield b"\x16\x03\x01\x00\x00" + records(client_hello(sni(b"a.test")))
    yield b"\x80\x2e\x01\x03\x01" + bytes(50)
    yield records(client_hello(sni(b"a.test")), 20).replace(b"\x16\x03\x01", b"\x17\x03\x01")
    yield records(b"\1\0\xff\xff" + bytes(100))
    yield records(b"\1\0\0\x05" + bytes(5))
    yield records(client_hello(sni(b"a.test"))[:20]) + b"\x15\x03\x01\x00\x02\x01\x00"


@pytest.mark.parametrize("stream", list(refused()))
def test_what_could_be_read_in_two_ways_is_broken(stream: bytes) -> None:
    def read() -> None:
        reader = Hello()
        assert reader.feed(stream) is not None
        server_name(reader.message)

    with pytest.raises(Broken):
        read()


@given(st.binary(max_size=300))
def test_no_bytes_break_the_reader(body: bytes) -> None:
    for stream in (body, records(b"\1" + len(body).to_bytes(3) + body)):
        reader = Hello()
        with contextlib.suppress(Broken):
            if reader.feed(stream) is not None:
                server_name(reader.message)


def test_a_retry_is_told_from_a_server_hello() -> None:
    retry = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
    head = b"\x16\x03\x03\x00\x58\x02\x00\x00\x54\x03\x03"
    assert is_retry(head + retry)
    assert is_retry(head + retry + b"and more")
    assert not is_retry(head + bytes(32))
    assert not is_retry(b"\x15\x03\x03\x00\x02\x02\x28")
    assert not is_retry(b"")
    for broken in (head + retry[:-1], b"\x16\x03\x03\x00\x04" + head[5:] + retry):
        with pytest.raises(Broken):
            is_retry(broken)


def test_an_alert_is_one_record() -> None:
    assert hello.alert(hello.ACCESS_DENIED) == bytes.fromhex("15030100020231")
