"""At what rate, and with which batch, published runs train a kind of stage."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Final, Literal

from llava_recipes.recipe.globs import MODULES
from llava_recipes.recipe.values import Mapping, as_list

Kind = Literal["projector", "full", "tower", "adapters"]
"""What trains: the projector (with the few rows beside it), more than it, the tower alone, LoRA adapters."""

USUAL_RATES: Final[dict[Kind, float]] = {"projector": 1e-3, "full": 2e-5, "tower": 2e-6, "adapters": 2e-4}

_BATCHES: Final[dict[tuple[Kind, float], int]] = {
    ("projector", 1e-3): 256,
    ("projector", 2e-3): 128,
    ("full", 2e-5): 128,
    ("adapters", 2e-4): 128,
}
_BESIDE_A_PROJECTOR: Final = {"projector", "image_newline", "image_tokens"}


def kind_of_stage(freeze: object, trainable: Sequence[object], *, has_lora: bool) -> Kind | None:
    """What kind of stage the keys describe; None where nothing trains by them."""
    if has_lora:
        return "adapters"
    firsts = [glob.partition(".")[0] for glob in trainable if isinstance(glob, str)]
    # A glob that begins with a wildcard may stand for several.
    roots = {root for first in firsts for root in fnmatch.filter(MODULES, first) or [first]}
    if freeze != "all":
        return "full"
    if not roots:
        return None
    if roots <= _BESIDE_A_PROJECTOR:
        return "projector"
    return "tower" if roots == {"vision_tower"} else "full"


def usual_rate(stage: Mapping) -> float | None:
    """The rate for a stage, as it is written in a recipe; None where nothing says what trains."""
    has_lora = stage.get("lora") is not None
    kind = kind_of_stage(stage.get("freeze", "all"), as_list(stage.get("trainable")), has_lora=has_lora)
    return None if kind is None else USUAL_RATES[kind]


def usual_batch(kind: Kind | None, rate: float) -> int | None:
    """The samples of a step that LLaVA's runs take for such a stage at this rate."""
    return None if kind is None else _BATCHES.get((kind, rate))
