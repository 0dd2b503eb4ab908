"""Scripts that cannot be migrated, each with the exact text that it prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava_recipes.cli.main import main

GALLERY = Path(__file__).parent / "errors"
SCRIPTS = sorted(GALLERY.glob("*.sh"))


def test_every_script_has_its_text() -> None:
    assert len(SCRIPTS) > 25
    assert {file.stem for file in SCRIPTS} == {file.stem for file in GALLERY.glob("*.txt")}


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.stem)
def test_a_bad_script_is_reported_at_its_place(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(GALLERY)
    assert main(["migrate", file.name]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == file.with_suffix(".txt").read_text(encoding="utf-8")
