"""LoRA runs: the same under every engine and after a cut, and a beginning for the stage that follows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.golden_runs import run_folder
from tests.processes import run_to_end
from tests.tiny import FIXTURES, read_metrics, stage1_values, write_recipe
from tests.train.cutting import copy_cut

ENGINES = [(1, "zero2"), (2, "zero3")]


def write_lora_recipe(folder: Path, *, processes: int = 1, deepspeed: str = "none") -> Path:
    values = stage1_values(
        folder / "run",
        num_train_epochs=1,
        per_device_train_batch_size=4 // processes,
        loss_normalization="token",
        save_strategy="steps",
        save_steps=3,
    )
    values["stages"][0] |= {
        "lora": {"r": 4, "alpha": 8, "dropout": 0.0},
        "param_groups": [{"modules": ["projector"], "learning_rate": 1e-4}],
        "deepspeed": deepspeed,
    }
    return write_recipe(values, folder / "recipe.yaml")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference")
    run_to_end(write_lora_recipe(folder))
    return folder


def test_a_run_leaves_its_adapters(reference: Path) -> None:
    run = reference / "run"
    adapters, trained = load_file(run / "adapter_model.safetensors"), load_file(run / "trained.safetensors")
    others = torch.load(run / "non_lora_trainables.bin", weights_only=True)
    assert len(adapters) == 2 * 2 * 7 and len(others) == 4
    assert len(trained) == len(adapters) + len(others)
    assert any(tensor.abs().max() > 0 for name, tensor in adapters.items() if "lora_B" in name)


@pytest.mark.parametrize(("processes", "deepspeed"), ENGINES)
def test_engines_agree(processes: int, deepspeed: str, reference: Path, tmp_path: Path) -> None:
    recipe = write_lora_recipe(tmp_path, processes=processes, deepspeed=deepspeed)
    # Forked processes have the order of sets in common: two fresh ones must agree without.
    run_to_end(recipe, "--processes", str(processes), fresh=processes > 1)
    for ours, theirs in zip(read_metrics(tmp_path / "run"), read_metrics(reference / "run"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["learning_rate"] == theirs["learning_rate"]
    ours_trained, theirs_trained = (
        load_file(folder / "run" / "trained.safetensors") for folder in (tmp_path, reference)
    )
    assert ours_trained.keys() == theirs_trained.keys()
    for name, tensor in theirs_trained.items():
        assert (ours_trained[name] - tensor).abs().max() <= 1e-5, name


def test_a_resumed_run_is_the_uncut_run(reference: Path, tmp_path: Path) -> None:
    run_to_end(copy_cut(reference, tmp_path, step=3), "--resume")
    losses = [[line["loss"] for line in read_metrics(folder / "run")] for folder in (tmp_path, reference)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    again, whole = (load_file(folder / "run" / "trained.safetensors") for folder in (tmp_path, reference))
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())


def test_the_stage_after_starts_from_the_merged_model(reference: Path, tmp_path: Path) -> None:
    values = stage1_values(tmp_path / "run", num_train_epochs=1, warmup_ratio=0.5)
    values["stages"][0]["init_from"] = str(reference / "run")
    run_to_end(write_recipe(values, tmp_path / "recipe.yaml"))
    # The first step has learning rate 0 and the reference's data: only the weights differ.
    start = read_metrics(tmp_path / "run")[0]["loss"]
    assert start != pytest.approx(read_metrics(reference / "run")[0]["loss"], rel=1e-4)
    assert load_file(tmp_path / "run" / "mm_projector.safetensors").keys()
    assert not (tmp_path / "run" / "adapter_config.json").exists()


def test_a_finished_llava_is_trained_on(tmp_path: Path) -> None:
    """As the task recipes do: the original's checkpoint is the language model and brings its projector."""
    llava = tmp_path / "llava"
    shutil.copytree(FIXTURES / "tiny_vicuna", llava)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(run_folder("full") / name, llava / name)
    values = stage1_values(tmp_path / "run", num_train_epochs=1, warmup_ratio=0.5)
    values["model"]["language_model"] = str(llava)
    del values["model"]["projector"]["init_from"]
    values["stages"][0]["lora"] = {"r": 4}
    run_to_end(write_recipe(values, tmp_path / "recipe.yaml"))
    before = load_file(llava / "model.safetensors")["model.mm_projector.0.weight"]
    after = load_file(tmp_path / "run" / "mm_projector.safetensors")["model.mm_projector.0.weight"]
    # AdamW moves no weight by much more than the learning rate in a step.
    assert 0 < (after - before).abs().max() <= 6 * 1.01e-3
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["model_type"] == "llava_llama"
