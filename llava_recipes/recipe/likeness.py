"""Whether a file is a recipe, well-formed or not. Another may hold secrets, and errors do not quote it."""

from __future__ import annotations

import os
import re

from llava_recipes.recipe.renames import OTHER_NAMES
from llava_recipes.recipe.schema import Recipe
from llava_recipes.recipe.source import ENDINGS
from llava_recipes.recipe.spelling import nearest

_TOP_KEY = re.compile(r"""^["']?([A-Za-z_][A-Za-z0-9_.-]{0,199})["']?[ ]*:(?=\s|$)""", re.MULTILINE)
_OWN_KEY = re.compile(
    r"""(?:^|[\s{,"'-])(language_model|vision_tower|projector|per_device_train_batch_size|output_dir)["']?\s*:"""
)
_MOST_KEYS = 100


def looks_like_recipe(data: bytes) -> bool:
    """Whether text has keys that only recipes have, or at its top only keys of recipes and near misses."""
    text = data.decode("utf-8", "replace")
    if _OWN_KEY.search(text):
        return True
    keys = set(_TOP_KEY.findall(text))
    known = keys.intersection(Recipe.model_fields)
    return bool(known) and len(keys) <= _MOST_KEYS and all(map(_may_be_meant, keys - known))


def is_named_as_recipe(file: str) -> bool:
    """Whether a file that a person names has a recipe's name itself, and not through a link."""
    return file.lower().endswith(ENDINGS) and not os.path.islink(file)


def _may_be_meant(key: str) -> bool:
    return key in OTHER_NAMES or nearest(key, Recipe.model_fields) is not None
