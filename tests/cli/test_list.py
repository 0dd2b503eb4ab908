"""`llava-recipe list`: the gallery at a glance."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava_recipes.authoring.gallery import gallery
from llava_recipes.cli.main import main

ROOT = Path(__file__).parent.parent.parent
WIDEST = 120


def printed_by(*arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["list", *arguments]) == 0
    return capsys.readouterr().out


def test_a_person_sees_a_line_of_each_recipe_under_its_family(capsys: pytest.CaptureFixture[str]) -> None:
    printed = printed_by(capsys=capsys)
    entries = gallery()
    families = {entry.family for entry in entries}
    blocks = [block.splitlines() for block in printed.split("\n\n")[: len(families)]]
    assert [block[0] for block in blocks] == sorted(families)
    lines = [line for block in blocks for line in block[1:]]
    assert sorted(line.split()[0] for line in lines) == [entry.name for entry in entries]
    (line,) = (line for line in lines if line.split()[0] == "pretrain_v15_13b")
    assert line.split() == ["pretrain_v15_13b", "LLaVA-1.5", "13B,", "Stage", "1", "8×A100-80G", "5.5", "h"]
    assert max(map(len, lines)) <= WIDEST
    assert "base/" not in printed


def test_of_a_recipe_everything_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    words = " ".join(printed_by("pretrain_v15_13b", capsys=capsys).split())
    assert "LLaVA-1.5 13B, Stage 1" in words
    assert "hardware 8×A100-80G" in words
    assert "5.5 h" in words
    assert "loss ending near 2" in words
    assert "finetune" not in words


def test_of_a_family_all_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    printed = printed_by("llava-1.5", capsys=capsys)
    reported = [line for line in printed.splitlines() if line and not line.startswith((" ", "`"))]
    assert set(reported) == {entry.name for entry in gallery() if entry.family == "LLaVA-1.5"}


def test_an_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "pretrain_v15_7"]) == 1
    assert "did you mean `pretrain_v15_7b`?" in capsys.readouterr().err


def test_machines_get_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json"]) == 0
    entries = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert list(entries) == [entry.name for entry in gallery()]
    assert set(entries["demo"]) == {
        *(
            "name",
            "family",
            "file",
            "purpose",
            "hardware",
            "time",
            "loss",
            "expect",
            "needs",
            "data",
            "source",
        ),
    }
    assert Path(entries["demo"]["file"]) == ROOT / "recipes" / "demo.yaml"
