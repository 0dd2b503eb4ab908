"""Sums of files and of a text's own contents."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from llava_recipes import seals
from llava_recipes.seals import find_changes, known_seal, read_sealed, read_seals, sealed_text, write_seals

VALUES = {"steps": 12, "loss": 0.1 + 0.2, "name": "ü\n", "files": {"a": {"bytes": 1, "sha256": "0"}}}


def test_a_sealed_text_is_json_and_says_what_was_written() -> None:
    text = sealed_text(VALUES)
    assert {key: value for key, value in json.loads(text).items() if key != "sha256"} == VALUES
    assert read_sealed(text) == (VALUES, True)
    assert read_sealed(json.dumps(VALUES)) == (VALUES, False)


def test_every_flipped_bit_and_every_cut_of_a_sealed_text_is_found() -> None:
    """A flip may take the seal itself away; then the other keys show that there was one."""
    whole = sealed_text(VALUES).encode()
    for place in range(len(whole)):
        for data in (whole[:place], *(_flipped(whole, place, bit) for bit in range(8))):
            try:
                values, is_sealed = read_sealed(data.decode("utf-8"))
            except ValueError:
                continue
            assert not is_sealed and values.keys() != VALUES.keys()


def _flipped(whole: bytes, place: int, bit: int) -> bytes:
    return whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :]


@pytest.mark.parametrize("text", ["", "[]", "null", "[" * 10_000, '{"sha256": 1}', '{"a": 1, "sha256": "0"}'])
def test_what_is_no_sealed_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        read_sealed(text)


def test_what_changed_in_a_folder(tmp_path: Path) -> None:
    for name in ("same", "other", "longer", "gone"):
        (tmp_path / name).write_text(name)
    recorded = read_seals(write_seals(tmp_path, ("same", "other", "longer", "gone")))
    (tmp_path / "other").write_text("ohter")
    (tmp_path / "longer").write_text("longer!")
    (tmp_path / "gone").unlink()
    assert list(find_changes(tmp_path, recorded)) == [
        "other was changed after it was saved",
        "longer has 7 bytes instead of 6",
        "gone is missing",
    ]


@pytest.mark.parametrize(
    "values", [[], {"a": 1}, {"a": {"bytes": True, "sha256": ""}}, {"../a": {"bytes": 1, "sha256": ""}}]
)
def test_damaged_seals_are_refused(values: object) -> None:
    with pytest.raises(ValueError):
        read_seals(values)


def test_a_file_is_read_once_until_somebody_changes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    whole = seals.seal_of

    def seal_of(path: Path) -> seals.FileSeal:
        read.append(path)
        return whole(path)

    monkeypatch.setattr(seals, "seal_of", seal_of)
    monkeypatch.setattr(seals, "_KNOWN", {})
    monkeypatch.setattr(seals, "_SETTLED_NS", 0)
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    first = known_seal(file)
    assert known_seal(tmp_path / "." / "weights") == first and len(read) == 1
    before = file.stat()
    file.write_bytes(b"two")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert known_seal(file) != first and len(read) == 2
    monkeypatch.setattr(seals, "_SETTLED_NS", 10**12)
    monkeypatch.setattr(seals, "_KNOWN", {})
    # Written a moment ago: a change within the clock's tick would not show.
    known_seal(file)
    known_seal(file)
    assert len(read) == 4
