"""The keys that say how parts of the model are trained apart from the rest."""

from __future__ import annotations

from typing import Literal

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
        None,
        gt=0,
        description="Peak learning rate of the group. Default: `train.learning_rate`.",
        examples=[2e-5],
    )
    weight_decay: float | None = Field(
        None,
        ge=0,
        description="Weight decay of the group, never applied to biases and norms. "
        "Default: `train.weight_decay`.",
    )


class Lora(Frozen):
    """Low-rank adapters beside frozen linear layers."""

    r: int = Field(64, gt=0, description="Rank of the adapters.", examples=[128])
    alpha: float = Field(
        16, gt=0, description="Scale: an adapter's output is multiplied by alpha / r.", examples=[256]
    )
    dropout: float = Field(0.05, ge=0, lt=1, description="Dropout on what enters an adapter.")
    modules: tuple[Text, ...] = Field(
        ("language_model",),
        min_length=1,
        description="Globs; the linear layers under them are adapted. vision_tower, projector and lm_head "
        "only where a glob begins with their name.",
        examples=[["language_model"], ["language_model.layers.*.self_attn"]],
    )
    bias: Literal["none", "all", "lora_only"] = Field(
        "none",
        description="Biases that train too: none, all of the adapted parts, or those of the adapted layers.",
    )
    use_dora: bool = Field(False, description="DoRA: train the length of each weight row apart.")
    use_rslora: bool = Field(False, description="rsLoRA: scale by alpha / sqrt(r).")
