"""How much of each source a stage uses: counts that follow from the recipe and the sizes of the files.

Shares are rounded up, as LLaVA-NeXT rounds its percentages. Which records they are, `data/draw.py` draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from llava_recipes.plan.types import SourcePlan
from llava_recipes.recipe.errors import KeyPath, Problem
from llava_recipes.recipe.schema import Source


@dataclass(frozen=True)
class MixedSources:
    """The sources that are trained on, and those that are held out; None where nothing is."""

    training: tuple[SourcePlan, ...]
    held_out: tuple[SourcePlan, ...] | None


def mix_sources(
    sources: Sequence[Source], counts: Sequence[int | None], *, seed: str, split: float | None
) -> MixedSources:
    """What is used of each source that holds so many records; None where a file is not at hand.

    `seed` begins the text that every draw by chance is seeded with.
    """
    drawn = [
        None if count is None else count_drawn(source.sampling_strategy, count)
        for source, count in zip(sources, counts, strict=True)
    ]
    held_out = [0] * len(sources) if split is None else count_held_out(split, drawn)
    training = [
        SourcePlan(
            annotations=source.annotations,
            images=source.images,
            num_samples=count,
            sampling_strategy=source.sampling_strategy,
            weight=source.weight,
            num_held_out=held,
            num_used=None if chosen is None or held is None else count_used(source.weight, chosen - held),
            draw_seed=f"{seed}/{number}" if _by_chance(source, split) else "",
        )
        for number, (source, count, chosen, held) in enumerate(
            zip(sources, counts, drawn, held_out, strict=True)
        )
    ]
    if split is None:
        return MixedSources(tuple(training), None)
    changes = ({"part": "held_out", "weight": 1.0, "num_used": source.num_held_out} for source in training)
    return MixedSources(
        tuple(training),
        tuple(source.model_copy(update=change) for source, change in zip(training, changes, strict=True)),
    )


def _by_chance(source: Source, split: float | None) -> bool:
    return (
        split is not None or source.sampling_strategy.startswith("random") or not source.weight.is_integer()
    )


def every_record(source: SourcePlan) -> SourcePlan:
    """The source with each of its chosen records once, to be trained on or held out."""
    return source.model_copy(update={"weight": 1.0, "num_held_out": 0, "part": "training"})


def total_used(sources: Sequence[SourcePlan]) -> int | None:
    """Samples that an epoch draws; None while a file is not at hand."""
    counts = [source.num_used for source in sources]
    return None if None in counts else sum(count for count in counts if count is not None)


def count_drawn(strategy: str, num_records: int) -> int:
    """How many of a file's records a sampling strategy chooses; may be more than there are."""
    word, _, amount = strategy.partition(":")
    if word == "all":
        return num_records
    if amount.endswith("%"):
        return math.ceil(Fraction(amount[:-1]) * num_records / 100)
    return int(amount)


def overdrawn(strategy: str, num_records: int) -> Problem | None:
    """The problem of a strategy that asks for more records than there are; its path is the key's name."""
    if count_drawn(strategy, num_records) <= num_records:
        return None
    return Problem(
        "`sampling_strategy` asks for more records than the file holds",
        code="too-few-records",
        path=("sampling_strategy",),
        found=f"{strategy}, and the file holds {num_records:,}",
        hint="write `all`",
    )


def nothing_left(held_out: Sequence[SourcePlan], path: KeyPath) -> Problem:
    """The problem of a `split` that takes every record; `path` is its own."""
    return Problem(
        "`split` holds out every record: nothing is left to train on",
        code="too-few-records",
        path=path,
        found=f"{total_used(held_out):,} records, all of them held out",
        hint="write a share such as `0.01`, or a smaller number",
    )


def count_used(weight: float, num_records: int) -> int:
    """How many samples an epoch draws from so many records."""
    return math.ceil(Fraction(repr(weight)) * num_records)


def count_held_out(split: float, drawn: Sequence[int | None]) -> list[int | None]:
    """How many records of each source are held out: its share of the whole, by largest remainder."""
    known = [count for count in drawn if count is not None]
    if len(known) < len(drawn):
        return [None] * len(drawn)
    in_all = sum(known)
    wanted = min(in_all, math.ceil(Fraction(repr(split)) * in_all) if split < 1 else int(split))
    exact = [Fraction(wanted * count, in_all) for count in known]
    held_out = [int(share) for share in exact]
    by_remainder = sorted(range(len(known)), key=lambda number: held_out[number] - exact[number])
    for number in by_remainder[: wanted - sum(held_out)]:
        held_out[number] += 1
    return list[int | None](held_out)
