"""QLoRA runs: the same under every engine and after a cut; refused before loading where it cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.processes import run_recipe, run_to_end
from tests.tiny import read_metrics, stage1_values, write_recipe
from tests.train.cutting import copy_cut, cut_after

pytest.importorskip("bitsandbytes")


def qlora_values(
    folder: Path, *, bits: int = 4, processes: int = 1, deepspeed: str = "none"
) -> dict[str, Any]:
    values = stage1_values(
        folder / "run",
        num_train_epochs=1,
        per_device_train_batch_size=4 // processes,
        loss_normalization="token",
        save_strategy="steps",
        save_steps=3,
    )
    model = values["model"]
    model["language_model"] = {"source": model["language_model"], "quantization": {"bits": bits}}
    values["stages"][0] |= {"lora": {"r": 4, "alpha": 8, "dropout": 0.0}, "deepspeed": deepspeed}
    return values


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference")
    text = run_to_end(write_recipe(qlora_values(folder), folder / "recipe.yaml"))
    assert "the language model's linear layers, to 4 bits, nf4" in text
    return folder / "run"


def test_a_run_leaves_adapters_and_projector_alone(reference: Path) -> None:
    names = ("adapter_model.safetensors", "trained.safetensors")
    adapters, trained = (load_file(reference / name) for name in names)
    assert len(adapters) == 2 * 2 * 7 and len(trained) == len(adapters) + 4
    assert any(tensor.abs().max() > 0 for name, tensor in adapters.items() if "lora_B" in name)
    assert all(tensor.dtype == torch.float32 for tensor in trained.values())


@pytest.mark.parametrize(("processes", "deepspeed"), [(1, "zero2"), (2, "none"), (2, "zero2")])
def test_engines_agree(processes: int, deepspeed: str, reference: Path, tmp_path: Path) -> None:
    values = qlora_values(tmp_path, processes=processes, deepspeed=deepspeed)
    run_to_end(write_recipe(values, tmp_path / "recipe.yaml"), "--processes", str(processes))
    for ours, theirs in zip(read_metrics(tmp_path / "run"), read_metrics(reference), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    ours_trained, theirs_trained = (
        load_file(folder / "trained.safetensors") for folder in (tmp_path / "run", reference)
    )
    assert ours_trained.keys() == theirs_trained.keys()
    for name, tensor in theirs_trained.items():
        assert (ours_trained[name] - tensor).abs().max() <= 1e-5, name


@pytest.mark.parametrize("deepspeed", ["none", "zero2"])
def test_a_resumed_run_is_the_uncut_run(deepspeed: str, reference: Path, tmp_path: Path) -> None:
    if deepspeed == "none":
        recipe = copy_cut(reference.parent, tmp_path, step=3)
    else:
        recipe = write_recipe(qlora_values(tmp_path, deepspeed=deepspeed), tmp_path / "recipe.yaml")
        run_to_end(recipe)
        cut_after(tmp_path / "run", 3)
    run_to_end(recipe, "--resume")
    for ours, theirs in zip(read_metrics(tmp_path / "run"), read_metrics(reference), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)


def test_8_bits_train(reference: Path, tmp_path: Path) -> None:
    run_to_end(write_recipe(qlora_values(tmp_path, bits=8), tmp_path / "recipe.yaml"))
    losses = [[line["loss"] for line in read_metrics(run)] for run in (tmp_path / "run", reference)]
    assert losses[0] == pytest.approx(losses[1], rel=0.05) and losses[0] != losses[1]


def test_a_run_with_adapters_is_no_beginning(reference: Path, tmp_path: Path) -> None:
    values = qlora_values(tmp_path)
    values["stages"][0]["init_from"] = str(reference)
    done = run_recipe(write_recipe(values, tmp_path / "recipe.yaml"))
    assert done.returncode == 1
    assert "cannot be merged into a quantized language model" in done.stderr
    assert not (tmp_path / "run").exists()
