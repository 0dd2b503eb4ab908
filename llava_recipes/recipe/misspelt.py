"""Whether a key is missing only because it is written otherwise."""

from __future__ import annotations

from llava_recipes.recipe.frozen import Frozen
from llava_recipes.recipe.renames import OTHER_NAMES
from llava_recipes.recipe.spelling import nearest
from llava_recipes.recipe.values import Mapping


def misspelt(mapping: Mapping, model: type[Frozen], *names: str) -> bool:
    """Whether one of the names is there under another spelling: then the spelling is all there is to tell."""
    unknown = [key for key in mapping if key not in model.model_fields]
    return any(
        nearest(key, model.model_fields) in names
        or any(f"`{name}:" in OTHER_NAMES.get(key, "") for name in names)
        for key in unknown
    )
