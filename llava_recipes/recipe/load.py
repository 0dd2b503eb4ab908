"""From a recipe file to a checked recipe: read, resolve, validate, and tell every problem at once."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

from pydantic import ValidationError

from llava_recipes.errors import KeyPath, Mark, Problem, RecipeError
from llava_recipes.recipe.exclusions import misspelt
from llava_recipes.recipe.extends import extend, is_named_as_recipe, looks_like_recipe
from llava_recipes.recipe.override import resolve
from llava_recipes.recipe.rules import check_rules
from llava_recipes.recipe.scalars import Value, as_mapping, value_at
from llava_recipes.recipe.schema import Recipe
from llava_recipes.recipe.source import Document, parse_source, read_file
from llava_recipes.screen import shown

MAX_PROBLEMS = 300
"""What is told of one file; nobody reads more."""


@dataclass(frozen=True)
class LoadedRecipe:
    """A checked recipe, and where each of its values was written."""

    recipe: Recipe
    file: str
    values: dict[str, Value] = field(repr=False)
    """The recipe's keys as written, with overrides and variables filled in; plain JSON values."""
    document: Document = field(repr=False)

    def locate(self, path: KeyPath, on_key: bool = False) -> Mark | None:
        """The place of a value or its key, or of the nearest parent that has one."""
        return self.document.locate(path, on_key=on_key)

    def origin(self, path: KeyPath) -> str:
        """The place of a value: `file:line`, `--set …` or `default`, and the variables that it is made of."""
        if value_at(self.values, path) is None:
            return "default"
        marks = self.document.key_marks
        variables = (
            f"${{{name}}} from {_spell(marks[place]) if place in marks else 'the environment'}"
            for name in self.document.uses.get(path, ())
            for place in [("vars", name)]
        )
        return ", ".join([_spell(self.locate(path)), *variables])

    def fail(self, *problems: Problem) -> RecipeError:
        """An error to raise that shows where the problems' values were written, ordered by line."""
        return RecipeError(*_in_order(self.document, problems))


def _spell(mark: Mark | None) -> str:
    if mark is None:
        return "unknown"
    # The remark stands on one line, whatever the file is called.
    file = shown(mark.file)
    return f"{file}:{mark.line}" if mark.line > 0 else file


def load_recipe(file: str, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Read and check one recipe; raises RecipeError with all of its problems, ordered by line."""
    data = read_file(file)
    if not is_named_as_recipe(file) and not looks_like_recipe(data):
        hint = "a recipe is a YAML file with keys such as `model:` and `stages:`"
        raise RecipeError.of("this is no recipe", code="no-recipe", mark=Mark(file, 0, 0), hint=hint)
    return load_source(data, file, overrides)


def load_source(source: str | bytes, file: str, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Check a recipe that is already read."""
    document = resolve(_with_parents(parse_source(source, file)), overrides, os.environ)
    found: list[Problem] = []
    recipe = None
    try:
        recipe = Recipe.model_validate_json(json.dumps(document.root))
    except ValidationError as error:
        # A recipe without errors of shape need not wait for the words about them.
        from llava_recipes.recipe.explain import explain_validation

        found += explain_validation(error, document.root)
    found += check_rules(document.root)
    problems = [*document.problems, *_without_echoes(found, document.spoiled)]
    if problems or recipe is None:
        raise RecipeError(*_in_order(document, problems))
    assert isinstance(document.root, dict)
    return LoadedRecipe(recipe=recipe, file=file, values=document.root, document=document)


def _with_parents(document: Document) -> Document:
    """The document over its parents; where they cannot be read, what is wrong with it by itself is told."""
    problems = list(document.problems)
    try:
        keys = as_mapping(document.root)
        if "extends" in keys or not misspelt(keys, (), "extends"):
            return extend(document)
    except RecipeError as error:
        problems = list(error.problems)
    try:
        Recipe.model_validate_json(json.dumps(document.root))
    except ValidationError as error:
        from llava_recipes.recipe.explain import explain_validation

        found = explain_validation(error, document.root, is_part=True)
        found = [problem for problem in found if problem.path is None or problem.path[:1] != ("extends",)]
        problems += _without_echoes(found, document.spoiled)
    raise RecipeError(*_in_order(document, problems))


def _without_echoes(problems: Iterable[Problem], spoiled: Collection[KeyPath]) -> list[Problem]:
    """The problems without those that only follow from a value that could not be read."""
    return [problem for problem in problems if problem.path is None or problem.path not in spoiled]


def _with_mark(document: Document, problem: Problem) -> Problem:
    if problem.mark is not None or problem.path is None:
        return problem
    mark = document.locate(problem.path, on_key=problem.on_key)
    if mark is not None and problem.is_secret:
        mark = replace(mark, text=None, file=mark.file if mark.line else f"{mark.file.partition('=')[0]}=…")
    return replace(problem, mark=mark)


def _in_order(document: Document, problems: Iterable[Problem]) -> list[Problem]:
    # A value that an alias repeats is wrong in every place and told once.
    told: dict[Problem, Problem] = {}
    for problem in problems:
        marked = _with_mark(document, problem)
        told.setdefault(replace(marked, path=None), marked)
    ordered = sorted(told.values(), key=lambda problem: _place(document.file, problem.mark))
    if len(ordered) > MAX_PROBLEMS:
        hidden = len(ordered) - MAX_PROBLEMS
        more = Problem(
            f"{hidden:,} more problems are not shown", code="more-problems", mark=Mark(document.file, 0, 0)
        )
        ordered = [*ordered[:MAX_PROBLEMS], more]
    return ordered


def _place(file: str, mark: Mark | None) -> tuple[bool, str, int, int]:
    if mark is None:
        return True, "", 0, 0
    return mark.file != file, mark.file, mark.line, mark.column
