"""A new folder is there whole or not at all."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llava_recipes.recipe.errors import RecipeError
from llava_recipes.runs.target import new_folder


def test_weights_that_cannot_be_written_are_the_users_to_mend(tmp_path: Path) -> None:
    """As on a full disk: safetensors has an error of its own for it."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with (
            pytest.raises(RecipeError, match="cannot be written"),
            new_folder(tmp_path / "model", num_bytes=1) as folder,
        ):
            save_file({"weight": torch.zeros(1000)}, folder / "model.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []
