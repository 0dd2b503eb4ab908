"""Every key of the recipe language, from keys.json: importing Pydantic's models takes a tenth of a second.

`make names` writes the file from the schema; tests/recipe/test_names.py compares the two.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llava_recipes.recipe.scalars import Value, spell

FILE: Final = Path(__file__).with_name("keys.json")


@dataclass(frozen=True)
class Key:
    """One key of the language. In `path` a list entry is `[]`: `stages[].train.learning_rate`."""

    path: str
    type: str
    needed: bool
    default: Value
    meaning: str
    examples: tuple[Value, ...]
    choices: tuple[Value, ...]
    is_free: bool
    """Whether it takes keys from outside the language, such as those of a Hugging Face config."""

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]

    @property
    def names(self) -> tuple[str, ...]:
        """The path's segments without `[]`."""
        return tuple(self.path.replace("[]", "").split("."))

    @property
    def default_text(self) -> str:
        if self.needed:
            return "none; the key is required"
        if self.default is None or self.default == {} or self.default == []:
            return "not set"
        return "see its keys" if isinstance(self.default, dict) else spell(self.default)


@functools.cache
def all_keys() -> tuple[Key, ...]:
    """Every key of the language, each mapping followed by its own keys."""
    lists = ("examples", "choices")
    return tuple(
        Key(**values | {name: tuple(values[name]) for name in lists})
        for values in json.loads(FILE.read_text("utf-8"))
    )
