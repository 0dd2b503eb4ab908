"""The keys that say which pictures a stage captions while it trains."""

from __future__ import annotations

from pydantic import Field

from llava_recipes.recipe.frozen import Frozen, Text


class Samples(Frozen):
    """What `sample_every` asks the model."""

    num: int | None = Field(
        None,
        gt=0,
        le=100,
        description="How many records are asked: the first with a picture, of the validation data, or of the "
        "training data where there is none. Default 4.",
        examples=[4],
    )
    images: tuple[Text, ...] | None = Field(
        None,
        min_length=1,
        max_length=100,
        description="Picture files of your own instead, each asked `prompt`.",
        examples=[["./pictures/cat.jpg"]],
    )
    prompt: Text | None = Field(
        None,
        description="What is asked of each of `images`. Not with `template: plain`, which captions.",
        examples=["What is in this picture?"],
    )
    max_new_tokens: int = Field(64, gt=0, le=4096, description="Longest answer, in tokens.")
