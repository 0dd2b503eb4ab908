"""The learned end of a row of image features, as in LLaVA-NeXT."""

from __future__ import annotations

import pathlib

import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from llava_recipes.model.checkpoint import open_checkpoint
from llava_recipes.model.names import canonical_parameters
from llava_recipes.model.placing import full_shape, overwrite
from llava_recipes.recipe.errors import Problem, RecipeError

CANONICAL_NAME = "image_newline"
CHECKPOINT_NAMES = ("model.image_newline", "image_newline")
"""What whole checkpoints call it: the original's, and Hugging Face's."""

_APART = int.from_bytes(b"newline", "big")


class ImageNewline(nn.Module):
    """One embedding. A module of its own, so that ZeRO-3 fetches it when it is called."""

    def __init__(self, hidden_size: int, *, seed: int) -> None:
        """float32, normal with LLaVA-NeXT's deviation of 1 / sqrt(hidden size), drawn from `seed` alone."""
        super().__init__()
        # Apart from the projector's numbers, which are drawn from the same seed.
        generator = torch.Generator().manual_seed(seed ^ _APART)
        values = torch.randn(hidden_size, generator=generator, device="cpu", dtype=torch.float32)
        self.weight = nn.Parameter(values / hidden_size**0.5)

    def forward(self, features_RD: Tensor) -> Tensor:
        """float[R + 1, D]: the features and, last, the newline in their dtype."""
        return torch.cat([features_RD, self.weight[None].to(features_RD.dtype)])


def image_newline(model: LlavaForConditionalGeneration) -> ImageNewline | None:
    """The model's newline, if it has one."""
    found: ImageNewline | None = getattr(model.model, "image_newline", None)
    return found


def load_newline(model: LlavaForConditionalGeneration, folder: pathlib.Path) -> None:
    """Fill the model's newline from a whole checkpoint that holds one; else it keeps its values.

    Under ZeRO-3 all processes call this. Raises RecipeError when the one there has another size.
    """
    if image_newline(model) is None:
        return
    path = ("model", "language_model")
    source = open_checkpoint(folder, path)
    name = next((name for name in CHECKPOINT_NAMES if name in source.names()), None)
    if name is None:
        return
    parameter, given = canonical_parameters(model)[CANONICAL_NAME], source.read(name)
    if tuple(given.shape) != full_shape(parameter):
        found = f"{name} in {folder} has shape {list(given.shape)}"
        message = f"the image newline of a checkpoint does not fit; {list(full_shape(parameter))} is needed"
        raise RecipeError(Problem(message, code="weights-do-not-fit", path=path, found=found))
    overwrite(parameter, lambda: given)
