"""`llava-recipe list`: the gallery at a glance."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava_recipes.cli.main import main

ROOT = Path(__file__).parent.parent.parent


def test_a_person_sees_what_a_recipe_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    block = printed.partition("pretrain_v15_13b\n")[2].partition("\n\n")[0]
    words = " ".join(block.split())
    assert "LLaVA-1.5 13B, Stage 1" in words
    assert "hardware 8×A100-80G" in words
    assert "5.5 h" in words
    assert "loss ending near 2" in words
    assert "base/" not in printed
    assert "not stated" not in printed


def test_machines_get_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json"]) == 0
    entries = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert set(entries["demo"]) == {
        *("name", "file", "purpose", "hardware", "time", "loss", "expect", "data", "source"),
    }
    assert Path(entries["demo"]["file"]) == ROOT / "recipes" / "demo.yaml"
