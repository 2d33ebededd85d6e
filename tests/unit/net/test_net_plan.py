"""Addresses, names, rules and parsers of the room net: all that needs no kernel."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv4Network
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.model.addresses import NOT_PUBLIC
from torpor.model.errors import InvalidInput, MissingTool, NoPermission
from torpor.model.sandbox import NetworkMode
from torpor.net import checks
from torpor.net.netlink import attribute, attributes, nested
from torpor.net.plan import (
    CANDIDATES,
    GATEWAY,
    GUEST,
    GUEST_ADDRESS,
    Listen,
    MakeNamespace,
    MakeTap,
    NetworkSettings,
    SetLink,
    SetSysctl,
    SlotPlan,
    Where,
    capacity,
    choose_block,
    claim_name,
    home_tag,
    link_name,
    link_number,
    parse_name,
)
from torpor.net.pool import SlotPool
from torpor.net.resolver import HostResolvers, failure, parse_resolvers
from torpor.net.rules import host_rules, slot_rules
from torpor.net.watch import matters

BLOCK = IPv4Network("198.18.16.0/20")
TAG = "a1b2c3"
numbers = st.integers(1, capacity(BLOCK))


def plan(number: int = 1) -> SlotPlan:
    return SlotPlan(TAG, number, "0badcafe", Path("/run/netns"), BLOCK)


@given(numbers, numbers)
def test_no_two_slots_share_an_address_or_a_name(one: int, two: int) -> None:
    if one != two:
        first, second = plan(one), plan(two)
        assert not {first.host_address, first.slot_address} & {second.host_address, second.slot_address}
        assert first.host_link != second.host_link


@given(numbers)
def test_addresses_lie_in_one_slash_31_of_the_block(number: int) -> None:
    made = plan(number)
    assert IPv4Network((int(made.host_address), 31)) == IPv4Network(f"{made.slot_address}/31", strict=False)
    assert made.host_address in BLOCK
    assert made.slot_address in BLOCK
    assert BLOCK.network_address not in (made.host_address, made.slot_address)


@given(numbers)
def test_names_survive_the_round_trip(number: int) -> None:
    made = plan(number)
    assert parse_name(made.name, TAG, made.directory, BLOCK) == made
    assert link_number(made.host_link, TAG) == number
    assert len(made.host_link) <= 15


@given(st.text(max_size=30) | st.sampled_from(["0.0badcafe", "2048.0badcafe", "1.0bad/afe", "1.", "١.0badcafe", "1.../../x", "-1.0badcafe"]))
def test_what_is_no_name_reaches_no_path(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_name(text, TAG, Path("/run/netns"), BLOCK)


def test_links_of_others_have_no_number() -> None:
    for name in (claim_name(TAG), link_name("ffffff", 3), "eth0", f"trp{TAG}-", f"trp{TAG}-x"):
        assert link_number(name, TAG) is None


@given(st.text(alphabet="0123456789abcdef", min_size=6, max_size=6), st.lists(st.sampled_from([b for c in CANDIDATES for b in c.subnets(new_prefix=20)])))
def test_blocks_offered_are_free_and_all_are_tried(tag: str, taken: list[IPv4Network]) -> None:
    offered = list(choose_block(tag, [*taken, IPv4Network("0.0.0.0/0"), IPv4Network("128.0.0.0/1")]))
    everything = {block for candidate in CANDIDATES for block in candidate.subnets(new_prefix=20)}
    assert set(offered) == everything - set(taken)
    assert len(offered) == len(set(offered))


def test_a_network_within_a_block_takes_the_whole_block() -> None:
    assert IPv4Network("198.18.0.0/20") not in list(choose_block("000000", [IPv4Network("198.18.3.7/32")]))


def test_homes_differ_in_their_tag() -> None:
    assert home_tag(Path("/var/lib/torpor")) != home_tag(Path("/var/lib/torpor2"))
    assert len(home_tag(Path("/x"))) == 6


def test_guest_addresses_fit_together() -> None:
    network = IPv4Network(f"{GUEST['address']}/{GUEST['prefix']}", strict=False)
    assert set(network.hosts()) == {GATEWAY, GUEST_ADDRESS}
    assert GUEST["gateway"] == GUEST["dns"] == str(GATEWAY)


def test_a_slot_is_made_before_it_is_furnished_and_the_host_comes_last() -> None:
    steps = plan().steps()
    kinds = [type(step) for step in steps]
    assert kinds[0] is MakeNamespace
    assert kinds.index(MakeTap) < kinds.index(Listen)
    off = [i for i, step in enumerate(steps) if isinstance(step, SetSysctl) and step.key.endswith("disable_ipv6")]
    first_up = kinds.index(SetLink)
    assert off[0] < first_up
    wheres = [step.where is Where.HOST for step in steps if isinstance(step, SetLink | SetSysctl)]
    assert all(not (earlier and not later) for earlier, later in pairwise(wheres))


def test_every_step_describes_itself_in_words_of_its_own() -> None:
    described = [step.describe() for step in plan().steps()]
    assert len(set(described)) == len(described)
    assert "host: address 198.18.16.2/31 on trpa1b2c3-1" in described


@pytest.mark.parametrize(
    "address",
    [
        "10.1.2.3",
        "172.31.0.2",
        "192.168.1.1",
        "100.64.0.1",
        "100.100.100.200",
        "169.254.169.254",
        "127.0.0.1",
        "0.0.0.0",
        "168.63.129.16",
        "192.0.0.192",
        "198.19.255.255",
        "224.0.0.251",
        "239.1.1.1",
        "255.255.255.255",
        "240.0.0.1",
        "192.0.2.1",
        "198.51.100.1",
        "203.0.113.1",
        "192.88.99.1",
    ],
)
def test_forbidden_addresses_are_forbidden(address: str) -> None:
    assert any(IPv4Address(address) in network for network in NOT_PUBLIC)


@given(st.integers(0, 2**32 - 1).map(IPv4Address))
def test_whatever_python_calls_not_global_is_forbidden(address: IPv4Address) -> None:
    """A second opinion: the standard library's copy of the IANA registry."""
    if not address.is_global or address.is_multicast:
        assert any(address in network for network in NOT_PUBLIC)


