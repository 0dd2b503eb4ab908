"""The keys that say which records a stage trains on, and which it is measured on."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from llava_recipes.recipe.frozen import Frozen, Text

SamplingStrategy = Annotated[
    str,
    Field(
        pattern=r"^(all|(first|end|random):"
        r"([1-9][0-9]{0,11}|([1-9][0-9]?(\.[0-9]+)?|0\.[0-9]*[1-9][0-9]*|100)%))$",
        max_length=40,
    ),
]


class Source(Frozen):
    """One annotation file, the folder of its images, and how much of it is used."""

    annotations: Text = Field(
        description="JSON file: a list of records with `id`, `image` and `conversations`; or JSONL; or a "
        "Parquet file, a folder of them, or a pattern such as `data/train-*.parquet`.",
        examples=["./playground/data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json"],
    )
    images: Text | None = Field(
        None,
        description="Folder that the records' `image` paths start from. Leave out for text-only data, and "
        "for pictures that lie inside a Parquet file.",
    )
    num_samples: int | None = Field(
        None,
        gt=0,
        description="How many records the file holds. Lets `plan` count steps without the file; "
        "checked when the file is read.",
        examples=[558128],
    )
    sampling_strategy: SamplingStrategy = Field(
        "all",
        description="Which records are used: `all`, or the `first`, the `end` or a `random` part of the "
        "file, as a number or a percentage (rounded up): `first:1000`, `end:5%`, `random:10%`.",
        examples=["random:10%"],
    )
    weight: float = Field(
        1.0,
        gt=0,
        le=1000,
        description="How many times the chosen records count in an epoch. `2.0` uses each of them twice, "
        "`0.5` a random half; the same records in every epoch.",
        examples=[2.0],
    )


class Validation(Frozen):
    """Records that are never trained on, for a loss that is measured during training."""

    sources: tuple[Source, ...] | None = Field(
        None,
        min_length=1,
        description="Annotation files of their own, with the keys of `data.sources`. One of this and `split` "
        "is needed.",
    )
    split: float | None = Field(
        None,
        gt=0,
        description="Part of the training data that is held out: a share below 1 (rounded up) or a whole "
        "number of records; drawn at random by `train.seed`, from every source in proportion.",
        examples=[0.01, 500],
    )
