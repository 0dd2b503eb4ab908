"""The projector: the layers between vision tower and language model, numbered like the original's."""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor, nn

from llava_recipes.recipe.errors import Problem, RecipeError

MLP_TYPE = re.compile(r"mlp([1-9][0-9]?)x_gelu\Z")
SIZE_PATH = ("model", "projector", "type")


def num_linear_layers(projector_type: str) -> int:
    """How many linear layers a type has: 0 for `identity`, 1 for `linear`, N for `mlpNx_gelu`."""
    if projector_type in ("identity", "linear"):
        return 0 if projector_type == "identity" else 1
    match = MLP_TYPE.match(projector_type)
    if match is None:
        raise RecipeError(
            Problem(
                "unknown projector type",
                code="unknown-projector-type",
                path=SIZE_PATH,
                found=projector_type,
                hint="use linear, identity, or mlpNx_gelu with N linear layers, e.g. mlp2x_gelu",
            )
        )
    return int(match.group(1))


def projector_shapes(
    projector_type: str, vision_hidden: int, language_hidden: int
) -> dict[str, tuple[int, ...]]:
    """Parameter names inside the projector and their shapes, in the original's numbering."""
    if projector_type == "linear":
        return {"weight": (language_hidden, vision_hidden), "bias": (language_hidden,)}
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(num_linear_layers(projector_type)):
        width = vision_hidden if layer == 0 else language_hidden
        shapes[f"{2 * layer}.weight"] = (language_hidden, width)
        shapes[f"{2 * layer}.bias"] = (language_hidden,)
    return shapes


def build_projector(projector_type: str, vision_hidden: int, language_hidden: int, *, seed: int) -> nn.Module:
    """A float32 projector on the CPU with torch's default linear weights, drawn from `seed` alone.

    Takes float[..., vision_hidden], gives float[..., language_hidden].
    Raises RecipeError for an unknown type, or `identity` between unequal sizes.
    """
    num_layers = num_linear_layers(projector_type)
    if num_layers == 0:
        if vision_hidden != language_hidden:
            raise RecipeError(
                Problem(
                    "projector `identity` needs a vision tower and a language model of one hidden size",
                    code="identity-projector-sizes-differ",
                    path=SIZE_PATH,
                    found=f"vision tower {vision_hidden}, language model {language_hidden}",
                    hint="use `linear` or `mlp2x_gelu`",
                )
            )
        return nn.Identity()
    generator = torch.Generator().manual_seed(seed)
    first = _linear(vision_hidden, language_hidden, generator)
    if projector_type == "linear":
        return first
    layers: list[nn.Module] = [first]
    for _ in range(num_layers - 1):
        layers += [nn.GELU(), _linear(language_hidden, language_hidden, generator)]
    return nn.Sequential(*layers)


def _linear(num_in: int, num_out: int, generator: torch.Generator) -> nn.Linear:
    layer = nn.Linear(num_in, num_out, device="meta", dtype=torch.float32).to_empty(device="cpu")
    nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
    bound = 1 / math.sqrt(num_in)
    nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
    return layer


def projector_dtype(projector: nn.Module) -> torch.dtype | None:
    """The dtype of its weights; None for one without weights."""
    first: Tensor | None = next(projector.parameters(), None)
    return None if first is None else first.dtype
