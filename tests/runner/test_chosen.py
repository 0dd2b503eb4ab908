"""`run --stage` and `--from-stage`: which stages run, and what must be there before."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from llava_recipes.cli.main import main
from llava_recipes.errors import RecipeError
from llava_recipes.recipe.load import load_recipe
from llava_recipes.runner.facts import choose_stages, plan_recipe
from llava_recipes.runner.run_folder import stage_plan, write_done, write_opening
from llava_recipes.train.checkpoints import list_checkpoints
from tests.processes import run_to_end
from tests.tiny import FIXTURES, GOLDEN, read_metrics, stage1_values, write_recipe
from tests.train.test_checkpoints import write_checkpoint


def pipeline_values(folder: Path, **train: Any) -> dict[str, Any]:
    """Three stages, each from the one before: the projector, then all but the tower, then the tower's end."""
    values = stage1_values(folder / "one", max_steps=3, warmup_ratio=0.0, **train)
    first = values["stages"][0]
    del first["train"]["num_train_epochs"]
    for name, place, trainable in (
        ("finetune", "two", ["projector", "language_model", "lm_head"]),
        ("tower", "three", ["projector", "vision_tower.encoder.layers.{0..0}"]),
    ):
        stage = json.loads(json.dumps(first))
        stage |= {"name": name, "trainable": trainable, "output_dir": str(folder / place)}
        stage["data"]["template"] = "v1"
        stage["data"]["sources"][0]["annotations"] = str(FIXTURES / "stage2_clean.json")
        values["stages"].append(stage)
    return values


def pretend_done(recipe: Path, *stages: int) -> None:
    """Leave what says that stages are finished, without training them."""
    loaded = load_recipe(str(recipe))
    plan = plan_recipe(loaded, world_size=1)
    for index in stages:
        folder, stage = Path(plan.stages[index].output_dir), plan.stages[index]
        folder.mkdir()
        shutil.copy(GOLDEN / "06_stage1" / "base" / "init.safetensors", folder / "mm_projector.safetensors")
        write_opening(folder, plan=stage_plan(plan, index), recipe_yaml="", environment={})
        write_done(folder, num_steps=3, last_loss=1.0, starts_from=stage.starts_from)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_recipe(pipeline_values(tmp_path), tmp_path / "recipe.yaml")


@pytest.mark.parametrize(
    ("names", "first", "expected"),
    [
        ((), None, (0, 1, 2)),
        (("finetune",), None, (1,)),
        (("tower", "pretrain"), None, (0, 2)),
        ((), "pretrain", (0, 1, 2)),
        ((), "finetune", (1, 2)),
        ((), "tower", (2,)),
    ],
)
def test_stages_are_chosen_in_the_recipes_order(
    names: tuple[str, ...], first: str | None, expected: tuple[int, ...], recipe: Path
) -> None:
    assert choose_stages(load_recipe(str(recipe)), names=names, first=first) == expected


def test_a_name_that_no_stage_has(recipe: Path) -> None:
    with pytest.raises(RecipeError) as refused:
        choose_stages(load_recipe(str(recipe)), names=("fine-tune", "pretrain", "x"))
    first, second = refused.value.problems
    assert first.message == "the recipe has no stage `fine-tune`"
    assert first.found == "its stages are `pretrain`, `finetune`, `tower`"
    assert first.hint == "did you mean `finetune`?"
    assert second.message == "the recipe has no stage `x`"


def test_both_options_are_wrong_usage(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["run", str(recipe), "--stage", "pretrain", "--from-stage", "finetune"])
    assert stopped.value.code == 2


def dry_run(recipe: Path, *options: str) -> int:
    return main(["run", str(recipe), "--processes", "1", "--dry-run", *options])


