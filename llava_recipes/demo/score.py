"""How often captions of the held-out images name color and shape, compared with chance."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from llava_recipes.demo.drawn_data import HeldOut, all_combinations, unseen_combinations
from llava_recipes.demo.vocabulary import COLORS, SHAPES

NUM_EXAMPLES = 4


@dataclass(frozen=True)
class Tally:
    """How many captions name the right color, the right shape, and both."""

    num_images: int
    num_color: int
    num_shape: int
    num_both: int

    @property
    def share_both(self) -> float:
        return self.num_both / self.num_images


@dataclass(frozen=True)
class CaptionScore:
    """Captions of one kind of held-out images, after each stage by name.

    `chance` is how often a guess is right: among the combinations of the training images, or for unseen
    combinations among all.
    """

    images: str
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

    A caption with no color or several colors is wrong; the same for shapes.
    """
    pairs = list(zip(said, true, strict=True))
    colors = [_named(COLORS, caption) == _named(COLORS, truth) for caption, truth in pairs]
    shapes = [_named(SHAPES, caption) == _named(SHAPES, truth) for caption, truth in pairs]
    num_both = sum(color and shape for color, shape in zip(colors, shapes, strict=True))
    return Tally(len(pairs), sum(colors), sum(shapes), num_both)


def score_captions(
    held_out: Sequence[HeldOut], said: Mapping[str, Sequence[str]]
) -> tuple[CaptionScore, CaptionScore]:
    """Scores of the held-out images with known combinations, and of those with unseen ones.

    `said` has the model's captions after each stage, by the stage's name.
    """
    num_all, num_unseen = len(all_combinations()), len(unseen_combinations())
    kinds = (("known combinations", False, num_all - num_unseen), ("unseen combinations", True, num_all))
    known, unseen = (
        CaptionScore(
            images=name,
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
    """The scores as a table with a column for each stage."""
    stages = [*scores[0].after]
    head = f"{'held-out images':<28}{'chance':>8}" + "".join(f"{stage:>12}" for stage in stages)
    rows = [
        f"{score.last.num_images:>4} of {score.images:<20}{score.chance:>8.1%}"
        + "".join(f"{tally.share_both:>12.1%}" for tally in score.after.values())
        for score in scores
    ]
    return "\n".join(["color and shape both named right, after each stage", head, *rows])


def render_examples(held_out: Sequence[HeldOut], said: Sequence[str]) -> list[str]:
    """A few held-out images, spread over the file, with the model's captions."""
    lines = []
    for index in range(0, len(held_out), max(1, len(held_out) // NUM_EXAMPLES)):
        image = held_out[index]
        note = "  (a combination never trained on)" if image.is_unseen else ""
        lines += [f"{image.image}{note}", f"  shows  {image.caption}", f"  said   {said[index]}"]
    return lines


def scores_as_json(scores: Sequence[CaptionScore]) -> str:
    values = [{**asdict(score), "times_chance": score.times_chance} for score in scores]
    return json.dumps(values, indent=2) + "\n"


def _named(words: Sequence[str], caption: str) -> set[str]:
    return set(caption.split()) & set(words)


def _count_kind(held_out: Sequence[HeldOut], said: Sequence[str], *, is_unseen: bool) -> Tally:
    kept = [pair for pair in zip(said, held_out, strict=True) if pair[1].is_unseen == is_unseen]
    return count_right([caption for caption, _ in kept], [image.caption for _, image in kept])
