"""Whom a request is for, and where a port is found."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.api.reach import Misaddressed, Public, Reach, Target
from torpor.model.errors import Conflict

ID = "0123456789abcdefghij01234"
OPEN, NAMED, SPLIT = Reach(), Reach("sbx.example.com:8443"), Reach("sbx.example.com", 3002)
API, OWN = ("127.0.0.1", 8080), ("127.0.0.1", 3002)


def of(reach: Reach, host: str, server: tuple[str, int] = API, path: bytes = b"/", **headers: str) -> Target | None:
    return reach.target({"host": host, **{name.replace("_", "-"): value for name, value in headers.items()}}, server, path)


@pytest.mark.parametrize(
    ("reach", "host", "expected"),
    [
        (OPEN, f"8000-{ID}.any.thing", (ID, 8000, ID)),
        (OPEN, f"8000-cl-{ID}.localhost:8080", (ID, 8000, f"cl-{ID}")),
        (OPEN, f"8000-CL-{ID.upper()}.LOCALHOST.", (ID, 8000, f"cl-{ID}")),
        (OPEN, f"49983-{ID}-00000000.any", (ID, 49983, ID)),
        (OPEN, f"49983-cl-{ID}-x-y.any", (ID, 49983, f"cl-{ID}")),
        (OPEN, f"8000-{ID}", None),
        (OPEN, f"8000-{ID}x.any", None),
        (OPEN, "3000-workspace.ide.example", None),
        (OPEN, "127.0.0.1:8080", None),
        (OPEN, "[::1]:8080", None),
        (OPEN, "localhost", None),
        (OPEN, "", None),
        (NAMED, f"8000-{ID}.sbx.example.com", (ID, 8000, ID)),
        (NAMED, f"8000-{ID}.sbx.example.com:8443", (ID, 8000, ID)),
        (NAMED, f"8000-{ID}.sbx.example.org", None),
        (NAMED, f"8000-{ID}.x.sbx.example.com", None),
        (NAMED, f"x.8000-{ID}.sbx.example.com", None),
        (NAMED, "api.sbx.example.com", None),
        (NAMED, "sbx.example.com", None),
        (NAMED, "80-other.sbx.example.com", ("", 80, "other")),
    ],
)
def test_names(reach: Reach, host: str, expected: tuple[str, int, str] | None) -> None:
    found = of(reach, host)
    assert (found and (found.sandbox_id, found.port, found.shown)) == expected
    assert reach.claims({"host": host}, API) is (expected is not None)


@pytest.mark.parametrize("label", [f"0-{ID}", f"65536-{ID}", f"08-{ID}", "80-", "80-a_b", f"80-{ID[:-1]}é", f"80-cl-{ID[1:]}é"])
def test_names_that_say_it_wrongly(label: str) -> None:
    with pytest.raises(Misaddressed):
        of(NAMED, f"{label}.sbx.example.com")
    assert NAMED.claims({"host": f"{label}.sbx.example.com"}, API)


def test_headers_count_where_the_host_names_nothing() -> None:
    named = {"e2b_sandbox_id": f"{ID}-client", "e2b_sandbox_port": "49983"}
    for host in ("localhost", "localhost:3000", "10.0.0.1:80", "[::1]", "sandbox.e2b.app"):
        assert of(OPEN, host, **named) == Target(ID, 49983, ID)
    assert of(OPEN, "api.example.com", **named) is None
    assert of(SPLIT, "any.name", OWN, **named) == Target(ID, 49983, ID)
    other = "z" * 25
    assert of(OPEN, f"80-{other}.localhost", **named) == Target(other, 80, other), "a page cannot reach its neighbours by headers"
    for alone in named:
        with pytest.raises(Misaddressed):
            of(OPEN, "localhost", **{alone: named[alone]})


def test_paths_count_on_the_proxys_own_port_only() -> None:
    assert of(SPLIT, "a.name", OWN, b"/cl-%s/80/a%%2Fb//c" % ID.encode()) == Target(ID, 80, f"cl-{ID}", f"/cl-{ID}/80", b"/a%2Fb//c")
    assert of(SPLIT, "a.name", OWN, b"/%s/80" % ID.encode()) == Target(ID, 80, ID, f"/{ID}/80", b"")
    assert of(SPLIT, "a.name", API, b"/%s/80/" % ID.encode()) is None
    for wrong in (b"/", b"", b"/x", b"*", b"//%s/80/" % ID.encode(), b"/%s/080/" % ID.encode(), b"/%s/8x/" % ID.encode(), b"/%%30%s/80/" % ID[1:].encode()):
        with pytest.raises(Misaddressed):
            of(SPLIT, "a.name", OWN, wrong)
    assert SPLIT.claims({"host": "anything"}, OWN)


def test_where_a_port_is_found() -> None:
    def url(reach: Reach, host: str, scheme: str = "http") -> str:
        return reach.url(Public(scheme, host), f"cl-{ID}", 80)

    assert url(NAMED, "127.0.0.1:8080", "https") == f"https://80-cl-{ID}.sbx.example.com:8443/"
    assert url(SPLIT, "api.sbx.example.com") == f"http://80-cl-{ID}.sbx.example.com/"
    assert url(SPLIT, "api.sbx.example.com:81") == f"http://80-cl-{ID}.sbx.example.com:81/"
    assert url(Reach(proxy_port=3002), "127.0.0.1:8080") == f"http://127.0.0.1:3002/cl-{ID}/80/"
    for here in ("127.0.0.1:8080", "localhost:8080", "[::1]:8080"):
        assert url(OPEN, here) == f"http://80-cl-{ID}.localhost:8080/"
    assert url(OPEN, "box.example:8080") == f"http://80-cl-{ID}.box.example:8080/"
    with pytest.raises(Conflict):
        url(OPEN, "192.0.2.1:8080")


@given(st.text(max_size=80), st.binary(max_size=80), st.sampled_from([API, OWN]), st.sampled_from([OPEN, NAMED, SPLIT]))
def test_nothing_else_comes_out(host: str, path: bytes, server: tuple[str, int], reach: Reach) -> None:
    try:
        found = reach.target({"host": host}, server, path)
    except Misaddressed:
        return
    assert found is None or (0 < found.port < 65536 and len(found.sandbox_id) in (0, 25))
