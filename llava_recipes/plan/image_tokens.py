"""The embeddings of `<im_start>` and `<im_end>`, trained by themselves: the root `image_tokens`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from llava_recipes.recipe.errors import KeyPath, Problem
from llava_recipes.recipe.globs import split_glob

ROOT = "image_tokens"
WEIGHT = "image_tokens.weight"
NUM_TOKENS = 2
"""`<im_start>` and `<im_end>`."""

EMBEDDINGS = "language_model.embed_tokens.weight"

Shapes = Mapping[str, tuple[int, ...]]


class Trainable(Protocol):
    """A stage, in a recipe or in a plan."""

    @property
    def trainable(self) -> tuple[str, ...]: ...


def trains_image_tokens(stage: Trainable) -> bool:
    """Whether a stage trains these rows alone: only where a glob of `trainable` begins with their name."""
    return any(split_glob(glob)[0] == ROOT for glob in stage.trainable)


def with_image_tokens(shapes: Shapes, stage: Trainable) -> Shapes:
    """The parameters of a stage's model: the rows are one by itself where they train alone."""
    if not trains_image_tokens(stage) or EMBEDDINGS not in shapes:
        return shapes
    return {**shapes, WEIGHT: (NUM_TOKENS, shapes[EMBEDDINGS][1])}


def image_token_problems(
    stage: Trainable, trainable: frozenset[str], *, stage_path: KeyPath
) -> Iterator[Problem]:
    """Rows that would train twice: alone, and with all others."""
    if WEIGHT in trainable and EMBEDDINGS in trainable:
        index = next(index for index, glob in enumerate(stage.trainable) if split_glob(glob)[0] == ROOT)
        yield Problem(
            "`image_tokens` are rows of language_model.embed_tokens, which trains as a whole",
            code="image-tokens-train-already",
            path=(*stage_path, "trainable", index),
            hint="remove it here; the two rows train with the others",
        )
