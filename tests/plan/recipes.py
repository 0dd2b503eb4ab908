"""Recipes as values, for tests that change one thing at a time."""

from __future__ import annotations

import copy
import json
from typing import Any

from llava_recipes.errors import Problem, RecipeError
from llava_recipes.plan.compile import Facts, compile_recipe
from llava_recipes.plan.types import Plan
from llava_recipes.recipe.schema import Recipe

LANGUAGE: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
TOWER: dict[str, Any] = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 56,
    "patch_size": 14,
}
STAGE: dict[str, Any] = {
    "name": "align",
    "freeze": "all",
    "trainable": ["projector"],
    "data": {
        "template": "plain",
        "sources": [{"annotations": "align.json", "images": "images", "num_samples": 100}],
        "max_length": 256,
    },
    "train": {
        "num_train_epochs": 1,
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 4,
        "save_steps": 5,
    },
    "output_dir": "out/align",
}
RECIPE: dict[str, Any] = {
    "version": 1,
    "name": "tiny",
    "model": {
        "language_model": {"config": LANGUAGE, "tokenizer": "tok"},
        "vision_tower": {"config": TOWER},
    },
    "stages": [STAGE],
}


def recipe_values(**changes: Any) -> dict[str, Any]:
    """The tiny recipe with values replaced at dotted paths; `__` stands for a dot."""
    values = copy.deepcopy(RECIPE)
    for path, value in changes.items():
        *parents, last = path.split("__")
        place: Any = values
        for key in parents:
            place = place[int(key)] if key.isdigit() else place.setdefault(key, {})
        if last.isdigit():
            place[int(last)] = value
        else:
            place[last] = value
    return values


def stage_values(**changes: Any) -> dict[str, Any]:
    """The tiny recipe with values of its one stage replaced."""
    return recipe_values(**{f"stages__0__{path}": value for path, value in changes.items()})


def compiled(values: dict[str, Any], *, world_size: int = 1, facts: Facts | None = None) -> Plan:
    recipe = Recipe.model_validate_json(json.dumps(values))
    return compile_recipe(recipe, world_size=world_size, facts=facts or Facts()).plan


def problems_of(values: dict[str, Any], *, world_size: int = 1, facts: Facts | None = None) -> list[Problem]:
    """What compiling complains of; fails where it complains of nothing."""
    try:
        plan = compiled(values, world_size=world_size, facts=facts)
    except RecipeError as error:
        return list(error.problems)
    raise AssertionError(f"compiled without a complaint: {plan}")
