"""How often captions of the held-out pictures name colour and shape, beside chance."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from llava_recipes.demo.drawn_data import HeldOut, all_combinations, unseen_combinations
from llava_recipes.demo.vocabulary import COLOURS, SHAPES

NUM_EXAMPLES = 4


@dataclass(frozen=True)
class Tally:
    """How many captions name the right colour, the right shape, and both."""

    num_pictures: int
    num_colour: int
    num_shape: int
    num_both: int

    @property
    def share_both(self) -> float:
        return self.num_both / self.num_pictures


@dataclass(frozen=True)
class CaptionScore:
    """Captions of one kind of held-out pictures, after each stage by name.

    `chance` is how often a guess is right: one among the combinations that training shows, or for pictures of
    the others, one among all.
    """

    pictures: str
    chance: float
    after: dict[str, Tally]

    @property
    def last(self) -> Tally:
        return [*self.after.values()][-1]

    @property
    def times_chance(self) -> float:
        return self.last.share_both / self.chance


def count_right(said: Sequence[str], true: Sequence[str]) -> Tally:
    """Compare captions with the true ones, one by one.

    A caption that names no colour or several has the colour wrong; the same for shapes.
    """
    pairs = list(zip(said, true, strict=True))
    colours = [_named(COLOURS, caption) == _named(COLOURS, truth) for caption, truth in pairs]
    shapes = [_named(SHAPES, caption) == _named(SHAPES, truth) for caption, truth in pairs]
    num_both = sum(colour and shape for colour, shape in zip(colours, shapes, strict=True))
    return Tally(len(pairs), sum(colours), sum(shapes), num_both)


def score_captions(
    held_out: Sequence[HeldOut], said: Mapping[str, Sequence[str]]
) -> tuple[CaptionScore, CaptionScore]:
    """Scores of the new pictures with known combinations, and of those with combinations never trained on.

    `said` holds the captions that the model gave after each stage.
    """
    num_all, num_unseen = len(all_combinations()), len(unseen_combinations())
    kinds = (("known combinations", False, num_all - num_unseen), ("unseen combinations", True, num_all))
    known, unseen = (
        CaptionScore(
            pictures=name,
            chance=1 / num_guesses,
            after={
                stage: _count_kind(held_out, captions, is_unseen=is_unseen)
                for stage, captions in said.items()
            },
        )
        for name, is_unseen, num_guesses in kinds
    )
    return known, unseen


def render_scores(scores: Sequence[CaptionScore]) -> str:
    """The scores as a table for a person, a column for each stage."""
    stages = [*scores[0].after]
    head = f"{'held-out pictures':<28}{'chance':>8}" + "".join(f"{stage:>12}" for stage in stages)
    rows = [
        f"{score.last.num_pictures:>4} of {score.pictures:<20}{score.chance:>8.1%}"
        + "".join(f"{tally.share_both:>12.1%}" for tally in score.after.values())
        for score in scores
    ]
    return "\n".join(["colour and shape both named right, after each stage", head, *rows])


def render_examples(held_out: Sequence[HeldOut], said: Sequence[str]) -> list[str]:
    """A few held-out pictures, spread over the file, and what the model says to them."""
    lines = []
    for index in range(0, len(held_out), max(1, len(held_out) // NUM_EXAMPLES)):
        picture = held_out[index]
        note = "  (a combination that training never showed)" if picture.is_unseen else ""
        lines += [f"{picture.image}{note}", f"  shows  {picture.caption}", f"  said   {said[index]}"]
    return lines


def scores_as_json(scores: Sequence[CaptionScore]) -> str:
    values = [{**asdict(score), "times_chance": score.times_chance} for score in scores]
    return json.dumps(values, indent=2) + "\n"


def _named(words: Sequence[str], caption: str) -> set[str]:
    return set(caption.split()) & set(words)


def _count_kind(held_out: Sequence[HeldOut], said: Sequence[str], *, is_unseen: bool) -> Tally:
    kept = [pair for pair in zip(said, held_out, strict=True) if pair[1].is_unseen == is_unseen]
    return count_right([caption for caption, _ in kept], [picture.caption for _, picture in kept])
