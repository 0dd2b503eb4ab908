"""`llava-recipe migrate`: where the recipe and the report go, and exit codes."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from llava_recipes.cli.main import main
from llava_recipes.migrate.migration import migrate

SCRIPT = Path(__file__).parents[1] / "migrate/scripts/v1_5/pretrain.sh"


def test_the_recipe_goes_to_standard_output_and_the_report_beside_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["migrate", str(SCRIPT), "--arg", "7b"]) == 0
    printed = capsys.readouterr()
    assert "name: llava-v1.5-7b-pretrain\n" in printed.out
    assert "-> train.learning_rate" in printed.err
    assert "-> data.image_aspect_ratio" in printed.err
    assert printed.err.endswith("The recipe is valid and contains every setting of the script.\n")


def test_the_recipe_is_written_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    assert main(["migrate", str(SCRIPT), "-o", str(recipe)]) == 0
    assert main(["validate", str(recipe)]) == 0
    assert main(["migrate", str(SCRIPT), "-o", str(recipe)]) == 1
    assert "already exists" in capsys.readouterr().err
    assert main(["migrate", str(SCRIPT), "--arg", "7b", "-o", str(recipe), "--force"]) == 0
    assert "vicuna-7b" in recipe.read_text(encoding="utf-8")


def test_a_recipe_that_is_not_complete_is_written_and_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script, recipe = tmp_path / "train.sh", tmp_path / "recipe.yaml"
    script.write_text("python -m llava.train.train --version v0_mmtag --output_dir out\n", encoding="utf-8")
    assert main(["migrate", str(script), "-o", str(recipe)]) == 1
    reported = capsys.readouterr().err
    assert "The recipe is not complete yet" in reported
    assert f"{recipe}:" in reported
    assert "v0_mmtag" in recipe.read_text(encoding="utf-8")


def test_what_is_lost_fails_only_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "train.sh"
    script.write_text(SCRIPT.read_text(encoding="utf-8").rstrip() + " --bits 2\n", encoding="utf-8")
    assert main(["migrate", str(script)]) == 0
    assert "The recipe is valid; 1 setting is lost, as listed above." in capsys.readouterr().err
    assert main(["migrate", str(script), "--strict"]) == 1


def test_variables_come_from_the_command_line_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "train.sh"
    text = SCRIPT.read_text(encoding="utf-8").replace("SIZE=${1:-13b}\n", "")
    script.write_text(text, encoding="utf-8")
    monkeypatch.setenv("SIZE", "7b")
    assert main(["migrate", str(script)]) == 1
    assert "add --var SIZE=VALUE" in capsys.readouterr().err
    assert main(["migrate", str(script), "--var", "SIZE=7b"]) == 0
    assert "vicuna-7b" in capsys.readouterr().out
    assert main(["migrate", str(script), "--var", "SIZE"]) == 1
    assert "--var needs NAME=VALUE" in capsys.readouterr().err


def test_where_it_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["migrate", str(SCRIPT), "-o", str(tmp_path / "none/recipe.yaml")]) == 1
    assert "none does not exist" in capsys.readouterr().err


def test_there_and_back_through_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, script, again = (tmp_path / name for name in ("a.yaml", "a.sh", "b.yaml"))
    assert main(["migrate", str(SCRIPT), "-o", str(recipe)]) == 0
    assert main(["export-script", str(recipe), "-o", str(script)]) == 0
    assert main(["export-script", str(recipe), "-o", str(script)]) == 1
    assert main(["migrate", str(script), "-o", str(again)]) == 0
    capsys.readouterr()
    assert main(["diff", str(recipe), str(again)]) == 0
    assert "mean the same" in capsys.readouterr().out


def test_a_stage_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = Path(__file__).parents[2] / "recipes/pretrain_v15_13b.yaml"
    assert main(["export-script", str(recipe), "--stage", "pretrian"]) == 1
    assert "did you mean `pretrain`?" in capsys.readouterr().err
    assert main(["export-script", str(recipe), "--stage", "pretrain"]) == 0
    assert "deepspeed llava/train/train_mem.py" in capsys.readouterr().out


def test_on_a_terminal_the_report_fits_its_width() -> None:
    from rich.console import Console

    from llava_recipes.cli.migrate import show_report

    migration = migrate(SCRIPT.read_text(encoding="utf-8"), "pretrain.sh")
    console = Console(width=80, record=True, file=io.StringIO())
    show_report(migration, "pretrain.sh", console)
    lines = console.export_text().splitlines()
    assert lines[0].startswith("pretrain.sh: stage pretrain: 32 mapped")
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    for entry in migration.stages[0][1]:
        assert entry.name in text
