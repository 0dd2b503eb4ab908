"""Errors about single samples, which also cross from a data loader's worker process to the main one."""

from __future__ import annotations

import json

from llava_recipes.recipe.errors import Mark, Problem, RecipeError

_CARRIED = "problems of samples: "


class SampleError(RecipeError):
    """One or more samples that their owner must mend.

    torch rebuilds a worker's exception from the text of its traceback alone. That text ends with the
    problems as one line of JSON, from which this class fills itself again.
    """

    def __init__(self, *problems: Problem | str) -> None:
        super().__init__(*(found for problem in problems for found in _problems(problem)))

    def __str__(self) -> str:
        return _CARRIED + json.dumps([problem.to_json() for problem in self.problems])

    def __reduce__(self) -> tuple[type[SampleError], tuple[Problem, ...]]:
        return type(self), self.problems


def sample_problem(
    index: int,
    sample_id: str,
    message: str,
    *,
    code: str,
    mark: Mark | None = None,
    found: str | None = None,
    hint: str | None = None,
) -> Problem:
    """A problem whose message names the sample by index and id."""
    name = f'sample {index} (id "{sample_id}")' if sample_id else f"sample {index} (no id)"
    return Problem(f"{name}: {message}", code=code, mark=mark, found=found, hint=hint)


def images_take(num_images: int, num_tokens: int) -> str:
    """`3 images take 1,728 tokens`."""
    return (
        f"1 image takes {num_tokens:,} tokens"
        if num_images == 1
        else (f"{num_images:,} images take {num_tokens:,} tokens")
    )


def _problems(problem: Problem | str) -> list[Problem]:
    if isinstance(problem, Problem):
        return [problem]
    _, carried, text = problem.rpartition(_CARRIED)
    if not carried:
        return [Problem(problem, code="sample-cannot-be-used")]
    values, _ = json.JSONDecoder().raw_decode(text)
    return [Problem.from_json(each) for each in values]
