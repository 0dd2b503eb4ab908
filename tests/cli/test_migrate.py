"""`llava-recipe migrate`: where the recipe and the report go, and exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava_recipes.cli.main import main

SCRIPT = Path(__file__).parents[1] / "migrate/scripts/v1_5/pretrain.sh"


def test_the_recipe_goes_to_standard_output_and_the_report_beside_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["migrate", str(SCRIPT), "--arg", "7b"]) == 0
    printed = capsys.readouterr()
    assert "name: llava-v1.5-7b-pretrain\n" in printed.out
    assert "-> train.learning_rate" in printed.err
    assert "-> data.image_aspect_ratio" in printed.err
    assert printed.err.endswith("The recipe is valid and says all that the script says.\n")


def test_the_recipe_is_written_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    assert main(["migrate", str(SCRIPT), "-o", str(recipe)]) == 0
    assert main(["validate", str(recipe)]) == 0
    assert main(["migrate", str(SCRIPT), "-o", str(recipe)]) == 1
    assert "this file is there already" in capsys.readouterr().err
    assert main(["migrate", str(SCRIPT), "--arg", "7b", "-o", str(recipe), "--force"]) == 0
    assert "vicuna-7b" in recipe.read_text(encoding="utf-8")
