from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_recipes.errors import Problem
from llava_recipes.plan.arguments import keyword_arguments
from llava_recipes.plan.compile import Facts
from llava_recipes.plan.outline import outline_model
from llava_recipes.plan.types import Plan
from llava_recipes.recipe.globs import decide
from tests.plan.recipes import LANGUAGE, STAGE, TOWER, compiled, problems_of, recipe_values, stage_values


def only_problem(values: dict[str, Any], **given: Any) -> Problem:
    (problem,) = problems_of(values, **given)
    return problem


def stages(*changes: dict[str, Any]) -> dict[str, Any]:
    """A recipe of several stages, each the tiny one with its own name, folder and changes."""
    made = [{**STAGE, "name": name, "output_dir": f"out/{name}"} for name in "abcd"[: len(changes)]]
    return recipe_values(stages=[stage | change for stage, change in zip(made, changes, strict=True)])


def test_a_plan_survives_json() -> None:
    plan = compiled(stage_values(deepspeed="zero3", train__report_to=["wandb", "tensorboard"]))
    assert Plan.model_validate_json(plan.model_dump_json()) == plan


def test_what_trains_is_counted() -> None:
    plan = compiled(stage_values(trainable=["projector", "language_model.layers.{2..3}.mlp"]))
    (stage,) = plan.stages
    outline = outline_model(language=LANGUAGE, vision=TOWER, projector_type="mlp2x_gelu")
    assert outline is not None and plan.model.sizes is not None
    assert stage.num_trainable_parameters == (32 * 64 + 64) + (64 * 64 + 64) + 2 * 3 * 64 * 96
    assert stage.trainable_modules == (
        "projector",
        "language_model.layers.2.mlp",
        "language_model.layers.3.mlp",
    )
    # The summary is itself a list of globs for the same decision.
    again = decide(outline.shapes, freeze="all", trainable=stage.trainable_modules)
    assert again.trainable == decide(outline.shapes, freeze="all", trainable=stage.trainable).trainable


def test_derived_values_are_shown() -> None:
    values = stage_values(train__global_batch_size=64, train__warmup_ratio=0.5)
    plan = compiled(values, world_size=4)
    train = plan.stages[0].train
    assert (train.global_batch_size, train.gradient_accumulation_steps) == (64, 4)
    assert (train.steps_per_epoch, train.max_steps, train.warmup_steps) == (2, 2, 1)
    assert keyword_arguments(train)["gradient_accumulation_steps"] == 4
    assert "4 accumulation steps: global batch 64 = 4 processes × 4 samples × 4" in plan.notes


@given(changes=st.permutations([("a", {}), ("b", {}), ("c", {})]))
def test_each_stage_starts_from_all_before_it(changes: list[tuple[str, dict[str, Any]]]) -> None:
    plan = compiled(recipe_values(stages=[{**STAGE, "name": n, "output_dir": n} for n, _ in changes]))
    names = tuple(name for name, _ in changes)
    assert [stage.starts_from for stage in plan.stages] == [names[:index] for index in range(3)]


def test_starts_can_be_chosen() -> None:
    plan = compiled(
        stages({"init_from": "./old"}, {}, {"init_from": "a"}, {"init_from": "base"}),
    )
    assert [stage.starts_from for stage in plan.stages] == [
        ("./old",),
        ("./old", "out/a"),
        ("./old", "out/a"),
        (),
    ]


@pytest.mark.parametrize(
    ("start", "hint"),
    [("bas", "did you mean `base`?"), ("b", None), ("c", None), ("pretrained", "base, a, or a folder")],
)
def test_a_start_that_is_not_there(start: str, hint: str | None) -> None:
    problem = only_problem(stages({}, {"init_from": start}, {}))
    assert problem.path == ("stages", 1, "init_from")
    assert problem.message == "`init_from` doesn't name an earlier stage"
    assert hint is None or (problem.hint is not None and problem.hint.startswith(hint))


@pytest.mark.parametrize(
    ("glob", "found", "hint"),
    [
        (
            "multi_modal_projector",
            "the model has language_model, lm_head, projector, vision_tower",
            'did you mean "projector"?',
        ),
        ("projetor", "the model has language_model", 'did you mean "projector"?'),
        ("language_model.layer", "language_model has embed_tokens, layers, norm", '"language_model.layers"?'),
        ("language_model.layers.13", "language_model.layers has 0 to 3", None),
        (
            "language_model.layers.{2..3}.mpl",
            "language_model.layers.{2..3} has self_attn, mlp",
            '"language_model.layers.{2..3}.mlp"?',
        ),
        ("**.cross_attention", "the model has language_model", None),
    ],
)
def test_a_glob_that_matches_nothing(glob: str, found: str, hint: str | None) -> None:
    problem = only_problem(stage_values(trainable=["projector", glob]))
    assert problem.path == ("stages", 0, "trainable", 1)
    assert problem.message == f'glob "{glob}" in `trainable` matches no module'
    assert problem.found is not None and problem.found.startswith(found)
    assert problem.hint is None if hint is None else (problem.hint is not None and hint in problem.hint)


