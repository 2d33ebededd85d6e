"""The rules of one sandbox's egress, as text. What they do is shown in tests/root/net."""

from __future__ import annotations

import itertools
import re
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.model.errors import InvalidInput
from torpor.model.sandbox import Egress
from torpor.net.plan import FIRST_GATE_UID, SlotPlan
from torpor.net.rules import Gate, collapsed, egress_rules

networks = st.builds(lambda address, prefix: f"{address}/{prefix}", st.ip_addresses(v=4), st.integers(0, 32))


def test_nothing_said_is_empty_sets() -> None:
    text = egress_rules(Egress())
    assert [line for line in text.splitlines() if "element" in line or "rule" in line] == []
    assert text.endswith("delete chain inet torpor divert\n")


def test_networks_become_intervals_and_what_is_no_ipv4_is_left_out() -> None:
    text = egress_rules(Egress(("8.8.8.8", "10.1.2.3/8", "2001:db8::/32"), ("0.0.0.0/0",)))
    assert "add element inet torpor allowed { 8.8.8.8, 10.0.0.0-10.255.255.255 }" in text
    assert "add element inet torpor denied { 0.0.0.0-255.255.255.255 }" in text
    assert text.count("goto refuse") == 2


def test_names_are_refused_only_where_everything_is_denied() -> None:
    assert "dport" not in egress_rules(Egress(deny=("0.0.0.0/1", "128.0.0.0/2")))
    assert "dport" in egress_rules(Egress(deny=("0.0.0.0/1", "128.0.0.0/1")))


def test_domains_lead_connections_to_the_gate_and_let_names_be_resolved() -> None:
    text = egress_rules(Egress(("8.8.8.8", "a.test", "*.b.test"), ("0.0.0.0/0",)), Gate(4321, 100))
    assert "add element inet torpor allowed { 8.8.8.8 }" in text
    assert "a.test" not in text
    assert "ip daddr != @forbidden ip daddr != @allowed redirect to :7654" in text
    assert "dport 53 goto refuse" not in text
    assert text.count("meta skuid 4321") == 2
    assert "delete chain" not in text


def test_no_two_slots_of_a_home_share_the_uid_of_a_gate() -> None:
    block = IPv4Network("198.18.0.0/15")
    uids = {SlotPlan("abcdef", number, "0" * 8, Path("/run"), block).gate_uid for number in range(1, 65536)}
    assert len(uids) == 65535
    assert min(uids) >= FIRST_GATE_UID


@pytest.mark.parametrize("text", ["", "example.com", "1.2.3.4/33", "1.2.3", "1.2.3.4; flush ruleset", "0x7f000001", "1.2.3.4\n", " 1.2.3.4", "٣.1.1.1"])
def test_what_is_no_network_never_gets_into_the_rules(text: str) -> None:
    for egress in (Egress(allow=(text,)), Egress(deny=(text,))):
        with pytest.raises(InvalidInput):
            egress_rules(egress)


@given(st.lists(networks, max_size=20))
def test_intervals_never_overlap_and_say_the_same(given_networks: list[str]) -> None:
    found = collapsed(given_networks)
    for one, following in itertools.pairwise(found):
        assert one[-1] < following[0]
    for network in (IPv4Network(text, strict=False) for text in given_networks):
        assert any(network.subnet_of(one) for one in found)
    told = re.findall(r"[0-9.]+", egress_rules(Egress(tuple(given_networks))).partition("flush set inet torpor denied")[0])
    for address in told:
        IPv4Address(address)
