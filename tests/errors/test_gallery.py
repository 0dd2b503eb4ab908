"""Every bad recipe here prints exactly the text beside it, and each kind of problem keeps its name.

After a change of wording: llava-recipe validate tests/errors/NAME.yaml 2> tests/errors/NAME.txt
For a new bad recipe, add the codes of its problems to codes.json; those that are there don't change.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava_recipes.cli.main import main

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
BAD_RECIPES = sorted(HERE.glob("*.yaml"))


ERRORS = [file for file in BAD_RECIPES if not file.stem.startswith("warning_")]
WARNINGS = [file for file in BAD_RECIPES if file.stem.startswith("warning_")]


def test_the_gallery_is_whole() -> None:
    names = {file.stem for file in BAD_RECIPES}
    assert len(ERRORS) >= 80
    assert len(WARNINGS) >= 10
    assert names == {file.stem for file in HERE.glob("*.txt")}


@pytest.mark.parametrize("file", ERRORS, ids=lambda file: file.stem)
def test_a_bad_recipe_prints_its_text(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["validate", file.relative_to(ROOT).as_posix()]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == file.with_suffix(".txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("file", WARNINGS, ids=lambda file: file.stem)
def test_a_doubtful_recipe_is_valid_and_prints_its_text(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    name = file.relative_to(ROOT).as_posix()
    text = file.with_suffix(".txt").read_text(encoding="utf-8")
    assert main(["validate", name]) == 0
    assert capsys.readouterr() == (f"ok  {name}\n", text)
    assert main(["validate", name, "--strict"]) == 1
    assert capsys.readouterr() == ("", text.replace(": warning: ", ": "))


def test_the_kinds_of_problems_keep_their_names(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    main(["validate", "--format", "json", *(file.relative_to(ROOT).as_posix() for file in BAD_RECIPES)])
    found = {
        Path(report["file"]).stem: sorted({problem["rule"] for problem in report["problems"]})
        for report in json.loads(capsys.readouterr().out)["files"]
    }
    assert found == json.loads((HERE / "codes.json").read_text("utf-8"))


@pytest.mark.parametrize("file", BAD_RECIPES, ids=lambda file: file.stem)
def test_a_message_keeps_house_style(file: Path) -> None:
    """A place, no words of other programs' error classes, and never a secret."""
    text = file.with_suffix(".txt").read_text(encoding="utf-8")
    assert all(block.startswith(f"tests/errors/{file.name}:") for block in text.strip().split("\n\n"))
    for foreign in ("Traceback", "pydantic", "Input should", "Error", "hf_abcdefgh"):
        assert foreign not in text