def test_a_freeze_glob_that_matches_nothing() -> None:
    problem = only_problem(stage_values(freeze=["vision_tower", "mm_projector"], trainable=[]))
    assert problem.path == ("stages", 0, "freeze", 1)
    assert problem.hint == 'did you mean "projector"?'


def test_a_shared_head_is_explained() -> None:
    values = recipe_values(model__language_model__config={**LANGUAGE, "tie_word_embeddings": True})
    values["stages"][0]["trainable"] = ["lm_head"]
    problem = only_problem(values)
    assert problem.hint is not None and "shares the weights of language_model.embed_tokens" in problem.hint


@pytest.mark.parametrize(
    ("freeze", "key"),
    [("all", "freeze"), (["**"], "freeze"), (["vision_tower", "projector", "l*"], "freeze")],
)
def test_a_stage_in_which_nothing_trains(freeze: object, key: str) -> None:
    problem = only_problem(stage_values(freeze=freeze, trainable=[]))
    assert problem.message == "nothing trains in this stage"
    assert problem.path == ("stages", 0, key)


@pytest.mark.parametrize("layer", [-5, 4, 24])
def test_a_layer_outside_the_tower(layer: int) -> None:
    problem = only_problem(recipe_values(model__vision_tower__select_layer=layer))
    assert problem.path == ("model", "vision_tower", "select_layer")
    assert problem.hint == "write a number from -4 to 3; -2 is the second to last layer"


@pytest.mark.parametrize("layer", [-4, 0, 3])
def test_layers_inside_the_tower(layer: int) -> None:
    assert compiled(recipe_values(model__vision_tower__select_layer=layer))


def test_a_tower_without_class_token() -> None:
    tower = {"config": {**TOWER, "model_type": "siglip_vision_model"}, "select_feature": "cls_patch"}
    problem = only_problem(recipe_values(model__vision_tower=tower))
    assert problem.path == ("model", "vision_tower", "select_feature")


def test_the_class_token_counts() -> None:
    plan = compiled(recipe_values(model__vision_tower__select_feature="cls_patch"))
    assert plan.model.sizes is not None and plan.model.sizes.num_image_tokens == 17


def test_an_identity_projector_needs_equal_widths() -> None:
    values = recipe_values(model__projector={"type": "identity"})
    values["stages"][0]["trainable"] = ["lm_head"]
    assert only_problem(values).path == ("model", "projector", "type")
    values["model"]["vision_tower"]["config"]["hidden_size"] = 64
    assert compiled(values)


def test_a_length_that_an_image_fills() -> None:
    problem = only_problem(stage_values(data__max_length=16))
    assert problem.path == ("stages", 0, "data", "max_length")
    assert problem.found == "16, but one image takes 16 tokens"
    assert compiled(stage_values(data__max_length=17))
    text_only = stage_values(data__max_length=16)
    del text_only["stages"][0]["data"]["sources"][0]["images"]
    (note,) = compiled(text_only).notes
    assert note == "no source has `images`, but what trains in this stage learns only from images"


def test_a_config_value_that_builds_no_model_is_at_its_key() -> None:
    problem = only_problem(recipe_values(model__language_model__config={**LANGUAGE, "hidden_size": "64"}))
    assert problem.path == ("model", "language_model", "config", "hidden_size")


def test_a_misspelled_config_key_is_reported() -> None:
    config = {key: value for key, value in LANGUAGE.items() if key != "hidden_size"} | {"hiden_size": 64}
    problem = only_problem(recipe_values(model__language_model__config=config))
    assert problem.path == ("model", "language_model", "config", "hiden_size")
    assert problem.on_key and problem.hint == "did you mean `hidden_size`?"
    tower = {**TOWER, "hidden_act": "gelu", "attention_dropout": 0.0, "rope_theta": 1e4}
    assert compiled(recipe_values(model__vision_tower__config=tower))


def test_a_config_file_that_builds_no_model_is_at_its_source() -> None:
    values = recipe_values(model__language_model="./llm")
    problem = only_problem(values, facts=Facts(language_config={**LANGUAGE, "vocab_size": -1}))
    assert problem.path == ("model", "language_model")
    assert problem.found == "vocab_size: -1"


