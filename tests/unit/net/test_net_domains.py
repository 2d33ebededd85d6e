"""Names in one spelling, the domains that cover them, and DNS messages that are judged by them."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.model.domains import Domains, domain, domains_of, normal
from torpor.model.errors import InvalidInput
from torpor.model.sandbox import Egress
from torpor.net import dns

LABELS = st.from_regex(r"[a-z]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
NAMES = st.lists(LABELS, min_size=1, max_size=5).map(".".join)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("example.com", "example.com"),
        ("EXAMPLE.Com.", "example.com"),
        ("xn--mnchen-3ya.de", "xn--mnchen-3ya.de"),
        ("_dmarc.example.com", "_dmarc.example.com"),
        ("localhost", "localhost"),
        ("1.example", "1.example"),
    ],
)
def test_a_name_has_one_spelling(text: str, name: str) -> None:
    assert normal(text) == name


@pytest.mark.parametrize(
    "text",
    [
        "", ".", "..", "a..b", ".a", "a.b..", "-a.com", "a-.com", "a b.com", "a/b", "a@b.com", "a:80", "[::1]", "::1", "1.2.3.4", "1.2.3.4.", "127.1",
        "2130706433", "0x7f000001", "0x7F.1", "0x", "a.0x1", "a.1", "münchen.de", "a。b", "a\0.com", "a.com\n", "a%2e.com", "x" * 64 + ".com",
        ".".join(["a" * 60] * 5), "*", "*.a.com",
    ],
)  # fmt: skip
def test_what_is_no_name(text: str) -> None:
    assert normal(text) is None


@pytest.mark.parametrize("text", ["", "*.", "**", "*a.com", "a.*.com", "*.*.com", "*.1.2.3.4", "1.2.3.4.5", "exa mple", "a.com; flush ruleset", "münchen.de"])
def test_what_is_no_domain(text: str) -> None:
    with pytest.raises(InvalidInput):
        domain(text)


def test_which_names_a_domain_covers() -> None:
    exact, below, both = Domains([domain("Example.com.")]), Domains([domain("*.EXAMPLE.com")]), Domains(["a.test", "*.b.test"])
    assert exact.cover("example.com")
    assert not any(exact.cover(name) for name in ("www.example.com", "com", "xexample.com", "example.com.evil.test"))
    assert all(below.cover(name) for name in ("www.example.com", "a.b.example.com"))
    assert not any(below.cover(name) for name in ("example.com", "xexample.com", "com", "example.com.evil.test"))
    assert [both.cover(name) for name in ("a.test", "b.test", "c.b.test", "c.a.test")] == [True, False, True, False]
    assert Domains(["*"]).cover("anything")
    assert not Domains().cover("anything")


@given(NAMES, NAMES)
def test_a_star_covers_exactly_what_lies_below(name: str, other: str) -> None:
    assert Domains([f"*.{name}"]).cover(f"{other}.{name}")
    assert Domains([f"*.{name}"]).cover(other) == other.endswith(f".{name}")
    assert Domains([name]).cover(other) == (name == other)


def test_a_domain_needs_everything_else_denied() -> None:
    assert domains_of(Egress(("b.test", "1.2.3.4", "*.A.test", "B.test."), ("0.0.0.0/0",))) == ("*.a.test", "b.test")
    assert domains_of(Egress(("1.2.3.4",), ())) == ()
    for deny in ((), ("1.2.3.4",), ("0.0.0.0/1",)):
        with pytest.raises(InvalidInput):
            domains_of(Egress(("a.test",), deny))


# DNS


def question(name: str, *, head: bytes = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00", tail: bytes = b"\0\1\0\1") -> bytes:
    return head + b"".join(bytes([len(label)]) + label.encode("latin-1") for label in name.split(".") if name) + b"\0" + tail


EDNS = b"\0\x00\x29\x04\xd0\0\0\0\0\0\0"
WITH_ONE_MORE = b"\x12\x34\x01\x20\x00\x01\x00\x00\x00\x00\x00\x01"


def test_the_name_in_a_question_is_read() -> None:
    assert dns.asked_name(question("WWW.Example.com")) == "www.example.com"
    assert dns.asked_name(question("a.test", head=WITH_ONE_MORE, tail=b"\0\x1c\0\1" + EDNS)) == "a.test"


@pytest.mark.parametrize(
    "message",
    [
        b"",
        question("a.test")[:-1],
        question("a.test") + b"smuggled",
        question("a.test", head=WITH_ONE_MORE),
        question("a.test", head=WITH_ONE_MORE, tail=b"\0\1\0\1" + EDNS + b"x"),
        question("a.test", head=WITH_ONE_MORE, tail=b"\0\1\0\1" + EDNS.replace(b"\x29", b"\x10")),
        question("a.test", head=b"\x12\x34\x81\x00\x00\x01" + bytes(6)),
        question("a.test", head=b"\x12\x34\x29\x00\x00\x01" + bytes(6)),
        question("a.test", head=b"\x12\x34\x01\x00\x00\x02" + bytes(6), tail=b"\0\1\0\1" + question("b.test")[12:]),
        question("a.test", head=b"\x12\x34\x01\x00\x00\x01\x00\x01" + bytes(4)),
        question("a.test", tail=b"\0\1\0\3"),
        question("", tail=b"\0\1\0\1"),
        question("a.test")[:12] + b"\x06a.test\0\0\1\0\1",
        question("a.test")[:12] + b"\xc0\x0c\0\1\0\1",
        question("a.test")[:12] + b"\x3fa",
        question("ä.test"),
    ],
)
def test_what_is_no_plain_question_has_no_name(message: bytes) -> None:
    assert dns.asked_name(message) is None
    if len(message) >= dns.HEADER:
        assert dns.refusal(message, dns.FORMAT_ERROR)[2:4] == bytes([message[2] & 0x79 | 0x80, 0x81])


def test_a_refusal_repeats_the_question() -> None:
    assert dns.refusal(question("a.test", head=WITH_ONE_MORE, tail=b"\0\1\0\1" + EDNS), dns.NO_SUCH_NAME) == (
        b"\x12\x34\x81\x83\0\1\0\0\0\0\0\0" + question("a.test")[12:]
    )


@given(NAMES, st.integers(0, 65535))
def test_our_own_questions_are_read_as_what_they_ask(name: str, number: int) -> None:
    assert dns.asked_name(dns.ask(number, name)) == name


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader_of_questions(message: bytes) -> None:
    name = dns.asked_name(message)
    assert name is None or normal(name) == name


def record(value: bytes, kind: int = 1, seconds: int = 60, owner: bytes = b"\xc0\x0c") -> bytes:
    return owner + struct.pack(">HHIH", kind, 1, seconds, len(value)) + value


def answer(asked: bytes, *records: bytes, flags: int = 0x8180) -> bytes:
    return asked[:2] + struct.pack(">HHHHH", flags, 1, len(records), 0, 0) + asked[12:] + b"".join(records)


ASKED = dns.ask(7, "a.test")
ALIAS = b"\1b\4test\0"


def test_addresses_are_read_behind_an_alias() -> None:
    found = dns.found(answer(ASKED, record(ALIAS, kind=5, seconds=5), record(bytes([1, 2, 3, 4]), owner=ALIAS), record(bytes(16), kind=28)), ASKED)
    assert found == dns.Found((IPv4Address("1.2.3.4"),), 5, False, 0)
    assert dns.found(answer(ASKED, flags=0x8183), ASKED) == dns.Found((), 0, False, dns.NO_SUCH_NAME)
    assert dns.found(answer(ASKED, flags=0x8380), ASKED).cut
    cut = answer(ASKED, record(bytes(4)), flags=0x8380)
    assert dns.found(cut[:-3], ASKED).cut


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\0\x08" + answer(ASKED)[2:],
        answer(dns.ask(7, "b.test"), record(bytes(4))),
        ASKED,
        answer(ASKED, record(bytes(4)))[:-1],
        answer(ASKED, record(bytes(4)))[:-12],
        answer(ASKED, b"\x3f"),
    ],
)
def test_what_is_not_the_answer(message: bytes) -> None:
    with pytest.raises(dns.Broken):
        dns.found(message, ASKED)


@given(st.binary(max_size=100), st.integers(0, 3))
def test_no_bytes_break_the_reader_of_answers(tail: bytes, records: int) -> None:
    message = ASKED[:2] + struct.pack(">HHHHH", 0x8180, 1, records, 0, 0) + ASKED[12:] + tail
    try:
        dns.found(message, ASKED)
    except dns.Broken:
        return
