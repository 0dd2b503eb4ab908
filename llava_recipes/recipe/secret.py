"""Keep secrets out of recipes, which are shared and copied into run folders."""

from __future__ import annotations

import re
from collections.abc import Iterator

from llava_recipes.recipe.errors import Path, Problem
from llava_recipes.recipe.scalars import Value

_SECRET_WORDS = {"token", "password", "passwd", "secret", "apikey", "credentials"}
_NOT_WORD = re.compile(r"[^a-z0-9]+")


def check_secrets(value: Value, path: Path) -> Iterator[Problem]:
    """Refuse keys that would put a secret into a file that is shared; the value itself is never printed."""
    if isinstance(value, list):
        for index, entry in enumerate(value):
            yield from check_secrets(entry, (*path, index))
    for key, inner in value.items() if isinstance(value, dict) else ():
        words = set(_NOT_WORD.split(key.lower()))
        if (words & _SECRET_WORDS or {"api", "key"} <= words) and isinstance(inner, str):
            hint = "remove it and set it in the environment, for example HF_TOKEN or WANDB_API_KEY"
            message = f"`{key}` looks like a secret; a recipe is shared"
            yield Problem(
                message,
                code="looks-like-secret-recipe-shared",
                path=(*path, key),
                hint=hint,
                on_key=True,
                is_secret=True,
            )
        yield from check_secrets(inner, (*path, key))