def test_what_a_stage_starts_from_must_be_done(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dry_run(recipe, "--stage", "tower") == 1
    printed = capsys.readouterr().err
    assert "stage `tower` starts from `pretrain`, which is not finished" in printed
    assert "stage `tower` starts from `finetune`, which is not finished" in printed
    assert f"found: no folder {recipe.parent / 'two'}" in printed
    assert "or run both with `--from-stage finetune`" in printed

    pretend_done(recipe, 0)
    assert dry_run(recipe, "--from-stage", "finetune") == 0
    assert dry_run(recipe, "--stage", "finetune") == 0
    assert dry_run(recipe, "--stage", "tower") == 1
    assert "`pretrain`, which" not in capsys.readouterr().err

    pretend_done(recipe, 1)
    assert dry_run(recipe, "--stage", "tower") == 0
    (recipe.parent / "two" / "DONE").unlink()
    capsys.readouterr()
    assert dry_run(recipe, "--stage", "tower") == 1
    assert f"found: {recipe.parent / 'two'} has no DONE" in capsys.readouterr().err


def test_a_stage_before_that_another_plan_trained(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pretend_done(recipe, 0)
    assert dry_run(recipe, "--stage", "finetune", "--set", "stages.pretrain.train.learning_rate=2e-3") == 1
    printed = capsys.readouterr().err
    assert "starts from `pretrain`, which another plan has trained" in printed
    assert "was trained with another plan: train.learning_rate: 1e-3 then, 2e-3 now" in printed
    start = recipe.parent / "one"
    assert f"write `init_from: {start}` in `finetune`" in printed and "run it first" not in printed
    obeyed = (
        "--set",
        f"stages.finetune.init_from={start}",
        "--set",
        "stages.pretrain.train.learning_rate=2e-3",
    )
    assert dry_run(recipe, "--stage", "finetune", *obeyed) == 0


def test_a_done_stage_on_a_read_only_disk_is_left_out_as_advised(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_done(recipe, 0)
    read_only, access = recipe.parent / "one", os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != read_only and access(path, mode))
    assert dry_run(recipe) == 1
    assert "make it writable, or choose another folder; `--from-stage finetune`" in capsys.readouterr().err
    assert dry_run(recipe, "--from-stage", "finetune") == 0


def test_what_is_done_needs_no_look_at_its_beginning(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend_done(recipe, 0, 1)
    (recipe.parent / "one" / "mm_projector.safetensors").unlink()
    assert dry_run(recipe, "--stage", "finetune") == 0
    assert dry_run(recipe) == 1
    printed = capsys.readouterr().err
    assert "mm_projector.safetensors is missing" in printed and "name: tower" in printed


def test_a_stage_that_another_recipe_trained_is_done(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its plan says what it is, not the name of the recipe that it was in."""
    pretend_done(recipe, 0)
    assert dry_run(recipe, "--set", "name=another-name") == 0
    assert "pretrain: already done" in capsys.readouterr().out


def test_a_run_warns_once_of_what_it_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As `validate` does, in one line each."""
    recipe = write_recipe(pipeline_values(tmp_path, learning_rate=2e-5), tmp_path / "recipe.yaml")
    pretend_done(recipe, 0)
    assert main(["run", str(recipe), "--stage", "pretrain"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{recipe}:") and "warning: a learning rate of 2e-5 hardly moves" in line
    assert line.endswith("; feature alignment uses 1e-3 or 2e-3; 2e-5 is for fine-tuning a language model")


def test_only_what_the_chosen_stages_need_must_be_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = pipeline_values(tmp_path)
    recipe = write_recipe(values, tmp_path / "recipe.yaml")
    pretend_done(recipe, 0)
    values["stages"][2]["data"]["sources"][0]["annotations"] = "nowhere.json"
    values["stages"][2]["data"]["sources"][0]["num_samples"] = 20
    write_recipe(values, recipe)
    assert dry_run(recipe, "--stage", "finetune") == 0
    assert dry_run(recipe, "--from-stage", "finetune") == 1
    assert "nowhere.json" in capsys.readouterr().err


def test_every_folder_is_looked_at_before_the_first_stage(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a run an hour later would find: a stage of another plan, and one that is stale."""
    pretend_done(recipe, 0, 1, 2)
    (recipe.parent / "one" / "DONE").unlink()
    assert dry_run(recipe) == 1
    printed = capsys.readouterr().err
    assert printed.count("was trained again after this stage was done") == 2
    assert dry_run(recipe, "--set", "stages.tower.train.learning_rate=2e-3") == 1
    assert "output_dir contains a finished run of another plan" in capsys.readouterr().err


def test_results_that_are_written_again_leave_later_stages_done(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the message about changed results advises, where all steps were trained and later stages too."""
    pretend_done(recipe, 0, 1, 2)
    (recipe.parent / "one" / "DONE").unlink()
    plan = plan_recipe(load_recipe(str(recipe)), world_size=1)
    steps = plan.stages[0].train.max_steps
    assert steps is not None
    write_checkpoint(recipe.parent / "one", step=steps)
    assert dry_run(recipe) == 0
    assert capsys.readouterr().out.count("already done") == 2
    (recipe.parent / "one" / "metrics.jsonl").write_text("{\n")
    assert dry_run(recipe) == 1
    printed = capsys.readouterr().err
    assert "metrics.jsonl" in printed and "was trained again" not in printed


def test_a_stage_alone_and_a_pipeline_that_goes_on_in_its_middle(tmp_path: Path) -> None:
    """The second stage alone; then cut in its middle, and the whole pipeline resumed."""
    values = pipeline_values(tmp_path, save_strategy="steps", save_steps=2)
    del values["stages"][2]
    recipe = write_recipe(values, tmp_path / "recipe.yaml")
    two = tmp_path / "two"
    pretend_done(recipe, 0)
    said = run_to_end(recipe, "--stage", "finetune")
    assert (two / "DONE").exists() and "pretrain: already done" not in said
    losses = [line["loss"] for line in read_metrics(two)]
    trained = load_file(two / "trained.safetensors")

    # As if the second stage had been killed after its second step.
    for checkpoint in list_checkpoints(two):
        if checkpoint.step > 2:
            shutil.rmtree(checkpoint.folder)
    for name in ("DONE", "trained.safetensors", "mm_projector.bin", "mm_projector.safetensors"):
        (two / name).unlink()
    said = run_to_end(recipe)
    assert "pretrain: already done" in said and "resumed after step 2" in said
    assert [line["loss"] for line in read_metrics(two)] == pytest.approx(losses, rel=1e-6)
    again = load_file(two / "trained.safetensors")
    assert again.keys() == trained.keys()
    assert all((again[name] - tensor).abs().max() <= 1e-6 for name, tensor in trained.items())
