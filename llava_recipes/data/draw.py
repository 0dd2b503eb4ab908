"""Which records of a file a stage uses: a pure function of the source's plan and the size of its file."""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence

from llava_recipes.plan.data import count_drawn, count_used, overdrawn
from llava_recipes.plan.types import SourcePlan
from llava_recipes.recipe.errors import RecipeError


def positions(source: SourcePlan, num_records: int) -> Sequence[int]:
    """Places in the file of the samples that an epoch draws from it, in file order.

    With a weight above 1 they come again, pass after pass. Raises RecipeError when the source asks for more
    records than the file holds.
    """
    problem = overdrawn(source.sampling_strategy, num_records)
    if problem is not None:
        raise RecipeError(problem)
    chosen = _chosen(source, num_records)
    if source.num_held_out:
        held_out = by_chance(chosen, source.num_held_out, f"{source.draw_seed}/held out")
        if source.part == "held_out":
            return held_out
        apart = set(held_out)
        chosen = array("Q", (position for position in chosen if position not in apart))
    elif source.part == "held_out":
        return ()
    if source.weight == 1 or not chosen:
        return chosen
    whole_passes, rest = divmod(count_used(source.weight, len(chosen)), len(chosen))
    return array("Q", chosen) * whole_passes + by_chance(chosen, rest, f"{source.draw_seed}/weight")


def _chosen(source: SourcePlan, num_records: int) -> Sequence[int]:
    word = source.sampling_strategy.partition(":")[0]
    count = count_drawn(source.sampling_strategy, num_records)
    if word == "end":
        return range(num_records - count, num_records)
    if word == "random":
        return by_chance(range(num_records), count, f"{source.draw_seed}/random")
    return range(count)


def by_chance(among: Sequence[int], count: int, seed: str) -> array[int]:
    """`count` of these numbers, in the order they stand in.

    Each gets a random number, and those with the smallest are taken, so that a larger share holds a smaller
    one. Only Python's `random()` is used, whose numbers for a seed stay the same in every version.
    """
    generator = random.Random(seed)
    keys = array("d", (generator.random() for _ in among))
    first = sorted(range(len(among)), key=keys.__getitem__)[:count]
    return array("Q", (among[place] for place in sorted(first)))
