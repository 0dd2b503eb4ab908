"""Estimates of recipes given as values."""

from __future__ import annotations

import json
from typing import Any

from llava_recipes.estimate.cost import find_gpu
from llava_recipes.estimate.estimate import Assumptions, Estimate, Estimator
from llava_recipes.estimate.memory import Memory
from llava_recipes.plan.compile import Facts, compile_recipe
from llava_recipes.plan.types import Plan
from llava_recipes.recipe.schema import Recipe
from tests.plan.recipes import recipe_values

VICUNA_7B, VICUNA_13B = "lmsys/vicuna-7b-v1.5", "lmsys/vicuna-13b-v1.5"
CLIP_336 = "openai/clip-vit-large-patch14-336"


def stage1_values(language_model: str = VICUNA_13B, **changes: Any) -> dict[str, Any]:
    """LLaVA-1.5's Stage 1; changes are those of its one stage."""
    return recipe_values(
        model__language_model=language_model,
        model__vision_tower={"source": CLIP_336},
        **{
            f"stages__0__{path}": value
            for path, value in {
                "data__max_length": 2048,
                "data__sources": [{"annotations": "a.json", "images": "i", "num_samples": 558_128}],
                "train": {
                    "num_train_epochs": 1,
                    "learning_rate": 1e-3,
                    "per_device_train_batch_size": 32,
                    "bf16": True,
                    "tf32": True,
                    "gradient_checkpointing": True,
                },
                "deepspeed": "zero2",
                **changes,
            }.items()
        },
    )


def estimator_of(
    values: dict[str, Any], *, world_size: int = 8, gpu: str | None = None, **given: Any
) -> tuple[Plan, Estimator]:
    recipe = Recipe.model_validate_json(json.dumps(values))
    compiled = compile_recipe(recipe, world_size=world_size, facts=Facts())
    assumptions = Assumptions(gpu=None if gpu is None else find_gpu(gpu), **given)
    return compiled.plan, Estimator(compiled, assumptions)


def estimated(
    values: dict[str, Any], *, world_size: int = 8, gpu: str | None = None, **given: Any
) -> Estimate:
    return estimator_of(values, world_size=world_size, gpu=gpu, **given)[1].estimate()


def part(memory: Memory, name: str) -> int:
    """Bytes of one part; 0 where it is not alive."""
    return sum(each.num_bytes for each in memory.parts if each.name == name)
