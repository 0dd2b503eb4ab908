"""Where a value of a recipe comes from, in words."""

from __future__ import annotations

from llava_recipes.recipe.errors import KeyPath, Mark
from llava_recipes.recipe.load import LoadedRecipe
from llava_recipes.recipe.values import value_at
from llava_recipes.screen import shown


def origin(loaded: LoadedRecipe, path: KeyPath) -> str:
    """The place of a value: `file:line`, `--set …` or `default`, and the variables that it is made of."""
    if value_at(loaded.values, path) is None:
        return "default"
    return ", ".join([_spell(loaded.locate(path)), *_variables(loaded, path)])


def _variables(loaded: LoadedRecipe, path: KeyPath) -> list[str]:
    marks = loaded.document.key_marks
    return [
        f"${{{name}}} from {_spell(marks[place]) if place in marks else 'the environment'}"
        for name in loaded.document.uses.get(path, ())
        for place in [("vars", name)]
    ]


def _spell(mark: Mark | None) -> str:
    if mark is None:
        return "unknown"
    # The remark stands on one line, whatever the file is called.
    file = shown(mark.file)
    return f"{file}:{mark.line}" if mark.line > 0 else file
