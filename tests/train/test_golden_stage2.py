"""A Stage-2 run equals the original code's: order, groups, every loss and norm, and the final weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from llava_recipes.model.lora import PEFT_KEYS
from tests.golden_runs import (
    STAGE2_RUNS,
    golden_stage2,
    ours_for,
    recorded_adapters,
    recorded_run,
    run_folder,
)
from tests.processes import ROOT, python, run_process
from tests.tiny import FIXTURES, read_metrics, write_recipe


def train_as_the_original(values: dict[str, Any], folder: Path, *adapters: str) -> dict[str, Any]:
    """Train in a process of its own; gives the order and the groups."""
    recipe = write_recipe(values, folder / "recipe.yaml")
    words = [str(recipe), str(folder / "facts.json"), *adapters]
    done = run_process([*python("tests.train.as_the_original"), *words], cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    facts: dict[str, Any] = json.loads((folder / "facts.json").read_text())
    return facts


def assert_same_weights(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert (ours[key] - tensor).abs().max() <= 1e-5, key


def assert_same_config(ours: Path, theirs: Path) -> None:
    """Our config.json names the language model's class, since the language model is what its weights are."""
    differing = {"transformers_version", "_name_or_path", "mm_vision_tower", "architectures"}
    config, expected = (json.loads((folder / "config.json").read_text()) for folder in (ours, theirs))
    assert config.keys() == expected.keys()
    assert {key: value for key, value in config.items() if key not in differing} == {
        key: value for key, value in expected.items() if key not in differing
    }


@pytest.mark.parametrize("name", STAGE2_RUNS)
def test_run_equals_the_original(name: str, tmp_path: Path) -> None:
    record = recorded_run(name)
    adapters = recorded_adapters(name)
    values = golden_stage2(tmp_path / "run", name)
    facts = train_as_the_original(values, tmp_path, *([] if adapters is None else [str(adapters)]))
    assert facts["order"] == record["order"]
    # The original's projector comes after the language model; within a group the order means nothing.
    assert [{**group, "names": sorted(group["names"])} for group in facts["groups"]] == [
        {
            "names": sorted(ours_for(key) for key in group["names"]),
            "weight_decay": group["weight_decay"],
            "initial_lr": group["initial_lr"],
        }
        for group in record["groups"]
        if group["names"]
    ]
    metrics = read_metrics(tmp_path / "run")
    assert len(metrics) == len(record["steps"]) == 18
    for line, step in zip(metrics, record["steps"], strict=True):
        assert line["loss"] == pytest.approx(step["loss"], rel=1e-5)
        assert line["learning_rate"] == pytest.approx(step["lr_used"][0], rel=1e-12, abs=1e-15)
        assert line["grad_norm"] == pytest.approx(step["grad_norm"], rel=1e-4)

    sums = [step["projector_abs_sum_before"] for step in record["steps"]]
    assert facts["projector_sums"] == pytest.approx(sums, rel=1e-7)

    trained = load_file(tmp_path / "run" / "trained.safetensors")
    assert trained.keys() == {ours_for(key) for key in record["trainable"]}
    golden = run_folder(name) / "model.safetensors"
    if golden.exists():
        theirs = {ours_for(key): tensor for key, tensor in load_file(golden).items()}
        assert_same_weights(trained, {key: theirs[key] for key in trained})
    assert_same_config(tmp_path / "run", run_folder(name))
    if name == "lora":
        assert_same_lora_files(tmp_path / "run", run_folder(name))


def assert_same_lora_files(ours: Path, theirs: Path) -> None:
    assert_same_weights(*(load_file(folder / "adapter_model.safetensors") for folder in (ours, theirs)))
    name = "non_lora_trainables.bin"
    assert_same_weights(*(torch.load(folder / name, weights_only=True) for folder in (ours, theirs)))
    config, expected = (json.loads((folder / "adapter_config.json").read_text()) for folder in (ours, theirs))
    assert sorted(expected.pop("target_modules")) == config.pop("target_modules")
    expected["base_model_name_or_path"] = str(FIXTURES / "tiny_vicuna")
    assert config == {key: expected[key] for key in config}
    # What isn't written is what peft takes anyway.
    left_out = expected.keys() - config.keys()
    assert {key: expected[key] for key in left_out} == {key: PEFT_KEYS[key] for key in left_out}
