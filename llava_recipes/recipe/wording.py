"""Rules between the keys that say how conversations become text; on plain values."""

from __future__ import annotations

from collections.abc import Iterator

from llava_recipes.layouts import ALIASES, LAYOUTS
from llava_recipes.recipe.errors import KeyPath, Problem
from llava_recipes.recipe.misspelt import misspelt
from llava_recipes.recipe.schema import Data
from llava_recipes.recipe.values import Mapping, as_mapping

_KEYS = ("template", "chat_template")


def check_wording(stage: Mapping, path: KeyPath) -> Iterator[Problem]:
    """Every such rule that a stage breaks."""
    data, path = as_mapping(stage.get("data")), (*path, "data")
    given = [key for key in _KEYS if data.get(key) is not None]
    if not given and isinstance(stage.get("data"), dict) and not misspelt(data, Data, *_KEYS):
        yield Problem(
            "`data` needs one of `template` and `chat_template`",
            code="one-of-two-keys-is-needed",
            path=path,
            hint="write `template: v1`, another of LLaVA's names, or `chat_template: tokenizer`",
            on_key=True,
        )
    template = data.get("template")
    name = ALIASES.get(template, template) if isinstance(template, str) else None
    if data.get("system_prompt") is None or len(given) == 2:
        return
    for other, layout in LAYOUTS.items():
        if name == other and layout.system is None:
            yield Problem(
                f"template `{template}` has no place for a system prompt",
                code="no-place-for-system-prompt",
                path=(*path, "system_prompt"),
                hint="remove it, or choose another template",
                on_key=True,
            )
