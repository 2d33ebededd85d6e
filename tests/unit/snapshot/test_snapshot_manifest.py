"""The manifest: stable bytes, and every wrong one told by name."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.model.errors import ArtefactError, Corrupt, Incompatible
from torpor.model.shapes import Shape
from torpor.model.snapshots import ArtefactKind, Fingerprint
from torpor.ports.store import Artefact, DiskChain
from torpor.snapshot.manifest import Manifest, Part, decode, encode, seal

GOLDEN = Path(__file__).parent / "golden" / "manifest-format-2.json"

SAMPLE = Manifest(
    Artefact(
        id="0123456789abcdefghijklmno",
        kind=ArtefactKind.PAUSED,
        owner="sandboxsandboxsandboxsand",
        created_at=1700000000.25,
        template="minimal",
        shape=Shape(2, 512, 4096),
        fingerprint=Fingerprint({"profile": "1", "accelerator": "tcg"}, {"qemu": "10.0.2"}),
        memory_id="warmwarmwarmwarmwarmwarm0",
        layer_bytes=8192,
        stored_bytes=21700,
        disk=DiskChain("sha256:" + "a" * 64, ("layer0000000000000000000a", "layer0000000000000000000b"), 4 << 30),
        generation=3,
        exact_freeze=False,
        extra={"name": "Müsli"},
    ),
    state=Part(13462, "1" * 64),
    memory=Part(512 << 20, "2" * 64),
    layer=Part(8292, "3" * 64),
)


def changed(path: str, value: Any) -> bytes:
    """The sample's JSON with the field at the dotted `path` set, or removed for `...`."""
    tree = json.loads(encode(SAMPLE))
    *way, last = path.split(".")
    place = tree
    for name in way:
        place = place[name]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    del tree["digest"]
    return seal(tree)


def test_the_format_on_disk_has_not_moved() -> None:
    assert encode(SAMPLE) == GOLDEN.read_bytes()
    assert decode(GOLDEN.read_bytes()) == SAMPLE


def test_a_manifest_without_layer_comes_back() -> None:
    flat = Manifest(SAMPLE.artefact, SAMPLE.state, SAMPLE.memory, None)
    assert decode(encode(flat)).layer is None
    assert decode(encode(flat)).artefact.layer_bytes == 0


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("id", "../../etc", "not an id"),
        ("memory.id", "../../../etc/shadow", "memory file"),
        ("disk.layers", ["../x"], "not an id"),
        ("disk.layers", [7], "layers"),
        ("disk.base", "../base", "base"),
        ("disk.size_bytes", -1, "size_bytes"),
        ("kind", "cold", "kind"),
        ("shape.vcpus", 3, "vCPUs"),
        ("shape.vcpus", True, "vcpus"),
        ("shape.memory_mib", 511, "memory"),
        ("generation", 1.5, "generation"),
        ("exact_freeze", 1, "exact_freeze"),
        ("fingerprint.hard", {"a": 1}, "hard"),
        ("state.digest", "zz", "state"),
        ("layer.data_bytes", 1 << 70, "data_bytes"),
        ("extra", [], "extra"),
        ("owner", ..., "owner"),
        ("layer", ..., "layer"),
        ("colour", "blue", "colour"),
        ("disk.colour", "blue", "colour"),
    ],
)
def test_what_is_wrong_is_named(path: str, value: Any, named: str) -> None:
    with pytest.raises(Corrupt, match=named):
        decode(changed(path, value))


def test_another_format_is_incompatible_not_corrupt() -> None:
    with pytest.raises(Incompatible) as caught:
        decode(changed("format", 1))
    assert caught.value.differences == {"format": ("1", "2")}


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100000, b'{"no": "format"}'])
def test_no_manifest_at_all(raw: bytes) -> None:
    with pytest.raises(Corrupt):
        decode(raw)


def test_no_flipped_bit_is_taken_for_the_truth() -> None:
    sound = encode(SAMPLE)
    for bit in range(8 * len(sound)):
        raw = bytearray(sound)
        raw[bit // 8] ^= 1 << bit % 8
        with pytest.raises((Corrupt, Incompatible)):
            decode(bytes(raw))


@given(st.data())
def test_noise_is_an_error_of_ours_or_another_manifest(data: st.DataObject) -> None:
    raw = bytearray(encode(SAMPLE))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with suppress(ArtefactError):  # anything else that is raised fails the test
        assert encode(decode(bytes(raw)))
