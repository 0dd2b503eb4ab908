"""Keep secrets out of recipes, which are shared and copied into run folders."""

from __future__ import annotations

from collections.abc import Iterator

from llava_recipes.masking import is_secret_name, mask
from llava_recipes.recipe.errors import KeyPath, Problem
from llava_recipes.recipe.scalars import Value, spell_value
from llava_recipes.recipe.values import Mapping


def check_secrets(value: Value, path: KeyPath) -> Iterator[Problem]:
    """Refuse keys that would put a secret into a file that is shared; the value itself is never printed."""
    if isinstance(value, list):
        for index, entry in enumerate(value):
            yield from check_secrets(entry, (*path, index))
    for key, inner in value.items() if isinstance(value, dict) else ():
        if is_secret_name(key) and isinstance(inner, str):
            hint = "remove it and set it in the environment, for example HF_TOKEN or WANDB_API_KEY"
            message = f"`{key}` looks like a secret; a recipe is shared"
            yield Problem(
                message,
                code="looks-like-a-secret",
                path=(*path, key),
                hint=hint,
                on_key=True,
                is_secret=True,
            )
        yield from check_secrets(inner, (*path, key))


def check_secret_values(recipe: Mapping) -> Iterator[Problem]:
    """Refuse values with a password in a URL or a token of a known kind, wherever they stand.

    A variable's is reported where it is given, and not again where it is used.
    """
    given = {path: text for path, text in _texts(recipe, ()) if mask(text) != text}
    of_variables = [text for path, text in given.items() if path[:1] == ("vars",)]
    for path, text in given.items():
        if path[:1] == ("vars",) or not any(secret in text for secret in of_variables):
            yield Problem(
                "this contains a secret; a recipe and its run folder are shared",
                code="value-contains-secret",
                path=path,
                found=spell_value(text),
                hint="remove it: what a program needs to log in, it reads from the environment itself",
                is_secret=True,
            )


def _texts(value: object, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            yield from _texts(entry, (*path, index))
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield from _texts(entry, (*path, key))
