"""Whether the tokenizer goes with what each stage writes; known from the tokenizer's files alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from llava_recipes.layouts import LAYOUTS
from llava_recipes.plan.types import Plan
from llava_recipes.recipe.errors import Problem, RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from llava_recipes.data.prompts import Prompts


def wording_problems(plan: Plan, stages: Iterable[int]) -> Iterator[Problem]:
    """A tokenizer that cannot be loaded; tokens that a stage's template needs and it has not; chat templates
    that cannot be learned from."""
    from llava_recipes.data.tokenizer import load_tokenizer

    try:
        tokenizer = load_tokenizer(plan.model.language_model, plan.model.image_tokens)
    except RecipeError as error:
        yield from error.problems
        return
    for index in stages:
        template = plan.stages[index].data.template
        if template is None or LAYOUTS[template].tokens:
            try:
                _prompts(plan, index, tokenizer)
            except RecipeError as error:
                yield from error.problems


def open_prompts(plan: Plan, index: int) -> Prompts:
    """What writes the conversations of a stage. Raises RecipeError at its place in the recipe."""
    from llava_recipes.data.tokenizer import load_tokenizer

    return _prompts(plan, index, load_tokenizer(plan.model.language_model, plan.model.image_tokens))


def _prompts(plan: Plan, index: int, tokenizer: PreTrainedTokenizerBase) -> Prompts:
    from llava_recipes.data.prompts import Prompts

    try:
        return Prompts(plan.stages[index].data, tokenizer, start_end=plan.model.image_tokens.start_end)
    except RecipeError as error:
        problems = (replace(found, path=("stages", index, *(found.path or ()))) for found in error.problems)
        raise RecipeError(*problems) from None
