"""A dry run opens what the run would open, and reads the values that it would train on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llava_recipes.cli.main import main
from llava_recipes.errors import RecipeError
from tests.golden_runs import run_folder
from tests.sealed import seal_again
from tests.tiny import FIXTURES, stage1_values, write_recipe
from tests.train.in_process import train_all

Tensors = dict[str, Tensor]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first training in a process imports DeepSpeed, which sets this one."""
    monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "0")


def steps_values(folder: Path, **stage: Any) -> dict[str, Any]:
    values = stage1_values(folder, max_steps=1, warmup_ratio=0.0)
    del values["stages"][0]["train"]["num_train_epochs"]
    values["stages"][0] |= stage
    return values


def printed(values: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What a dry run says is wrong; nothing when all is well."""
    recipe = write_recipe(values, folder / "recipe.yaml")
    code = main(["run", str(recipe), "--processes", "1", "--dry-run"])
    err = capsys.readouterr().err
    assert code == (1 if err else 0)
    assert "Traceback" not in err
    return err


def save(tensors: Tensors, file: Path) -> str:
    (save_file if file.suffix == ".safetensors" else torch.save)(tensors, file)
    return str(file)


def not_finite(tensors: Tensors) -> None:
    next(reversed(tensors.values()))[..., 0] = float("nan")


def infinite_in_half(tensors: Tensors) -> None:
    name = [*tensors][-1]
    tensors[name] = torch.full_like(tensors[name], float("inf")).half()


def quantized(tensors: Tensors) -> None:
    name = [*tensors][-1]
    tensors[name] = tensors[name].to(torch.int8)


CHANGES = [
    (not_finite, "NaN"),
    (infinite_in_half, "infinite of"),
    (quantized, "is int8"),
]


@pytest.mark.parametrize(("change", "words"), CHANGES)
@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_a_projectors_values_are_read(
    change: Callable[[Tensors], None],
    words: str,
    suffix: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    values = steps_values(tmp_path / "run")
    tensors = load_file(values["model"]["projector"]["init_from"])
    values["model"]["projector"]["init_from"] = save(tensors, tmp_path / f"whole{suffix}")
    assert printed(values, tmp_path, capsys) == ""
    change(tensors)
    file = values["model"]["projector"]["init_from"] = save(tensors, tmp_path / f"changed{suffix}")
    said = printed(values, tmp_path, capsys)
    assert file in said and words in said and [*tensors][-1].removeprefix("model.mm_") in said


def test_a_projector_of_other_sizes_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = steps_values(tmp_path / "run")
    values["model"]["projector"]["type"] = "linear"
    assert "do not fit" in printed(values, tmp_path, capsys)


def test_a_projector_that_would_run_code_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = steps_values(tmp_path / "run")
    file = tmp_path / "p.bin"
    torch.save(torch.nn.Linear(2, 2), file)
    values["model"]["projector"]["init_from"] = str(file)
    assert "more than tensors" in printed(values, tmp_path, capsys)


@pytest.mark.parametrize(("change", "words"), CHANGES)
@pytest.mark.parametrize("kind", ["checkpoint", "adapters"])
def test_a_starts_values_are_read(
    change: Callable[[Tensors], None],
    words: str,
    kind: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    start = tmp_path / "start"
    if kind == "checkpoint":
        start.mkdir()
        for name in ("config.json", "model.safetensors"):
            shutil.copy(run_folder("full") / name, start / name)
        file = start / "model.safetensors"
    else:
        shutil.copytree(run_folder("lora"), start)
        file = start / "adapter_model.safetensors"
    values = steps_values(tmp_path / "run", init_from=str(start))
    del values["model"]["projector"]["init_from"]
    assert printed(values, tmp_path, capsys) == ""
    tensors = load_file(file)
    change(tensors)
    save(tensors, file)
    assert words in printed(values, tmp_path, capsys)


@pytest.mark.parametrize("buffer", ["model.vision_tower.vision_tower.vision_model.embeddings.position_ids"])
def test_whole_numbers_that_are_computed_are_no_fault(
    buffer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(run_folder("full") / "config.json", tmp_path / "config.json")
    tensors = load_file(run_folder("full") / "model.safetensors")
    save({**tensors, buffer: torch.arange(5)[None]}, tmp_path / "model.safetensors")
    values = steps_values(tmp_path / "run", init_from=str(tmp_path))
    del values["model"]["projector"]["init_from"]
    assert printed(values, tmp_path, capsys) == ""


def two_stages(folder: Path) -> dict[str, Any]:
    values = steps_values(folder / "one")
    second = json.loads(json.dumps(values["stages"][0]))
    second |= {"name": "second", "output_dir": str(folder / "two")}
    values["stages"].append(second)
    return values


def test_a_stage_that_is_not_trained_yet_is_no_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert printed(two_stages(tmp_path), tmp_path, capsys) == ""


def test_a_finished_stage_with_nan_does_not_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = two_stages(tmp_path)
    train_all({**values, "stages": values["stages"][:1]})
    assert printed(values, tmp_path, capsys) == ""
    file = tmp_path / "one" / "mm_projector.safetensors"
    tensors = load_file(file)
    not_finite(tensors)
    save(tensors, file)
    seal_again(tmp_path / "one")
    said = printed(values, tmp_path, capsys)
    assert str(tmp_path / "one") in said and "NaN" in said


def test_a_last_step_that_makes_infinite_weights_leaves_none(tmp_path: Path) -> None:
    values = steps_values(tmp_path / "run")
    # A step of nearly float32's largest number: the loss before it is an ordinary one.
    values["stages"][0]["train"] |= {"learning_rate": 3.3e38, "weight_decay": 1.0, "adam_beta1": 0.0}
    with pytest.raises(RecipeError, match="NaN or infinite values after step 1"):
        train_all(values)
    assert not list((tmp_path / "run").glob("mm_projector*"))


def base_folder(values: dict[str, Any], folder: Path) -> Path:
    """The recipe's language model in a folder of its own, as an index and one shard."""
    base = folder / "base"
    shutil.copytree(FIXTURES / "tiny_vicuna", base)
    values["model"]["language_model"] = str(base)
    return base / "model.safetensors"


def test_a_damaged_base_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = steps_values(tmp_path / "run")
    file = base_folder(values, tmp_path)
    assert printed(values, tmp_path, capsys) == ""
    shard = file.rename(file.with_name("shard-1.safetensors"))
    names = load_file(shard)
    index = {"weight_map": dict.fromkeys(names, shard.name)}
    file.with_name("model.safetensors.index.json").write_text(json.dumps(index))
    assert printed(values, tmp_path, capsys) == ""
    index["weight_map"]["model.other.weight"] = shard.name
    file.with_name("model.safetensors.index.json").write_text(json.dumps(index))
    assert "has no model.other.weight" in printed(values, tmp_path, capsys)
    shard.write_bytes(shard.read_bytes()[:-100])
    said = printed(values, tmp_path, capsys)
    assert "cannot read weights" in said and str(shard) in said
