"""The DeepSpeed file that a command names: one of the presets where it holds the same, else the file."""

from __future__ import annotations

import json
from collections.abc import Callable

from llava_recipes.migrate.draft import STAGE, Draft
from llava_recipes.plan.deepspeed import preset
from llava_recipes.recipe.errors import Mark
from llava_recipes.recipe.schema import DEEPSPEED_PRESETS

ReadText = Callable[[str], str | None]
"""From a path in the script to the text of that file; None where it is not at hand."""

_BY_NAME = {"zero2.json": "zero2", "zero3.json": "zero3"}


def translate_deepspeed(
    name: str, path: str, draft: Draft, *, read_text: ReadText, mark: Mark | None
) -> None:
    """Fill in `deepspeed`."""
    choice, remark = _choose(path, read_text)
    draft.mapped(name, path, (STAGE, "deepspeed"), choice, remark=remark, mark=mark)


def _choose(path: str, read_text: ReadText) -> tuple[str, str]:
    text = read_text(path)
    if text is None:
        named = _BY_NAME.get(path.rpartition("/")[2])
        if named is not None:
            return named, "the file is not here; by its name it is the original's, which the preset equals"
        return path, "the file is not here"
    try:
        config = json.loads(text)
    except (ValueError, RecursionError):
        return path, ""
    same = next((name for name in DEEPSPEED_PRESETS if config == preset(name, max_grad_norm=1.0)), None)
    return (same, "the file holds what the preset holds") if same else (path, "kept as a file")
