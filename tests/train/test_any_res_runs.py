"""LLaVA-NeXT's two stages on tiny models: the projector alone, then all parts, the tower at its own rate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llava_recipes.model.learned_rows import ImageNewline
from llava_recipes.plan.types import Plan
from llava_recipes.recipe.load import load_recipe
from llava_recipes.runner.facts import plan_recipe
from llava_recipes.runner.run_folder import stage_plan, write_done, write_results
from llava_recipes.train.stage import train_stage
from tests.processes import run_to_end
from tests.tiny import FIXTURES, read_metrics, stage1_values, write_recipe
from tests.train.in_process import like_a_worker

UNPAD = {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad"}
# The fourth step has two samples left, which are one batch on one process and half of each of two.
TOWER_RATE, RATE, STEPS = 2e-4, 1e-3, 3


def next_values(folder: Path, *, processes: int = 1) -> dict[str, Any]:
    values = stage1_values(
        folder / "pretrain",
        max_steps=3,
        loss_normalization="token",
        per_device_train_batch_size=4 // processes,
        gradient_checkpointing=False,
    )
    first = values["stages"][0]
    del first["train"]["num_train_epochs"]
    first["data"] |= UNPAD
    second = json.loads(json.dumps(first))
    second |= {
        "name": "finetune",
        "freeze": "none",
        "param_groups": [{"modules": ["vision_tower"], "learning_rate": TOWER_RATE}],
        "output_dir": str(folder / "finetune"),
    }
    del second["trainable"]
    second["data"] |= {"template": "v1", "group_by": "modality_length"}
    second["data"]["sources"][0]["annotations"] = str(FIXTURES / "stage2_clean.json")
    second["train"] |= {
        "max_steps": STEPS,
        "learning_rate": RATE,
        "warmup_ratio": 0.0,
        "save_strategy": "steps",
        "save_steps": 2,
    }
    values["stages"].append(second)
    return values


def train(plan: Plan, index: int, folder: Path, *, resume_from: Path | None = None) -> None:
    own = stage_plan(plan, index)
    folder.mkdir(exist_ok=True)
    with like_a_worker():
        trained = train_stage(own, 0, output_dir=folder, resume_from=resume_from)
        write_results(own, trained, folder)
        write_done(folder, num_steps=trained.num_steps, last_loss=trained.last_loss, starts_from=())
        del trained


def planned(folder: Path, **given: Any) -> Plan:
    recipe = write_recipe(next_values(folder, **given), folder / "recipe.yaml")
    return plan_recipe(load_recipe(str(recipe)), world_size=given.get("processes", 1))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both stages on one process."""
    folder = tmp_path_factory.mktemp("next")
    plan = planned(folder)
    train(plan, 0, folder / "pretrain")
    train(plan, 1, folder / "finetune")
    return folder


def test_the_projector_learns_first_and_the_newline_with_the_rest(runs: Path) -> None:
    assert not (runs / "pretrain" / "trained.safetensors").exists()
    assert not any("newline" in name for name in load_file(runs / "pretrain" / "mm_projector.safetensors"))
    trained = load_file(runs / "finetune" / "trained.safetensors")
    assert {name.split(".")[0] for name in trained} == {
        *("vision_tower", "projector", "language_model", "lm_head", "image_newline")
    }
    drawn = ImageNewline(32, seed=0).weight.detach()
    moved = (trained["image_newline"] - drawn).abs().max()
    # AdamW moves no weight by much more than the learning rate in a step.
    assert 0 < moved <= 1.01 * STEPS * RATE
    base = load_file(FIXTURES / "tiny_clip" / "model.safetensors")
    name = "encoder.layers.0.mlp.fc1.weight"
    moved = (trained[f"vision_tower.{name}"] - base[f"vision_model.{name}"].float()).abs().max()
    assert 0 < moved <= 1.01 * STEPS * TOWER_RATE
    config = json.loads((runs / "finetune" / "config.json").read_text())
    assert (config["image_aspect_ratio"], config["mm_patch_merge_type"]) == ("anyres", "spatial_unpad")
    assert config["image_grid_pinpoints"][:2] == [[56, 112], [112, 56]]


def test_a_cut_run_goes_on_as_if_it_had_not_been(runs: Path, tmp_path: Path) -> None:
    plan = planned(tmp_path)
    whole = read_metrics(runs / "finetune")
    folder = tmp_path / "finetune"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in whole[:2]))
    stage = plan.stages[1].model_copy(update={"starts_from": (str(runs / "pretrain"),)})
    plan = plan.model_copy(update={"stages": (plan.stages[0], stage)})
    train(plan, 1, folder, resume_from=runs / "finetune" / "checkpoint-2")
    again = read_metrics(folder)
    assert [line["step"] for line in again] == [1, 2, 3]
    assert [line["loss"] for line in again] == pytest.approx([line["loss"] for line in whole], rel=1e-6)
    ours, theirs = (load_file(run / "finetune" / "trained.safetensors") for run in (tmp_path, runs))
    assert torch.allclose(ours["image_newline"], theirs["image_newline"], atol=1e-6)


def test_two_processes_under_zero3_train_the_same(runs: Path, tmp_path: Path) -> None:
    """Images of many shapes and text alone on either; newline and tower are split over both."""
    values = next_values(tmp_path, processes=2)
    stage = values["stages"].pop()
    stage |= {
        "init_from": str(runs / "pretrain"),
        "deepspeed": {
            "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
            "train_micro_batch_size_per_gpu": "auto",
            "train_batch_size": "auto",
            "gradient_accumulation_steps": "auto",
            "gradient_clipping": "auto",
        },
    }
    stage["train"]["save_strategy"] = "no"
    values["stages"] = [stage]
    run_to_end(write_recipe(values, tmp_path / "recipe.yaml"), "--processes", "2")
    ours, theirs = (read_metrics(run / "finetune") for run in (tmp_path, runs))
    assert [line["loss"] for line in ours] == pytest.approx([line["loss"] for line in theirs], rel=1e-4)
    weights, expected = (load_file(run / "finetune" / "trained.safetensors") for run in (tmp_path, runs))
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (weights[name] - tensor).abs().max() <= 1e-4, name
