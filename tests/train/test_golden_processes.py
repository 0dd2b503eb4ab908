"""A run on several processes with `order: original` equals the original code's, resumed or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from llava_recipes.data.order import BatchLayout
from llava_recipes.train import stage as stages
from tests.golden_runs import runs_of_several_processes
from tests.processes import run_to_end
from tests.tiny import FIXTURES, GOLDEN, read_metrics, stage1_values, write_recipe
from tests.train.cutting import cut_after
from tests.train.in_process import like_a_worker
from tests.train.keeping_layout import train_here, train_with

RUNS = runs_of_several_processes()


def values_of(name: str, folder: Path, **train: Any) -> dict[str, Any]:
    """The recorded run as recipe values."""
    run = RUNS[name]
    batch = {key: run[key] for key in ("per_device_train_batch_size", "gradient_accumulation_steps")}
    values = stage1_values(folder / "run", **batch, **train)
    values["model"]["projector"]["init_from"] = str(GOLDEN / "06_stage1/base/mm_projector.bin")
    stage = values["stages"][0]
    stage["data"]["order"] = "original"
    stage["data"]["sources"][0]["annotations"] = str(FIXTURES / run["annotations"])
    if run["group_by"] != "none":
        stage |= {"freeze": ["vision_tower"], "trainable": []}
        stage["train"]["learning_rate"] = 2e-5
        stage["data"] |= {"template": "v1", "image_aspect_ratio": "pad", "max_length": 512}
        stage["data"]["group_by"] = run["group_by"]
    return values


def assert_equal_to_the_original(run: Path, name: str) -> None:
    record, metrics = RUNS[name], read_metrics(run)
    assert len(metrics) == len(record["loss"]) > 0
    for line, loss, rate, norm in zip(
        metrics, record["loss"], record["lr_used"], record["grad_norm"], strict=True
    ):
        assert line["loss"] == pytest.approx(loss, rel=1e-5)
        assert line["learning_rate"] == pytest.approx(rate, rel=1e-12, abs=1e-15)
        assert line["grad_norm"] == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize("name", RUNS)
def test_run_equals_the_original(name: str, tmp_path: Path) -> None:
    recipe = write_recipe(values_of(name, tmp_path), tmp_path / "recipe.yaml")
    run_to_end(recipe, "--processes", str(RUNS[name]["processes"]))
    assert_equal_to_the_original(tmp_path / "run", name)
    plan = json.loads((tmp_path / "run/plan.json").read_text())
    assert plan["stages"][0]["data"]["order"] == "original"
    if name == "plain":
        golden = load_file(GOLDEN / "09_order/plain_projector.safetensors")
        ours = load_file(tmp_path / "run/mm_projector.safetensors")
        assert ours.keys() == golden.keys()
        for key, tensor in golden.items():
            assert (ours[key] - tensor).abs().max() <= 1e-5


@pytest.mark.parametrize("name", RUNS)
def test_one_process_computes_what_the_original_did_on_several(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run keeps its device batches: those of the record, also where the last ones are filled up."""
    run = RUNS[name]
    layout = BatchLayout(
        run["processes"], run["per_device_train_batch_size"], run["gradient_accumulation_steps"]
    )
    values = values_of(name, tmp_path)
    values["stages"][0]["train"]["gradient_accumulation_steps"] = layout.batches_per_step
    monkeypatch.setattr(stages, "kept_layout", lambda *given: layout)
    with like_a_worker():
        train_here(layout, write_recipe(values, tmp_path / "recipe.yaml"))
    assert_equal_to_the_original(tmp_path / "run", name)


def test_parts_of_device_batches_on_more_processes_compute_what_the_original_did(tmp_path: Path) -> None:
    """Passes of 3 samples over device batches of 2, on four processes instead of three, with ZeRO-3."""
    values = values_of("plain_accum", tmp_path)
    stage = values["stages"][0]
    stage["deepspeed"] = "zero3"
    stage["train"] |= {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 1}
    recipe = write_recipe(values, tmp_path / "recipe.yaml")
    train_with(BatchLayout(3, 2, 2), recipe, processes=4)
    assert_equal_to_the_original(tmp_path / "run", "plain_accum")


@pytest.mark.parametrize(("name", "step"), [("plain", 4), ("grouped", 9)])
def test_a_resumed_run_equals_the_original(name: str, step: int, tmp_path: Path) -> None:
    """The cut lies in the second epoch, and in the third."""
    recipe = write_recipe(
        values_of(name, tmp_path, save_strategy="steps", save_steps=step), tmp_path / "recipe.yaml"
    )
    run_to_end(recipe, "--processes", "2")
    cut_after(tmp_path / "run", step)
    run_to_end(recipe, "--processes", "2", "--resume")
    assert_equal_to_the_original(tmp_path / "run", name)
    assert (tmp_path / "run/metrics.superseded.jsonl").read_text().count("\n") == len(
        RUNS[name]["loss"]
    ) - step
