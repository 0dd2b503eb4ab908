"""Which batch layout a run keeps, and on which processes it has the same steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llava_recipes.data.order import BatchLayout
from llava_recipes.errors import RecipeError
from llava_recipes.plan.types import StagePlan
from llava_recipes.recipe.load import load_source
from llava_recipes.runner.facts import plan_recipe
from llava_recipes.train.checkpoints import UNUSABLE
from llava_recipes.train.layout import check_processes, kept_layout, layout_notes, planned_layout
from tests.tiny import FIXTURES, stage1_values, yaml_text

CPU = torch.device("cpu")
STARTED_WITH = BatchLayout(world_size=1, per_device_train_batch_size=2, gradient_accumulation_steps=4)


def stage_on(processes: int, **train: Any) -> StagePlan:
    """The plan of a stage of 22 samples, 8 in a step."""
    batch = {"per_device_train_batch_size": 2, "global_batch_size": 8}
    values = stage1_values(Path("run"), **{**batch, **train})
    values["stages"][0]["data"]["sources"][0]["annotations"] = str(FIXTURES / "stage1_22.json")
    (stage,) = plan_recipe(load_source(yaml_text(values), "recipe.yaml"), world_size=processes).stages
    return stage


def checkpoint(folder: Path, **facts: object) -> Path:
    (folder / "checkpoint.json").write_text(json.dumps(facts))
    return folder


def test_a_new_run_has_the_layout_of_its_plan() -> None:
    stage = stage_on(2)
    assert kept_layout(stage, None, CPU) == planned_layout(stage.train) == BatchLayout(2, 2, 2)
    assert layout_notes(stage, BatchLayout(2, 2, 2)) == []


@pytest.mark.parametrize(("processes", "per_device"), [(2, 2), (4, 2), (1, 8), (4, 1)])
def test_a_run_keeps_the_layout_of_its_checkpoint(processes: int, per_device: int, tmp_path: Path) -> None:
    stage = stage_on(processes, per_device_train_batch_size=per_device)
    folder = checkpoint(tmp_path, layout=STARTED_WITH.to_json())
    assert kept_layout(stage, folder, CPU) == STARTED_WITH
    (note,) = layout_notes(stage, STARTED_WITH)
    assert note.endswith("started with: 2 per device × 4 accumulated × 1 process")


def test_another_global_batch_has_the_layout_of_the_plan(tmp_path: Path) -> None:
    stage = stage_on(1, global_batch_size=4)
    folder = checkpoint(tmp_path, layout=STARTED_WITH.to_json())
    assert kept_layout(stage, folder, CPU) == BatchLayout(1, 2, 2)


def test_a_checkpoint_without_a_layout_has_that_of_the_plan(tmp_path: Path) -> None:
    assert kept_layout(stage_on(2), checkpoint(tmp_path, step=1), CPU) == BatchLayout(2, 2, 2)


def test_a_damaged_layout_makes_a_checkpoint_unusable(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, layout={**STARTED_WITH.to_json(), "world_size": 0})
    with pytest.raises(RecipeError) as raised:
        kept_layout(stage_on(1), folder, CPU)
    (problem,) = raised.value.problems
    assert problem.code == UNUSABLE
    assert problem.found is not None and "`world_size` is 0" in problem.found


def test_processes_that_drop_other_samples_are_refused() -> None:
    """One process drops none of 22 samples; four drop six, and have two steps per epoch instead of three."""
    dropping = {"extra": {"dataloader_drop_last": True}}
    check_processes(stage_on(2, **dropping), STARTED_WITH, ("stages", 0))
    with pytest.raises(RecipeError) as raised:
        check_processes(stage_on(4, **dropping), STARTED_WITH, ("stages", 0))
    (problem,) = raised.value.problems
    assert problem.code == "processes-change-the-steps"
    assert problem.found == "2 steps per epoch on 4 processes, 3 on the 1 that it was started with"
    assert problem.hint == (
        "resume it with `--processes 1` and its own `per_device_train_batch_size: 2`; "
        "with `global_batch_size: 8`, 2 processes fit too"
    )
    check_processes(stage_on(4), STARTED_WITH, ("stages", 0))


def test_a_length_in_steps_is_the_same_on_any_processes() -> None:
    stage = stage_on(4, num_train_epochs=None, max_steps=5, extra={"dataloader_drop_last": True})
    check_processes(stage, STARTED_WITH, ("stages", 0))
