"""Code that a model's settings name: in files that come with it, or on the hub. It is never run here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from llava_recipes.recipe.errors import KeyPath, Problem

_CODE = ("auto_map", "custom_pipelines")
"""Keys by which transformers finds classes in files beside the settings, or in another model of the hub."""

_KERNELS = ("attn_implementation", "experts_implementation")
"""Keys that choose one of transformers' own kernels by a name, or one of the hub by `owner/name`."""

_MOST_SHOWN = 100


def code_problems(values: object, path: KeyPath, *, file: str | None = None) -> Iterator[Problem]:
    """A problem for each key, at any depth, that names code to run.

    values  settings as JSON or YAML gives them
    path    where the recipe has them, or names the model that they belong to
    file    where the model has them; None for settings that stand in the recipe itself
    """
    for key, named in _code_in(values):
        spelled, last = ".".join(map(str, key)), key[-1]
        shown = json.dumps(named, ensure_ascii=False, default=str)
        shown = shown if len(shown) <= _MOST_SHOWN else f"{shown[:_MOST_SHOWN]}…"
        if file is not None:
            shown = f"{file}: {shown}"
            hint = f"where transformers has the `model_type` itself, remove `{last}` from a copy of the model"
        else:
            hint = f"remove `{last}`; a `model_type` that transformers has itself needs no other code"
        yield Problem(
            f"`{spelled}` asks for foreign code; this program never runs code that comes with a model",
            code="model-names-code",
            path=path if file is not None else (*path, *key),
            found=shown,
            hint=hint,
            on_key=file is None,
        )


def _code_in(values: object) -> Iterator[tuple[KeyPath, object]]:
    """Where such keys stand and what they say, in the order of the settings."""
    # A list of what is left to look at: settings may be nested more deeply than functions can be called.
    left: list[tuple[KeyPath, object]] = [((), values)]
    while left:
        path, value = left.pop()
        if path and _names_code(path[-1], value):
            yield path, value
        elif isinstance(value, Mapping):
            left += [((*path, str(key)), value[key]) for key in reversed(list(value))]
        elif isinstance(value, list | tuple):
            left += [((*path, index), value[index]) for index in reversed(range(len(value)))]


def _names_code(key: str | int, value: object) -> bool:
    if key in _CODE:
        return True
    if not isinstance(key, str) or key.removeprefix("_") not in _KERNELS:
        return False
    names = value.values() if isinstance(value, Mapping) else (value,)
    return any(isinstance(name, str) and "/" in name for name in names)
