"""GPUs by name, and what a stage writes to disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava_recipes.estimate.cost import GPUS, UnknownGpuError, find_gpu
from llava_recipes.estimate.estimate import Assumptions, Estimator
from llava_recipes.recipe.load import load_recipe
from llava_recipes.runner.facts import compile_loaded
from tests.processes import run_to_end
from tests.tiny import stage1_values, write_recipe


@pytest.mark.parametrize(
    ("spelled", "name"),
    [
        ("a100-80g", "a100-80g"),
        ("A100-80GB", "a100-80g"),
        ("a100", "a100-80g"),
        ("NVIDIA H100", "h100"),
        ("rtx_4090", "rtx4090"),
        (" L40S ", "l40s"),
    ],
)
def test_a_gpu_is_found_however_it_is_spelled(spelled: str, name: str) -> None:
    assert find_gpu(spelled).name == name


def test_a_near_miss_is_named() -> None:
    with pytest.raises(UnknownGpuError, match=r"unknown GPU 'a10-80g'; did you mean a100-80g\?"):
        find_gpu("a10-80g")


def test_what_is_near_nothing_gets_the_whole_list() -> None:
    with pytest.raises(UnknownGpuError) as caught:
        find_gpu("abacus")
    assert all(name in str(caught.value) for name in GPUS)


def test_every_gpu_is_plausible() -> None:
    for name, gpu in GPUS.items():
        assert find_gpu(name) is gpu
        said = int(gpu.title.split()[-2])
        assert 0.88 * said < gpu.memory_gib < said
        assert gpu.fp32_tflops <= gpu.half_tflops
        assert (
            gpu.tflops("fp32", tf32=False) <= gpu.tflops("fp32", tf32=True) <= gpu.tflops("bf16", tf32=True)
        )
        assert 0.3 <= gpu.efficiency <= 1


_WEIGHTS = ("trained.safetensors", "mm_projector.safetensors", "mm_projector.bin")
_OPTIMIZER = "optimizer-*.safetensors"


def size_of(folder: Path, *patterns: str) -> int:
    return sum(file.stat().st_size for pattern in patterns for file in folder.rglob(pattern))


@pytest.mark.parametrize("engine", ["none", "zero2"])
def test_files_are_as_large_as_planned(tmp_path: Path, engine: str) -> None:
    values = stage1_values(
        tmp_path / "out", num_train_epochs=1, save_strategy="steps", save_steps=4, save_total_limit=1
    )
    values["stages"][0] |= {"trainable": ["projector", "language_model", "lm_head"], "deepspeed": engine}
    file = write_recipe(values, tmp_path / "recipe.yaml")
    compiled = compile_loaded(load_recipe(str(file)), world_size=1)
    disk = Estimator(compiled, Assumptions()).estimate().stages[0].disk
    run_to_end(file)
    out = tmp_path / "out"
    (checkpoint,) = out.glob("checkpoint-*")
    written = [file for file in out.iterdir() if file.name in _WEIGHTS]
    assert sum(file.stat().st_size for file in written) == pytest.approx(disk.final_bytes, rel=0.05)
    found = size_of(checkpoint, "trained.safetensors", _OPTIMIZER)
    assert found == pytest.approx(disk.checkpoint_bytes, rel=0.05)
    assert (disk.num_checkpoints, disk.num_kept) == (2, 1)
