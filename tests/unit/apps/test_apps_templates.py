"""What counts as a need for an image."""

from pathlib import Path

from torpor.apps.templates import digests_named


def test_every_digest_in_records_and_manifests_counts_damaged_ones_too(tmp_path: Path) -> None:
    files = {
        "sandboxes/a/record.json": '{"base": "' + "1" * 64 + '"}',
        "sandboxes/a/record.json.new": '{"base": "' + "2" * 64 + '"}',
        "store/artefacts/b/manifest.json": '{"agent": "' + "3" * 64 + '", "base": "' + "4" * 64,
        "store/damaged/c/manifest.json": "\0\ufffd" + "5" * 64 + "??",
        "images/index.json": "6" * 64,
        "store/disks/x.qcow2": "7" * 64,
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "store/artefacts/b/binary.json").write_bytes(b"\xff\xfe")
    assert digests_named(tmp_path) == {str(number) * 64 for number in range(1, 6)}
    assert digests_named(tmp_path / "nothing") == set()
