"""Rules on a language model held in few bits; on plain values."""

from __future__ import annotations

from collections.abc import Iterator

from llava_recipes.recipe.errors import KeyPath, Problem
from llava_recipes.recipe.values import Mapping, as_mapping


def check_quantization(part: Mapping, path: KeyPath) -> Iterator[Problem]:
    """What is wrong with `quantization` of a part of the model, the keys beside it included."""
    quantization, path = as_mapping(part.get("quantization")), (*path, "quantization")
    if quantization and part.get("config") is not None:
        yield Problem(
            "`quantization` has no use with random weights",
            code="key-has-no-effect",
            path=path,
            hint="remove it, or give pretrained weights with `source`",
            on_key=True,
        )
    if quantization.get("bits") != 8:
        return
    for key in ("type", "double_quant"):
        if key in quantization:
            yield Problem(
                f"`{key}` has no effect with `bits: 8`",
                code="key-has-no-effect",
                path=(*path, key),
                hint="remove it, or write `bits: 4`",
                on_key=True,
            )
