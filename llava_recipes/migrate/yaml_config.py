"""A YAML config of another program on its way into a draft."""

from __future__ import annotations

from dataclasses import dataclass

from llava_recipes.migrate.draft import Draft
from llava_recipes.recipe.errors import KeyPath, Mark
from llava_recipes.recipe.scalars import Value, spell_value
from llava_recipes.recipe.source import Document


@dataclass
class Config:
    """A YAML config: its values, what is read of them so far, and the draft they go to."""

    document: Document
    values: dict[str, Value]
    draft: Draft

    def take(self, key: str) -> Value:
        return self.values.pop(key, None)

    def mark(self, key: str) -> Mark | None:
        return self.document.locate((key,), on_key=True)

    def lost(self, key: str, value: Value, why: str) -> None:
        self.draft.lost(key, spell_value(value), why, self.mark(key))

    def mapped(self, key: str, shown: Value, path: KeyPath, value: Value, remark: str = "") -> None:
        self.draft.mapped(key, spell_value(shown), path, value, remark=remark, mark=self.mark(key))
