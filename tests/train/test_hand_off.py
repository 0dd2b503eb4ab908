"""Stages of one recipe: each starts from the one before, trains what it names and leaves the rest alone."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.processes import run_recipe, run_to_end
from tests.sealed import seal_again
from tests.tiny import FIXTURES, read_metrics, stage1_values, write_recipe

LANGUAGE_MODEL = FIXTURES / "tiny_vicuna" / "model.safetensors"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stage 1, then a second stage that trains the language model too, on conversations and text."""
    folder = tmp_path_factory.mktemp("pipeline")
    values = stage1_values(folder / "one", max_steps=3)
    first = values["stages"][0]
    del first["train"]["num_train_epochs"]
    second = json.loads(json.dumps(first))
    second |= {"name": "finetune", "freeze": ["vision_tower"], "output_dir": str(folder / "two")}
    del second["trainable"]
    second["data"] |= {"template": "v1"}
    second["data"]["sources"][0]["annotations"] = str(FIXTURES / "stage2_clean.json")
    second["train"] |= {"warmup_ratio": 0.0, "learning_rate": 1e-2}
    values["stages"].append(second)
    before = hashlib.sha256(LANGUAGE_MODEL.read_bytes()).digest()
    run_to_end(write_recipe(values, folder / "recipe.yaml"))
    # The base weights are mapped from this file while they train.
    assert hashlib.sha256(LANGUAGE_MODEL.read_bytes()).digest() == before
    return folder


def test_the_second_stage_starts_from_the_first(pipeline: Path) -> None:
    plan = json.loads((pipeline / "two" / "plan.json").read_text())
    assert plan["stages"][0]["starts_from"] == [str(pipeline / "one")]
    first = torch.load(pipeline / "one" / "mm_projector.bin", weights_only=True)
    second = torch.load(pipeline / "two" / "mm_projector.bin", weights_only=True)
    moved = max(float((second[name] - first[name]).abs().max()) for name in first)
    # AdamW moves no weight by much more than the learning rate in a step.
    assert 0 < moved <= 3 * 1.01e-2


def test_what_trains_is_saved_and_nothing_else(pipeline: Path) -> None:
    trained = load_file(pipeline / "two" / "trained.safetensors")
    base = load_file(LANGUAGE_MODEL)
    assert {name.split(".")[0] for name in trained} == {"language_model", "lm_head", "projector"}
    moved = trained["language_model.layers.0.self_attn.q_proj.weight"]
    assert not torch.equal(moved, base["model.layers.0.self_attn.q_proj.weight"])
    assert not (pipeline / "one" / "trained.safetensors").exists()


def test_both_stages_are_done_the_second_time(pipeline: Path) -> None:
    said = run_to_end(pipeline / "recipe.yaml")
    assert said.count("already done") == 2


def test_a_stage_whose_beginning_was_trained_again_is_refused(pipeline: Path) -> None:
    one = pipeline / "one"
    before = {name: (one / name).read_bytes() for name in ("DONE", "mm_projector.safetensors")}
    tensors = load_file(one / "mm_projector.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, one / "mm_projector.safetensors")
    seal_again(one, finished="2001-01-01T00:00:00+00:00")
    try:
        refused = run_recipe(pipeline / "recipe.yaml")
    finally:
        for name, data in before.items():
            (one / name).write_bytes(data)
    assert refused.returncode == 1
    assert "trained again" in refused.stderr


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    values = stage1_values(tmp_path / "run", learning_rate=1e30, max_grad_norm=0.0, warmup_ratio=0.0)
    ended = run_recipe(write_recipe(values, tmp_path / "recipe.yaml"))
    assert ended.returncode == 1
    assert "learning_rate" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "run" / "DONE").exists()
    assert not (tmp_path / "run" / "mm_projector.bin").exists()
    assert all(line["loss"] == line["loss"] for line in read_metrics(tmp_path / "run"))
