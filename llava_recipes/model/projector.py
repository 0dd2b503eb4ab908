"""The projector: the layers between vision tower and language model, numbered like the original's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from llava_recipes.errors import RecipeError
from llava_recipes.projectors import PROJECTOR_TYPES, STOCK, type_named

PATH = ("model", "projector", "type")


def build_projector(name: str, vision_hidden: int, language_hidden: int, *, seed: int) -> nn.Module:
    """A float32 projector on the CPU with torch's default linear weights, drawn from `seed` only.

    Maps float[..., vision_hidden] to float[..., language_hidden].
    Raises RecipeError for an unknown type, or `identity` between unequal sizes.
    """
    try:
        kind, num_layers = type_named(name)
    except ValueError:
        hint = f"use {', '.join(each.name for each in PROJECTOR_TYPES)}, e.g. {STOCK}"
        raise RecipeError.of(
            "unknown projector type", code="unknown-projector-type", path=PATH, found=name, hint=hint
        ) from None
    if kind.keeps_width and vision_hidden != language_hidden:
        raise RecipeError.of(
            f"projector `{name}` needs a vision tower and a language model of the same hidden size",
            code="identity-projector-sizes-differ",
            path=PATH,
            found=f"vision tower {vision_hidden}, language model {language_hidden}",
            hint=f"use `linear` or `{STOCK}`",
        )
    generator = torch.Generator().manual_seed(seed)
    return _BUILDERS[kind.name](num_layers, vision_hidden, language_hidden, generator)


def _stack(num_layers: int, vision: int, language: int, generator: torch.Generator) -> nn.Sequential:
    layers: list[nn.Module] = [_linear(vision, language, generator)]
    for _ in range(num_layers - 1):
        layers += [nn.GELU(), _linear(language, language, generator)]
    return nn.Sequential(*layers)


def _linear(num_in: int, num_out: int, generator: torch.Generator) -> nn.Linear:
    layer = nn.Linear(num_in, num_out, device="meta", dtype=torch.float32).to_empty(device="cpu")
    nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
    bound = 1 / math.sqrt(num_in)
    nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
    return layer


_BUILDERS: Mapping[str, Callable[[int, int, int, torch.Generator], nn.Module]] = {
    "linear": lambda _, vision, language, generator: _linear(vision, language, generator),
    "identity": lambda *_: nn.Identity(),
    "mlpNx_gelu": _stack,
}
"""Makes the module of a type in `projectors.py`, from its number of layers, both sizes and a generator."""


def projector_dtype(projector: nn.Module) -> torch.dtype | None:
    """The dtype of a projector's weights; None for one without weights."""
    first: Tensor | None = next(projector.parameters(), None)
    return None if first is None else first.dtype