@pytest.mark.parametrize("address", ["1.1.1.1", "8.8.8.8", "93.184.216.34", "172.32.0.1", "100.128.0.1", "192.1.0.1", "223.255.255.255", "11.0.0.1"])
def test_public_addresses_are_not(address: str) -> None:
    assert not any(IPv4Address(address) in network for network in NOT_PUBLIC)


def test_a_block_of_transfer_addresses_is_out_of_every_guests_reach() -> None:
    for candidate in CANDIDATES:
        assert any(candidate.subnet_of(network) for network in NOT_PUBLIC)


def test_rules_close_their_braces_and_name_what_they_must() -> None:
    for text in (slot_rules(plan(), 99), host_rules(TAG, BLOCK, ["eth0", "wlan0"]), host_rules(TAG, BLOCK, [])):
        assert text.count("{") == text.count("}")
    assert "ct count over 99 " in slot_rules(plan(), 99)
    assert 'elements = { "eth0", "wlan0" }' in host_rules(TAG, BLOCK, ["wlan0", "eth0"])


@pytest.mark.parametrize("settings", [{"pool": -1}, {"connections": 0}, {"transfer": IPv4Network("10.0.0.0/31")}])
def test_impossible_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        NetworkSettings(**settings)  # type: ignore[arg-type]


@given(st.lists(st.tuples(st.integers(1, 200), st.binary(max_size=40)), unique_by=lambda pair: pair[0]))
def test_netlink_attributes_survive_the_round_trip(values: list[tuple[int, bytes]]) -> None:
    packed = b"".join(attribute(kind, value) for kind, value in values)
    assert len(packed) % 4 == 0
    assert attributes(packed) == dict(values)
    assert attributes(attributes(nested(5, packed))[5]) == dict(values)


@given(st.binary(max_size=60))
def test_broken_netlink_attributes_end_in_an_error_or_an_answer(data: bytes) -> None:
    try:
        found = attributes(data)
    except OSError:
        return
    assert sum(4 + len(value) for value in found.values()) <= len(data)


def message(kind: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


def test_only_default_routes_and_removed_tables_matter() -> None:
    default, lan, removed, added = message(24, bytes([2, 0, 0, 0])), message(24, bytes([2, 24, 0, 0])), message(0xA02, bytes(4)), message(0xA00, bytes(4))
    assert matters(default)
    assert matters(lan + added + removed)
    assert not matters(lan + added)
    assert not matters(b"")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("nameserver 10.0.0.2\nnameserver fd00::1\n", ("10.0.0.2", "fd00::1")),
        ("# nameserver 1.1.1.1\nsearch example.com\n\tnameserver\t8.8.8.8  # why\n", ("8.8.8.8",)),
        ("", ("127.0.0.1",)),
        ("nameserver\noptions ndots:2", ("127.0.0.1",)),
    ],
)
def test_resolvers_are_read_from_the_hosts_file(text: str, found: tuple[str, ...]) -> None:
    assert parse_resolvers(text) == found


def test_the_file_may_change_vanish_and_hold_nonsense(tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    resolvers = HostResolvers(file)
    assert [where[:2] for _, where in resolvers()] == [("127.0.0.1", 53)]
    file.write_text("nameserver not-an-address\nnameserver 10.0.0.2\nnameserver fd00::1\n")
    assert [where[:2] for _, where in resolvers()] == [("10.0.0.2", 53), ("fd00::1", 53)]
    file.unlink()
    assert [where[:2] for _, where in resolvers()] == [("127.0.0.1", 53)]


def test_a_failure_answers_the_very_question() -> None:
    reply = failure(bytes.fromhex("beef01000001000000000000") + b"rest")
    assert reply == bytes.fromhex("beef81020000000000000000")


async def test_missing_tools_name_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(checks, "_SYSTEM_PATH", str(tmp_path))
    monkeypatch.setattr(checks, "_missing_capabilities", list)
    pool = SlotPool(tmp_path, tmp_path / "netns", None)  # type: ignore[arg-type]
    assert "Sandboxes with a network need nft, which is not installed. Install it with: apt install nftables" in pool.problems()
    with pytest.raises(MissingTool, match="apt install nftables"):
        await pool.acquire(NetworkMode.ON)


async def test_a_missing_tun_device_is_named(tmp_path: Path) -> None:
    told = [str(fault) for fault in checks.faults(tmp_path / "tun")]
    assert any("modprobe tun" in line for line in told)


async def test_without_rights_off_still_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_missing_capabilities", lambda: ["CAP_NET_ADMIN"])
    pool = SlotPool(tmp_path, tmp_path / "netns", None)  # type: ignore[arg-type]
    await pool.open([])
    assert await pool.acquire(NetworkMode.OFF) is None
    with pytest.raises(NoPermission, match="need root"):
        await pool.acquire(NetworkMode.ON)
    await pool.close()
