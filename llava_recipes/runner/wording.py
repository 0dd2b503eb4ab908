"""Whether the tokenizer goes with what each stage writes; known from the tokenizer's files alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from llava_recipes.layouts import LAYOUTS
from llava_recipes.plan.types import Plan
from llava_recipes.recipe.errors import Problem, RecipeError

if TYPE_CHECKING:
    from llava_recipes.data.prompts import Prompts


def wording_problems(plan: Plan, stages: Iterable[int]) -> Iterator[Problem]:
    """Tokens that a stage's template needs and the tokenizer has not; chat templates that cannot be learned
    from."""
    for index in stages:
        template = plan.stages[index].data.template
        if template is None or LAYOUTS[template].tokens:
            try:
                open_prompts(plan, index)
            except RecipeError as error:
                yield from error.problems


def open_prompts(plan: Plan, index: int) -> Prompts:
    """What writes the conversations of a stage. Raises RecipeError at its place in the recipe."""
    from llava_recipes.data.prompts import Prompts
    from llava_recipes.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(plan.model.language_model, plan.model.image_tokens)
    try:
        return Prompts(plan.stages[index].data, tokenizer, start_end=plan.model.image_tokens.start_end)
    except RecipeError as error:
        problems = (replace(found, path=("stages", index, *(found.path or ()))) for found in error.problems)
        raise RecipeError(*problems) from None
