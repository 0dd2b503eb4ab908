"""The module tree of a plan, against the model and the optimizer that training makes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from transformers import Trainer

from llava_recipes.estimate.assignment import Assignment, assign, decays
from llava_recipes.model.assemble import build_skeleton
from llava_recipes.model.weight_names import canonical_parameters
from llava_recipes.plan.compile import Facts, compile_recipe
from llava_recipes.plan.trainable import what_trains
from llava_recipes.recipe.schema import Recipe
from tests.model.plans import VICUNA
from tests.plan.recipes import LANGUAGE, TOWER, stage_values

TYPES = [("llama", "clip_vision_model"), ("qwen2", "siglip_vision_model"), ("qwen3", "clip_vision_model")]


def assigned(world_size: int = 1, **changes: Any) -> dict[str, Assignment]:
    recipe = Recipe.model_validate_json(json.dumps(stage_values(**changes)))
    compiled = compile_recipe(recipe, world_size=world_size, facts=Facts())
    plan, model = compiled.plan, compiled.model
    assert model.shapes is not None
    modules = assign(plan.stages[0], what_trains(model.shapes, plan.stages[0]))
    assert plan.model.sizes is not None
    adapters = sum(each.num_parameters for each in modules if each.rule.startswith("lora, r"))
    assert sum(each.num_parameters for each in modules) == plan.model.sizes.num_parameters + adapters
    trained = sum(each.num_parameters for each in modules if each.trains)
    assert trained == plan.stages[0].num_trainable_parameters
    return {each.module: each for each in modules}


def test_a_part_of_one_fate_is_one_module() -> None:
    modules = assigned()
    assert list(modules) == ["vision_tower", "projector", "language_model", "lm_head"]
    assert modules["projector"].rule == 'trainable "projector"'
    assert modules["projector"].learning_rate == 1e-3
    assert modules["vision_tower"].rule == "freeze: all"
    assert modules["vision_tower"].learning_rate is None


def test_a_part_is_cut_where_a_glob_ends() -> None:
    modules = assigned(trainable=["projector", "language_model.layers.{2..3}.mlp", "**.norm"])
    assert modules["language_model.layers.1"].trains is False
    assert modules["language_model.layers.2.mlp"].rule == 'trainable "language_model.layers.{2..3}.mlp"'
    assert modules["language_model.layers.2.self_attn"].rule == "freeze: all"
    assert modules["language_model.norm"].rule == 'trainable "**.norm"'


def test_frozen_globs_are_named() -> None:
    modules = assigned(freeze=["vision_tower"], trainable=[])
    assert modules["vision_tower"].rule == 'freeze "vision_tower"'
    assert modules["projector"].rule == "in no glob of `freeze`"


def test_weight_decay_counts_neither_biases_nor_norms() -> None:
    modules = assigned(trainable=["projector", "language_model"], train__weight_decay=0.1)
    assert modules["projector"].num_decayed == 32 * 64 + 64 * 64
    norms = 64 * (2 * 4 + 1)
    assert modules["language_model"].num_decayed == modules["language_model"].num_parameters - norms
    assert modules["vision_tower"].num_decayed == 0


def test_groups_have_their_own_rate_and_decay() -> None:
    groups = [{"modules": ["projector"], "learning_rate": 2e-5, "weight_decay": 0.5}]
    modules = assigned(trainable=["projector", "lm_head"], param_groups=groups)
    assert modules["projector"].learning_rate == 2e-5
    assert modules["projector"].weight_decay == 0.5
    assert modules["projector"].rule == 'trainable "projector", param_groups[0]'
    assert modules["lm_head"].learning_rate == 1e-3


def test_adapters_stand_in_the_tree() -> None:
    modules = assigned(lora={"r": 8, "modules": ["language_model.layers.*.mlp"]}, trainable=["projector"])
    adapter = modules["language_model.layers.3.mlp.up_proj.lora_A"]
    assert (adapter.rule, adapter.num_parameters, adapter.learning_rate) == ("lora, r 8", 8 * 64, 1e-3)
    assert modules["language_model.layers.3.mlp.up_proj.weight"].rule == "freeze: all"
    assert modules["language_model.layers.3.self_attn"].trains is False


@pytest.mark.parametrize(
    ("engine", "dtype", "masters"), [("zero2", "bfloat16", True), ("none", "float32", False)]
)
def test_what_trains_has_its_masters_somewhere(engine: str, dtype: str, masters: bool) -> None:
    modules = assigned(train__bf16=True, deepspeed=engine)
    assert (modules["projector"].dtype, modules["projector"].masters) == (dtype, masters)
    assert (modules["language_model"].dtype, modules["language_model"].masters) == ("bfloat16", False)


@pytest.mark.parametrize(("language", "tower"), TYPES)
def test_decay_is_that_of_the_trainer(language: str, tower: str) -> None:
    values = stage_values()
    values["model"]["language_model"] = {
        "config": {**LANGUAGE, "model_type": language, "num_key_value_heads": 2},
        "tokenizer": str(VICUNA),
    }
    values["model"]["vision_tower"] = {"config": {**TOWER, "model_type": tower}}
    recipe = Recipe.model_validate_json(json.dumps(values))
    compiled = compile_recipe(recipe, world_size=1, facts=Facts())
    plan, planned = compiled.plan, compiled.model
    model = build_skeleton(plan.model)
    theirs = Trainer.get_decay_parameter_names(None, model)
    names = {id(parameter): name for name, parameter in model.named_parameters(remove_duplicate=False)}
    ours = canonical_parameters(model)
    assert planned.shapes is not None
    assert set(ours) == set(planned.shapes)
    for name, parameter in ours.items():
        assert decays(name) == (names[id(parameter)] in theirs), name
