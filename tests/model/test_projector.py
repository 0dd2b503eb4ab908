"""Projectors have the original's numbers under the original's names."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from llava_recipes.errors import RecipeError
from llava_recipes.model.projector import build_projector
from llava_recipes.projectors import projector_shapes
from tests.model.plans import GOLDEN

FOLDER = GOLDEN / "04_projector"
TYPES = ("linear", "mlp1x_gelu", "mlp2x_gelu", "mlp3x_gelu")
RECORDED = {
    sample["mm_projector_type"]: sample
    for sample in json.loads((FOLDER / "projectors.json").read_text())["samples"]
}


@pytest.mark.parametrize("kind", TYPES)
def test_output_equals_the_original(kind: str) -> None:
    projector = build_projector(kind, 32, 64, seed=0)
    projector.load_state_dict(load_file(FOLDER / f"{kind}.safetensors"))
    given = torch.from_numpy(np.load(FOLDER / "input.npy"))
    expected = torch.from_numpy(np.load(FOLDER / f"{kind}_output.npy"))
    torch.testing.assert_close(projector(given), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", TYPES)
def test_names_and_shapes_are_the_originals(kind: str) -> None:
    recorded = RECORDED[kind]["state_dict"]
    state = build_projector(kind, 32, 64, seed=0).state_dict()
    assert {name: list(tensor.shape) for name, tensor in state.items()} == recorded
    assert {name: list(shape) for name, shape in projector_shapes(kind, 32, 64).items()} == recorded


@pytest.mark.parametrize("kind", TYPES)
def test_a_seed_draws_what_torch_draws_with_it(kind: str) -> None:
    state = build_projector(kind, 32, 64, seed=123).state_dict()
    for name, tensor in load_file(FOLDER / f"{kind}.safetensors").items():
        assert torch.equal(state[name], tensor), name


def test_drawing_leaves_the_global_stream_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    build_projector("mlp2x_gelu", 8, 8, seed=1)
    assert torch.equal(torch.rand(3), expected)


def test_identity_gives_what_it_takes() -> None:
    given = torch.from_numpy(np.load(FOLDER / "input.npy"))
    identity = build_projector("identity", 32, 32, seed=0)
    assert torch.equal(identity(given), torch.from_numpy(np.load(FOLDER / "identity_output.npy")))
    assert not list(identity.parameters()) and projector_shapes("identity", 32, 32) == {}


def test_identity_between_unequal_sizes_is_refused() -> None:
    with pytest.raises(RecipeError, match="the same hidden size"):
        build_projector("identity", 32, 64, seed=0)


@pytest.mark.parametrize("kind", ["mlp2x_relu", "resampler", "", "MLP2x_gelu", "mlp2x_gelu\n", "mlp0x_gelu"])
def test_other_types_are_refused(kind: str) -> None:
    with pytest.raises(RecipeError, match="unknown projector type"):
        build_projector(kind, 32, 64, seed=0)
