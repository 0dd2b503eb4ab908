"""Weights on disk: no code is run, and values that cannot be trained on are named."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from llava_recipes.errors import RecipeError
from llava_recipes.model.assemble import assemble
from llava_recipes.model.checkpoint import (
    _FLOATS,
    BadPickle,
    ContainsCode,
    load_plain,
    value_problems,
)
from llava_recipes.model.weights import lay_over, load_projector, read_projector_weights
from tests.golden_runs import stage1_folder
from tests.laws import examples
from tests.model.plans import plan_of
from tests.model.poison import poisoned

FORMATS = ("zip", "legacy", "pickle", "newest pickle", "tar", "torchscript", "module")


@pytest.mark.parametrize("kind", FORMATS)
def test_code_is_refused_and_not_run(kind: str, tmp_path: Path) -> None:
    made, file = tmp_path / "PWNED", tmp_path / "optimizer.pt"
    file.write_bytes(poisoned(made)[kind])
    with pytest.raises(ContainsCode, match="run code"):
        load_plain(file)
    assert not made.exists()


def test_the_files_would_run_code(tmp_path: Path) -> None:
    made, file = tmp_path / "PWNED", tmp_path / "optimizer.pt"
    for kind in ("zip", "legacy"):
        file.write_bytes(poisoned(made)[kind])
        torch.load(file, weights_only=False)
        made.unlink()


@pytest.mark.parametrize("new_format", [True, False])
def test_tensors_and_plain_values_are_read(tmp_path: Path, new_format: bool) -> None:
    saved = {
        "state": OrderedDict(a=torch.arange(3)),
        "groups": [{"lr": 0.1, "betas": (0.9, 0.95), "x": None}],
    }
    torch.save(saved, tmp_path / "s.pt", _use_new_zipfile_serialization=new_format)
    read = load_plain(tmp_path / "s.pt")
    assert isinstance(read, dict)
    assert read["groups"] == saved["groups"] and torch.equal(read["state"]["a"], torch.arange(3))


@examples(100)
@given(content=st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("bytes") / "x.pt"
    file.write_bytes(content)
    with pytest.raises(BadPickle):
        load_plain(file)


ORIGINAL = stage1_folder("base") / "mm_projector.bin"


def _with(value: float, dtype: torch.dtype = torch.float32) -> Tensor:
    tensor = torch.ones(4, 5, dtype=dtype)
    tensor[3, 1] = value
    return tensor


def _problem(tensor: Tensor) -> str | None:
    problems = [*value_problems([("w", tensor)], path=(), found="f.bin")]
    assert len(problems) <= 1
    return problems[0].found if problems else None


@pytest.mark.parametrize("dtype", _FLOATS)
def test_every_precision_is_looked_at(dtype: torch.dtype) -> None:
    assert _problem(torch.ones(4, 5, dtype=dtype)) is None
    assert _problem(torch.empty(0, dtype=dtype)) is None
    assert _problem(torch.tensor(torch.finfo(dtype).tiny, dtype=dtype)) is None
    assert _problem(_with(float("nan"), dtype)) == "f.bin: w has 1 NaN of 20 values"
    assert _problem(_with(float("-inf"), dtype)) == "f.bin: w has 1 infinite of 20 values"


def test_a_number_that_float32_has_not_is_infinite() -> None:
    assert _problem(_with(1e39, torch.float64)) == "f.bin: w has 1 infinite of 20 values"
    assert _problem(_with(3e38, torch.float64)) is None


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool, torch.complex64])
def test_what_is_not_floating_point_is_refused(dtype: torch.dtype) -> None:
    assert _problem(torch.ones(2, dtype=dtype)) == f"f.bin: w is {str(dtype).removeprefix('torch.')}"


def test_what_is_no_plain_tensor_is_refused() -> None:
    assert _problem(torch.ones(2, 2).to_sparse()) == "f.bin: w is not a plain tensor"


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), "int8"])
def test_a_projector_is_refused_where_it_is_loaded(tmp_path: Path, suffix: str, bad: float | str) -> None:
    whole = read_projector_weights(ORIGINAL).tensors
    tensors = {f"model.mm_{name}": tensor.clone() for name, tensor in whole.items()}
    if bad == "int8":
        tensors["model.mm_projector.2.bias"] = tensors["model.mm_projector.2.bias"].to(torch.int8)
    else:
        tensors["model.mm_projector.2.bias"][0] = bad  # type: ignore[assignment]
    file = tmp_path / f"p{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(tensors, file)
    model = assemble(plan_of(), dtype=torch.float32).model
    with pytest.raises(RecipeError) as caught:
        load_projector(model, file)
    (problem,) = caught.value.problems
    assert problem.code == ("weights-not-floating-point" if bad == "int8" else "weights-not-finite")
    assert problem.found is not None
    assert str(file) in problem.found and "projector.2.bias" in problem.found


def test_trained_weights_are_refused_where_they_are_laid_over() -> None:
    model = assemble(plan_of(), dtype=torch.float32).model
    before = model.model.multi_modal_projector
    weights = {"projector.0.bias": torch.full((32,), float("nan"))}
    with pytest.raises(RecipeError, match="NaN"):
        lay_over(model, weights, adapter_config=Path("none"), found="trained.safetensors")
    assert all(bool(torch.isfinite(parameter).all()) for parameter in before.parameters())
