"""config.json has the original's keys, from a Vicuna-like config and from a LLaVA checkpoint's own."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from llava_recipes.model.assemble import Assembled, assemble
from llava_recipes.model.legacy_config import original_config
from llava_recipes.model.lora import freeze_model
from llava_recipes.plan.compile import Facts, compile_recipe
from llava_recipes.plan.types import Plan
from llava_recipes.recipe.schema import Recipe
from tests.tiny import FIXTURES, GOLDEN, stage1_values

EXPECTED = json.loads((GOLDEN / "06_stage1" / "base" / "config.json").read_text())
NAMES = {"_name_or_path", "mm_vision_tower", "transformers_version"}


@pytest.fixture(scope="module")
def parts() -> tuple[Plan, Assembled]:
    recipe = Recipe.model_validate_json(json.dumps(stage1_values(FIXTURES)))
    plan = compile_recipe(recipe, world_size=1, facts=Facts()).plan
    assembled = assemble(plan.model, dtype=torch.float32)
    freeze_model(assembled.model, freeze="all", trainable=("projector",))
    return plan, assembled


@pytest.mark.parametrize("changes", [{}, {"model_type": "llava_llama"}], ids=["vicuna", "llava"])
@pytest.mark.parametrize("sparse", [False, True])
def test_keys_and_values_are_the_originals(
    changes: dict[str, str], sparse: bool, parts: tuple[Plan, Assembled]
) -> None:
    """Vicuna's own config.json leaves out what was not yet a key when it was written."""
    plan, assembled = parts
    newer = {"attention_bias", "attention_dropout", "rope_scaling", "rope_theta", "pretraining_tp"}
    source = {k: v for k, v in assembled.language_config.items() if not (sparse and k in newer)}
    changed = dataclasses.replace(assembled, language_config={**source, **changes})
    written = original_config(plan.model, stage=plan.stages[0], assembled=changed)
    assert written.keys() == EXPECTED.keys()
    assert {k: v for k, v in written.items() if k not in NAMES} == {
        k: v for k, v in EXPECTED.items() if k not in NAMES
    }
