"""Warnings: each where it is true, none on what the published recipes do, except what is true of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from llava_recipes.errors import Problem
from llava_recipes.plan.advice import advise
from llava_recipes.plan.compile import Facts, compile_recipe
from llava_recipes.recipe.load import load_recipe
from llava_recipes.recipe.schema import Recipe
from llava_recipes.runner.facts import plan_recipe
from tests.plan.recipes import recipe_values, stage_values

ROOT = Path(__file__).parent.parent.parent
GALLERY = [file for file in sorted((ROOT / "recipes").rglob("*.yaml")) if file.parent.name != "base"]
OURS = ("small_", "demo")
VICUNA = "lmsys/vicuna-7b-v1.5"
CLIP = {"source": "openai/clip-vit-large-patch14-336"}

TRUE_OF_THE_SCRIPTS = {
    # They save every 24,000 or 50,000 steps, in runs of 600 to 5,200.
    "no checkpoint is written before the end": None,
    # LLaVA-NeXT gives all of its stages ZeRO stage 3.
    "ZeRO stage 3 fetches the frozen language model": {"pretrain_next_qwen2_7b"},
}
"""Warnings of shipped recipes that come from their scripts, and in which recipes; None for any."""


def warnings_of(values: dict[str, Any], *, world_size: int = 1) -> list[Problem]:
    recipe = Recipe.model_validate_json(json.dumps(values))
    plan = compile_recipe(recipe, world_size=world_size, facts=Facts()).plan
    found = advise(recipe, plan.model, plan.stages)
    assert all(problem.severity == "warning" for problem in found)
    assert all(problem.hint for problem in found), "a warning says what to do"
    assert {problem.message for problem in found} <= set(plan.notes), "the plan says it too"
    return list(found)


def pretrained(**changes: Any) -> dict[str, Any]:
    """A stage over pretrained weights, as most people run it."""
    values = stage_values(train__bf16=True, train__global_batch_size=4, **changes)
    values["model"] = {"language_model": VICUNA, "vision_tower": CLIP}
    values["stages"][0]["data"] |= {"max_length": 2048, "template": "v1"}
    return values


def test_the_gallery_is_not_empty() -> None:
    assert GALLERY


@pytest.mark.parametrize("world_size", [1, 8])
@pytest.mark.parametrize("file", GALLERY, ids=lambda file: file.stem)
def test_a_shipped_recipe_warns_of_what_is_true_of_its_script_alone(file: Path, world_size: int) -> None:
    loaded = load_recipe(str(file))
    plan = plan_recipe(loaded, world_size=world_size)
    for warning in advise(loaded.recipe, plan.model, plan.stages):
        reasons = [words for words in TRUE_OF_THE_SCRIPTS if warning.message.startswith(words)]
        assert reasons, warning.message
        recipes = TRUE_OF_THE_SCRIPTS[reasons[0]]
        assert recipes is None or file.stem in recipes
        assert not file.stem.startswith(OURS), "what is ours needs no excuse"


def test_an_ordinary_stage_has_none() -> None:
    assert warnings_of(stage_values()) == []
    assert warnings_of(pretrained()) == []


@pytest.mark.parametrize(
    ("max_steps", "save", "is_reported"),
    [
        (100, {"save_steps": 100}, False),
        (100, {"save_steps": 101}, True),
        (99, {"save_steps": 100}, False),
        (1, {"save_steps": 24000}, False),
        (100, {"save_steps": 101, "save_strategy": "no"}, False),
        (100, {"save_steps": 5, "save_strategy": "epoch"}, True),
        # Nobody asked for checkpoints every 500 steps.
        (100, {}, False),
    ],
)
def test_saving(max_steps: int, save: dict[str, Any], is_reported: bool) -> None:
    values = stage_values()
    train = values["stages"][0]["train"]
    del train["save_steps"], train["num_train_epochs"]
    train |= {"max_steps": max_steps, **save}
    assert [problem.path for problem in warnings_of(values)] == [
        ("stages", 0, "train", "save_steps")
    ] * is_reported


def test_steps_of_one_process_are_an_upper_bound() -> None:
    """`validate` does not know the number of processes: what it reports is true for any."""
    values = stage_values(train__save_steps=600)
    # 500 steps on one process, 125 on four.
    values["stages"][0]["data"]["sources"][0]["num_samples"] = 2000
    (problem,) = warnings_of(values, world_size=1)
    assert problem.found is not None and "1 process" in problem.found
    assert len(warnings_of(values, world_size=4)) == 1
    assert warnings_of(values, world_size=8) == [], "so few steps need no checkpoint"
    values["stages"][0]["train"]["save_steps"] = 400
    assert warnings_of(values, world_size=1) == []
    (problem,) = warnings_of(values, world_size=4)
    assert problem.found is None


@pytest.mark.parametrize(("steps", "is_reported"), [(24, False), (25, True), (1000, True)])
def test_warm_up_that_never_ends(steps: int, is_reported: bool) -> None:
    assert bool(warnings_of(stage_values(train__warmup_steps=steps))) == is_reported


@pytest.mark.parametrize(
    ("num_samples", "warm_up", "is_reported"),
    [
        # Of batches of four: one step, two, five, and a hundred.
        (4, {"warmup_ratio": 0.03}, True),
        (4, {"warmup_ratio": 0}, False),
        (4, {"warmup_steps": 0}, False),
        (4, {"warmup_steps": 1}, True),
        (8, {"warmup_ratio": 0.03}, False),
        (8, {"warmup_ratio": 0.51}, True),
        (20, {"warmup_ratio": 0.8}, False),
        (20, {"warmup_ratio": 0.81}, True),
        (400, {"warmup_ratio": 0.995}, True),
        (400, {"warmup_ratio": 0.03}, False),
    ],
)
def test_a_run_that_is_all_warm_up(num_samples: int, warm_up: dict[str, float], is_reported: bool) -> None:
    values = stage_values(data__sources__0__num_samples=num_samples)
    train = values["stages"][0]["train"]
    train |= warm_up
    found = warnings_of(values)
    assert [problem.path for problem in found] == [("stages", 0, "train", *warm_up)] * is_reported
    for problem in found:
        (pair,) = re.findall(r"`(warmup_ratio|warmup_steps): ([0-9.]+)`", str(problem.hint))
        values["stages"][0]["train"] = {key: train[key] for key in train if key not in warm_up}
        values["stages"][0]["train"][pair[0]] = json.loads(pair[1])
        assert warnings_of(values) == []


@pytest.mark.parametrize("world_size", [1, 3, 8])
@pytest.mark.parametrize("num_samples", [1, 2, 7, 24, 95])
@pytest.mark.parametrize(
    "batch",
    [
        {"global_batch_size": 96, "per_device_train_batch_size": 4},
        {"per_device_train_batch_size": 96},
        {"per_device_train_batch_size": 12, "gradient_accumulation_steps": 8},
    ],
)
def test_a_batch_larger_than_an_epoch(batch: dict[str, int], num_samples: int, world_size: int) -> None:
    values = stage_values(data__sources__0__num_samples=num_samples)
    values["stages"][0]["train"] |= batch
    (problem,) = warnings_of(values, world_size=world_size)
    assert problem.code == "batch-larger-than-epoch"
    written = re.findall(r"`([a-z_]+): (\d+)`", str(problem.hint))
    assert bool(written) == (num_samples >= world_size)
    for key, value in written:
        values["stages"][0]["train"][key] = int(value)
    if written:
        assert warnings_of(values, world_size=world_size) == []


@pytest.mark.parametrize(
    ("trainable", "rate", "is_reported"),
    [
        (["projector"], 1e-3, False),
        (["projector"], 2e-3, False),
        (["projector"], 2e-5, True),
        (["projector"], 0.1, True),
        (["projector", "language_model"], 2e-5, False),
        (["projector", "language_model"], 1e-3, True),
        (["vision_tower", "projector"], 2e-6, False),
        (["vision_tower", "projector"], 1e-3, True),
    ],
)
def test_learning_rates(trainable: list[str], rate: float, is_reported: bool) -> None:
    found = warnings_of(pretrained(trainable=trainable, train__learning_rate=rate))
    assert [problem.path for problem in found] == [("stages", 0, "train", "learning_rate")] * is_reported


def test_random_weights_may_be_trained_at_any_rate() -> None:
    assert (
        warnings_of(stage_values(trainable=["language_model", "projector"], train__learning_rate=3e-3)) == []
    )


def test_adapters_and_groups_have_rates_of_their_own() -> None:
    """LLaVA-1.5 LoRA: adapters at 2e-4, the projector at 2e-5."""
    lora = {"r": 128, "alpha": 256}
    group = {"modules": ["projector"], "learning_rate": 2e-5}
    values = pretrained(lora=lora, param_groups=[group], train__learning_rate=2e-4)
    assert warnings_of(values) == []
    values["stages"][0]["train"]["learning_rate"] = 2e-6
    (problem,) = warnings_of(values)
    assert "LoRA adapters" in problem.message
    values = pretrained(freeze="none", param_groups=[{"modules": ["vision_tower"], "learning_rate": 1e-3}])
    values["stages"][0]["trainable"] = []
    values["stages"][0]["train"]["learning_rate"] = 2e-5
    (problem,) = warnings_of(values)
    assert problem.path == ("stages", 0, "param_groups", 0, "learning_rate")


@pytest.mark.parametrize(
    ("precision", "is_reported"), [({}, True), ({"bf16": True}, False), ({"fp16": True}, False)]
)
def test_large_models_in_float32(precision: dict[str, bool], is_reported: bool) -> None:
    values = pretrained()
    values["stages"][0]["train"].pop("bf16")
    values["stages"][0]["train"] |= precision
    assert [problem.path for problem in warnings_of(values)] == [("stages", 0, "train")] * is_reported


def test_zero3_is_for_models_that_train_or_do_not_fit() -> None:
    assert [problem.path for problem in warnings_of(pretrained(deepspeed="zero3"))] == [
        ("stages", 0, "deepspeed")
    ]
    assert warnings_of(pretrained(deepspeed="zero2")) == []
    trains = pretrained(
        deepspeed="zero3", trainable=["language_model", "projector"], train__learning_rate=2e-5
    )
    assert warnings_of(trains) == []


def test_a_frozen_random_projector_is_reported_unless_it_has_weights() -> None:
    values = pretrained(trainable=["language_model"], train__learning_rate=2e-5)
    assert [problem.path for problem in warnings_of(values)] == [("model", "projector")]
    values["model"]["projector"] = {"init_from": "mm_projector.bin"}
    assert warnings_of(values) == []
    values = pretrained(trainable=["language_model"], train__learning_rate=2e-5, init_from="./runs/pretrain")
    assert warnings_of(values) == []


def test_a_stage_that_starts_over() -> None:
    values = recipe_values()
    second = {**values["stages"][0], "name": "second", "output_dir": "out/second"}
    values["stages"].append({**second, "init_from": "base"})
    (problem,) = warnings_of(values)
    assert problem.path == ("stages", 1, "init_from")
    values["stages"][1] = second
    assert warnings_of(values) == []


def test_text_alone_and_long_texts() -> None:
    values = stage_values(data__max_length=1024)
    del values["stages"][0]["data"]["sources"][0]["images"]
    assert {problem.path for problem in warnings_of(values)} == {
        ("stages", 0, "data", "max_length"),
        ("stages", 0, "data", "sources"),
    }


def test_an_order_that_is_not_drawn() -> None:
    (problem,) = [
        found
        for found in warnings_of(stage_values(data__order="original", data__shuffle=False))
        if "order" in found.message
    ]
    assert problem.path == ("stages", 0, "data", "order")
    (by_length,) = [
        found
        for found in warnings_of(stage_values(data__order="original", data__group_by="length"))
        if "order" in found.message
    ]
    assert by_length.path == problem.path and "group_by: length" in by_length.message
    shuffled = warnings_of(stage_values(data__order="original", data__group_by="modality_length"))
    assert not [found for found in shuffled if "order" in found.message]


@pytest.mark.parametrize(
    ("batch", "hint"),
    [
        (
            {"per_device_train_batch_size": 32},
            "write `global_batch_size: 256`, LLaVA's batch at this",
        ),
        ({"per_device_train_batch_size": 24}, "write `global_batch_size:` with the batch that the learning"),
        ({"gradient_accumulation_steps": 2}, "in place of `gradient_accumulation_steps`"),
        ({"per_device_train_batch_size": 32, "global_batch_size": 256}, None),
        ({}, "write `global_batch_size: 256`"),
    ],
)
def test_a_batch_that_depends_on_the_number_of_processes(batch: dict[str, int], hint: str | None) -> None:
    values = pretrained(train__learning_rate=1e-3, train__save_steps=1)
    train = values["stages"][0]["train"]
    for key in ("global_batch_size", "per_device_train_batch_size"):
        train.pop(key, None)
    train |= batch
    for world_size in (1, 8):
        found = [each for each in warnings_of(values, world_size=world_size) if "processes" in each.message]
        assert [str(hint) in str(each.hint) for each in found] == ([True] if hint is not None else [])


def test_a_tiny_model_may_have_the_batch_of_one_device() -> None:
    assert not [each for each in warnings_of(stage_values()) if "processes" in each.message]


@pytest.mark.parametrize("template", ["plain", "v0_plain"])
@pytest.mark.parametrize(
    ("stage", "is_reported"),
    [
        ({"trainable": ["projector"]}, False),
        ({"trainable": ["projector", "language_model"]}, True),
        ({"trainable": ["lm_head"]}, True),
        ({"trainable": [], "lora": {"r": 8}}, True),
        ({"trainable": ["vision_tower"]}, False),
    ],
)
def test_plain_leaves_the_prompts_out(template: str, stage: dict[str, Any], is_reported: bool) -> None:
    values = pretrained()
    values["stages"][0] |= stage
    values["stages"][0]["data"]["template"] = template
    found = [each for each in warnings_of(values) if "leaves out the questions" in each.message]
    assert [each.path for each in found] == ([("stages", 0, "data", "template")] if is_reported else [])
    values["stages"][0]["data"]["template"] = "v1"
    assert not [each for each in warnings_of(values) if "leaves out" in each.message]