def test_configs_on_disk_go_before_the_catalog() -> None:
    values = recipe_values(model__language_model="lmsys/vicuna-7b-v1.5")
    assert compiled(values).model.sizes is not None
    sizes = compiled(values, facts=Facts(language_config=LANGUAGE)).model.sizes
    assert sizes is not None and sizes.language_hidden_size == 64


@pytest.mark.parametrize(
    ("language", "facts", "note"),
    [
        ("my/llm", Facts(), "the config of language model my/llm does not exist here"),
        ("my/llm", Facts(language_config={"model_type": "gpt_neox"}), "type gpt_neox are not known"),
    ],
)
def test_unknown_models_are_planned_without_sizes(language: str, facts: Facts, note: str) -> None:
    plan = compiled(recipe_values(model__language_model=language), facts=facts)
    assert plan.model.sizes is None
    assert plan.stages[0].num_trainable_parameters is None
    assert plan.stages[0].trainable_modules is None
    assert note in "\n".join(plan.notes)


def test_uncounted_samples_are_reported() -> None:
    values = stage_values()
    del values["stages"][0]["data"]["sources"][0]["num_samples"]
    plan = compiled(values)
    assert plan.stages[0].data.num_samples is None
    assert plan.stages[0].train.max_steps is None
    assert any("align.json" in note and "`num_samples`" in note for note in plan.notes)
    values["stages"][0]["train"]["save_steps"] = 500
    counted = compiled(values, facts=Facts(num_samples={"align.json": 800}))
    assert counted.stages[0].train.max_steps == 200
    assert counted.notes == (
        "no checkpoint is written before the end: `save_steps: 500` is beyond the last of 200 steps",
    )


def test_a_long_max_length_is_reported() -> None:
    assert any("512 positions" in note for note in compiled(stage_values(data__max_length=1024)).notes)


@pytest.mark.parametrize(
    ("choice", "source", "stage"),
    [
        ("none", "none", None),
        ("zero3", "zero3", 3),
        ({"zero_optimization": {"stage": 1}, "train_batch_size": "auto"}, "inline", 1),
    ],
)
def test_deepspeed_choices(choice: Any, source: str, stage: int | None) -> None:
    planned = compiled(stage_values(deepspeed=choice)).stages[0]
    assert planned.deepspeed_source == source
    assert (planned.deepspeed is None) == (stage is None)
    if planned.deepspeed is not None:
        assert json.loads(json.dumps(planned.deepspeed))["zero_optimization"]["stage"] == stage


def test_a_deepspeed_file_is_checked() -> None:
    config: Any = {"zero_optimization": {"stage": 2}, "train_batch_size": 7}
    problem = only_problem(
        stage_values(deepspeed="ds.json"), facts=Facts(deepspeed_files={"ds.json": config})
    )
    assert problem.path == ("stages", 0, "deepspeed")
    assert "`train_batch_size: 7`, the recipe results in 4" in problem.message


def test_everything_wrong_is_reported_at_once() -> None:
    values = stage_values(
        trainable=["projectr"],
        train__global_batch_size=7,
        train__extra={"hub_token": "x"},
        deepspeed="zero9.json",
        data__max_length=3,
    )
    values["model"]["vision_tower"]["select_layer"] = 9
    facts = Facts(
        problems=(Problem("config.json is not valid JSON", code="test", path=("model", "language_model")),)
    )
    paths = [problem.path for problem in problems_of(values, facts=facts)]
    assert sorted(map(str, paths)) == sorted(
        map(
            str,
            [
                ("model", "language_model"),
                ("model", "vision_tower", "select_layer"),
                ("stages", 0, "trainable", 0),
                ("stages", 0, "train", "global_batch_size"),
                ("stages", 0, "train", "extra", "hub_token"),
                ("stages", 0, "deepspeed"),
                ("stages", 0, "data", "max_length"),
            ],
        )
    )


def test_a_file_that_cannot_be_read_is_reported_once() -> None:
    unreadable = Problem("ds.json is not valid JSON", code="test", path=("stages", 0, "deepspeed"))
    assert problems_of(stage_values(deepspeed="ds.json"), facts=Facts(problems=(unreadable,))) == [unreadable]


def test_no_full_batch_to_keep() -> None:
    values = stage_values(train__extra={"dataloader_drop_last": True}, train__per_device_train_batch_size=101)
    assert only_problem(values).path == ("stages", 0, "train", "extra", "dataloader_drop_last")
