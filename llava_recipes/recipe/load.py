"""From a recipe file to a checked recipe: read, resolve, validate, and report every problem at once."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from pydantic import ValidationError

from llava_recipes.errors import KeyPath, Mark, Problem, RecipeError
from llava_recipes.recipe.exclusions import misspelled
from llava_recipes.recipe.extends import extend, is_named_as_recipe, looks_like_recipe
from llava_recipes.recipe.override import resolve
from llava_recipes.recipe.rules import check_rules
from llava_recipes.recipe.scalars import Value, as_mapping, value_at
from llava_recipes.recipe.schema import Recipe
from llava_recipes.recipe.source import Document, parse_source, read_file
from llava_recipes.screen import shown

MAX_PROBLEMS = 300
"""Reported of one file; nobody reads more."""


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
        """Where a value comes from: `file:line`, `--set …` or `default`, and the variables in it."""
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
    # The place is printed on one line, whatever the file is called.
    file = shown(mark.file)
    return f"{file}:{mark.line}" if mark.line > 0 else file


def load_recipe(file: str, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Read and check one recipe; raises RecipeError with all of its problems, ordered by line."""
    data = read_file(file)
    if not is_named_as_recipe(file) and not looks_like_recipe(data):
        hint = "a recipe is a YAML file with keys such as `model:` and `stages:`"
        raise RecipeError.of("this isn't a recipe", code="no-recipe", mark=Mark(file, 0, 0), hint=hint)
    return load_source(data, file, overrides)


def load_source(source: str | bytes, file: str, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Check the text of a recipe; raises RecipeError as `load_recipe` does."""
    document = resolve(_with_parents(parse_source(source, file)), overrides, os.environ)
    recipe, found = _validated(document)
    problems = [*document.problems, *found, *_without_echoes(check_rules(document.root), document)]
    if problems or recipe is None:
        raise RecipeError(*_in_order(document, problems))
    assert isinstance(document.root, dict)
    return LoadedRecipe(recipe=recipe, file=file, values=document.root, document=document)


def _with_parents(document: Document) -> Document:
    """The document over its parents; where they cannot be read, its own problems are reported with theirs."""
    problems = document.problems
    try:
        keys = as_mapping(document.root)
        if "extends" in keys or not misspelled(keys, (), "extends"):
            return extend(document)
    except RecipeError as error:
        problems = error.problems
    _, found = _validated(document, is_part=True)
    own = [problem for problem in found if problem.path is None or problem.path[:1] != ("extends",)]
    raise RecipeError(*_in_order(document, (*problems, *own)))


def _validated(document: Document, *, is_part: bool = False) -> tuple[Recipe | None, list[Problem]]:
    """The recipe of a document by the schema, or the schema's problems; of a part, those of its own keys."""
    try:
        return Recipe.model_validate_json(json.dumps(document.root)), []
    except ValidationError as error:
        # Only a recipe with errors of shape needs the words for them.
        from llava_recipes.recipe.explain import explain_validation

        return None, _without_echoes(explain_validation(error, document.root, is_part=is_part), document)


def _without_echoes(problems: Iterable[Problem], document: Document) -> list[Problem]:
    """The problems without those that only follow from a value that could not be read."""
    return [problem for problem in problems if problem.path is None or problem.path not in document.spoiled]


def _with_mark(document: Document, problem: Problem) -> Problem:
    if problem.mark is not None or problem.path is None:
        return problem
    mark = document.locate(problem.path, on_key=problem.on_key)
    if mark is not None and problem.is_secret:
        mark = replace(mark, text=None, file=mark.file if mark.line else f"{mark.file.partition('=')[0]}=…")
    return replace(problem, mark=mark)


def _in_order(document: Document, problems: Iterable[Problem]) -> list[Problem]:
    # A value that an alias repeats is wrong in every place and reported once.
    unique: dict[Problem, Problem] = {}
    for problem in problems:
        marked = _with_mark(document, problem)
        unique.setdefault(replace(marked, path=None), marked)
    ordered = sorted(unique.values(), key=lambda problem: _place(document.file, problem.mark))
    if len(ordered) > MAX_PROBLEMS:
        message = f"{len(ordered) - MAX_PROBLEMS:,} more problems are not shown"
        whole = Mark(document.file, 0, 0)
        ordered = [*ordered[:MAX_PROBLEMS], Problem(message, code="more-problems", mark=whole)]
    return ordered


def _place(file: str, mark: Mark | None) -> tuple[bool, str, int, int]:
    if mark is None:
        return True, "", 0, 0
    return mark.file != file, mark.file, mark.line, mark.column
