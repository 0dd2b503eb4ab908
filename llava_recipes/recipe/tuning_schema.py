"""The keys that say how parts of the model are trained apart from the rest."""

from __future__ import annotations

from pydantic import Field

from llava_recipes.recipe.frozen import Frozen, Text


class ParamGroup(Frozen):
    """Modules with a learning rate or weight decay of their own."""

    modules: tuple[Text, ...] = Field(
        min_length=1,
        description="Globs of modules; of what they match, that which trains makes the group.",
        examples=[["projector"], ["vision_tower"]],
    )
    learning_rate: float | None = Field(
        None, gt=0, description="Peak learning rate of the group. Default: `train.learning_rate`."
    )
    weight_decay: float | None = Field(
        None,
        ge=0,
        description="Weight decay of the group, never applied to biases and norms. "
        "Default: `train.weight_decay`.",
    )
