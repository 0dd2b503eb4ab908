"""The model's names and shapes without any weight."""

from __future__ import annotations

import torch
from transformers import LlavaForConditionalGeneration

from llava_recipes.model.assemble import dress, read_parts, stock_model
from llava_recipes.plan.types import ModelPlan


def build_skeleton(plan: ModelPlan) -> LlavaForConditionalGeneration:
    """The model that `assemble` would build, every parameter on the meta device.

    Reads configs and tokenizer, never weights. Raises RecipeError as `assemble` does for what those say.
    """
    parts = read_parts(plan, weights=False)
    with torch.device("meta"):
        model = stock_model(plan, parts, torch.float32, partitioned=False)
    dress(model, plan, parts)
    meta: LlavaForConditionalGeneration = model.to(device=torch.device("meta"))
    return meta
