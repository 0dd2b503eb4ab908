"""What a stage trains: decided once, counted and named, and refused where it does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llava_recipes.cli.plan_overview import sections_of
from llava_recipes.estimate.assignment import assign
from llava_recipes.estimate.cost import GPUS
from llava_recipes.estimate.estimate import Assumptions, Estimator
from llava_recipes.estimate.fit import propose
from llava_recipes.plan import trainable
from llava_recipes.plan.trainable import groups_of, summarize_adapters, what_trains
from llava_recipes.recipe.globs import Decision, decide
from llava_recipes.recipe.load import load_recipe
from llava_recipes.recipe.schema import Quantization
from llava_recipes.runner.facts import compile_loaded
from tests.estimate.estimates import VICUNA_7B, estimator_of, part, stage1_values
from tests.plan.recipes import compiled, problems_of, stage_values

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.parametrize("name", ["llava_v15_7b", "finetune_qlora_v1_7b", "small_llama32_1b"])
def test_what_trains_is_decided_once_per_stage(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    decided = list[Decision]()

    def counting(*given: Any, **keywords: Any) -> Decision:
        decided.append(decide(*given, **keywords))
        return decided[-1]

    monkeypatch.setattr(trainable, "decide", counting)
    compiled = compile_loaded(load_recipe(str(RECIPES / f"{name}.yaml")), world_size=8)
    Estimator(compiled, Assumptions()).estimate()
    assert len(decided) == len(compiled.plan.stages)


LAYERS = [
    *(f"self_attn.{part}_proj" for part in "qkvo"),
    *(f"mlp.{part}_proj" for part in ("gate", "up", "down")),
]


def test_adapters_are_counted_and_named() -> None:
    values = stage_values(lora={"r": 8}, param_groups=[{"modules": ["projector"], "learning_rate": 2e-5}])
    (stage,) = compiled(values).stages
    projector = 32 * 64 + 64 + 64 * 64 + 64
    adapters = 4 * (4 * 8 * (64 + 64) + 3 * 8 * (64 + 96))
    assert stage.num_trainable_parameters == projector + adapters
    assert stage.trainable_modules == (
        "projector",
        *(f"language_model.layers.{{0..3}}.{layer}.lora_*" for layer in LAYERS),
    )
    assert stage.lora is not None and (stage.lora.r, stage.lora.alpha) == (8, 16)
    assert stage.param_groups[0].num_parameters == projector


def test_adapters_alone_are_enough_to_train() -> None:
    values = stage_values(lora={"modules": ["language_model.layers.{1..2}.mlp.up_proj"], "use_dora": True})
    del values["stages"][0]["trainable"]
    (stage,) = compiled(values).stages
    assert stage.num_trainable_parameters == 2 * (64 * (64 + 96) + 96)
    assert stage.trainable_modules == ("language_model.layers.{1..2}.mlp.up_proj.lora_*",)


def test_layers_that_do_not_follow_each_other_are_named_apart() -> None:
    names = [f"language_model.layers.{index}.x.lora_A.weight" for index in (0, 1, 3)]
    assert summarize_adapters([*names, "lm_head.lora_A.weight", "lm_head.lora_B.weight"]) == (
        "lm_head.lora_*",
        "language_model.layers.{0..1}.x.lora_*",
        "language_model.layers.3.x.lora_*",
    )


@pytest.mark.parametrize(
    ("modules", "changes", "message"),
    [
        (["lm_head", "language_modle"], {}, 'glob "language_modle" in `modules` matches no module'),
        (
            ["lm_head", "language_model.norm"],
            {},
            'glob "language_model.norm" in `modules` matches no linear layer',
        ),
        (["language_model", "**.lm_head"], {}, 'glob "**.lm_head" in `modules` matches no linear layer'),
        (["language_model", "projector"], {}, 'glob "projector" in `modules` adapts what trains in full'),
        (
            ["lm_head", "language_model"],
            {"freeze": ["lm_head"], "trainable": []},
            'glob "language_model" in `modules` adapts what trains in full',
        ),
    ],
)
def test_lora_that_does_not_fit_is_reported_at_its_line(
    modules: list[str], changes: dict[str, Any], message: str
) -> None:
    problems = problems_of(stage_values(lora={"modules": modules}, **changes))
    assert problems[0].message == message
    assert problems[0].path == ("stages", 0, "lora", "modules", modules.index(message.split('"')[1]))


PROJECTOR = {"modules": ["projector"], "learning_rate": 2e-5}


def with_groups(*groups: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return stage_values(freeze=["vision_tower"], trainable=[], param_groups=list(groups), **changes)


def test_a_group_takes_what_it_does_not_say_from_train() -> None:
    decay = {"modules": ["language_model.layers.{0..1}"], "weight_decay": 0.1}
    (stage,) = compiled(with_groups(PROJECTOR, decay, train__weight_decay=0.02)).stages
    projector, layers = stage.param_groups
    assert (projector.learning_rate, projector.weight_decay) == (2e-5, 0.02)
    assert (layers.learning_rate, layers.weight_decay) == (1e-3, 0.1)
    assert projector.num_parameters == 32 * 64 + 64 + 64 * 64 + 64
    # Four attention matrices, three of the MLP, two norms; two layers of them.
    assert layers.num_parameters == 2 * (4 * 64 * 64 + 3 * 64 * 96 + 2 * 64)
    names = ["projector.0.bias", "language_model.layers.2.mlp.up_proj.weight"]
    assert groups_of(names, stage.param_groups) == {"projector.0.bias": 0}


def test_a_weight_decay_of_zero_is_one() -> None:
    group = {"modules": ["projector"], "weight_decay": 0.0}
    (stage,) = compiled(with_groups(group, train__weight_decay=0.1)).stages
    assert stage.param_groups[0].weight_decay == 0.0


@pytest.mark.parametrize(
    ("groups", "place", "message"),
    [
        (
            [{"modules": ["language_model.layer"], "learning_rate": 1e-4}],
            (0, "modules", 0),
            'glob "language_model.layer" in `modules` matches no module',
        ),
        (
            [PROJECTOR, {"modules": ["lm_head", "vision_tower"], "learning_rate": 1e-4}],
            (1, "modules", 1),
            'glob "vision_tower" in `modules` matches only frozen modules',
        ),
        (
            [PROJECTOR, {"modules": ["**.bias"], "weight_decay": 0.1}],
            (1, "modules", 0),
            'glob "**.bias" in `modules` claims parameters of another group',
        ),
    ],
)
def test_groups_that_do_not_fit_are_refused(
    groups: list[dict[str, Any]], place: tuple[int | str, ...], message: str
) -> None:
    (problem,) = problems_of(with_groups(*groups))
    assert problem.path == ("stages", 0, "param_groups", *place)
    assert problem.message == message


def test_an_optimizer_with_groups_of_its_own_is_refused() -> None:
    train = {"train__save_strategy": "no", "train__extra": {"optim_target_modules": "all-linear"}}
    (problem,) = problems_of(with_groups(PROJECTOR, train__optim="galore_adamw", **train))
    assert problem.path == ("stages", 0, "train", "optim")


@pytest.mark.parametrize(
    ("train", "deepspeed", "code"),
    [
        ({"optim": "galore_adamw"}, "zero2", "optimizer-needs-whole-matrices"),
        ({"optim": "adamw_8bit", "save_strategy": "steps"}, "zero2", "optimizer-not-storable"),
        ({"optim": "paged_ademamix_32bit", "save_strategy": "steps"}, "zero3", "optimizer-not-storable"),
        ({"optim": "adagrad"}, "zero2", "optimizer-replaced"),
        ({"optim": "adamw_8bit", "save_strategy": "steps"}, "none", None),
        ({"optim": "adamw_8bit"}, "zero2", None),
        ({"optim": "adagrad"}, "none", None),
        ({"optim": "adafactor", "save_strategy": "steps"}, "zero2", None),
    ],
)
def test_what_optimizers_make_of_weights_that_are_joined(
    train: dict[str, Any], deepspeed: str, code: str | None
) -> None:
    extra = {"optim_target_modules": "all-linear"} if "galore" in train["optim"] else {}
    given = {"save_strategy": "no", "extra": extra} | train
    values = stage1_values(
        VICUNA_7B, deepspeed=deepspeed, **{f"train__{name}": each for name, each in given.items()}
    )
    if code is None:
        assert compiled(values)
    else:
        assert [problem.code for problem in problems_of(values)] == [code]


LINEAR = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
"""Weights of Vicuna-7B's linear layers."""
ROWS = 32 * (5 * 4096 + 2 * 11008)
QLORA: dict[str, Any] = {"lora": {"r": 8}, "deepspeed": "zero2"}


def quantized_values(quantization: dict[str, Any] | None, **changes: Any) -> dict[str, Any]:
    found = stage1_values(VICUNA_7B, **{**QLORA, **changes})
    found["model"]["language_model"] = {"source": VICUNA_7B, "quantization": quantization}
    return found


@pytest.mark.parametrize(
    ("quantization", "num_bytes"),
    [
        ({"bits": 4}, int(LINEAR / 2 + LINEAR / 64 + LINEAR / 64 / 256 * 4)),
        ({"bits": 4, "double_quant": False}, LINEAR // 2 + LINEAR // 64 * 4),
        ({"bits": 8}, LINEAR + 4 * ROWS),
    ],
)
def test_bytes_shrink_and_parameters_do_not(quantization: dict[str, Any], num_bytes: int) -> None:
    plan, small = estimator_of(quantized_values(quantization), gpu="a100-80g")
    reference, large = estimator_of(quantized_values(None), gpu="a100-80g")
    assert plan.model.sizes == reference.model.sizes
    assert plan.stages == reference.stages
    held, whole = small.memory(plan.stages[0])[0], large.memory(plan.stages[0])[0]
    assert part(held, "quantized weights") == num_bytes
    assert part(held, "one weight whole") == 2 * 4096 * 11008
    assert part(whole, "frozen weights") - part(held, "frozen weights") == 2 * LINEAR
    saved = 2 * LINEAR - num_bytes - 2 * 4096 * 11008
    assert whole.total_bytes - held.total_bytes == saved


@pytest.mark.parametrize(
    ("quantization", "words", "dtype"),
    [
        ({"bits": 4}, "linear layers in 4 bits, nf4, scales quantized too", "nf4"),
        ({"bits": 4, "type": "fp4", "double_quant": False}, "linear layers in 4 bits, fp4", "fp4"),
        ({"bits": 8}, "linear layers in 8 bits", "int8"),
    ],
)
def test_it_is_said(quantization: dict[str, Any], words: str, dtype: str) -> None:
    plan = compiled(quantized_values(quantization))
    _, rows = next(sections_of(plan))
    assert dict(rows)["language_model"].endswith(f"{VICUNA_7B}, {words}")
    _, estimator = estimator_of(quantized_values(quantization))
    (stage,) = estimator.estimate().stages
    held = sum(each.num_parameters for each in stage.modules if each.dtype == dtype)
    assert held == LINEAR


def test_nothing_is_said_of_a_whole_model() -> None:
    assert not any(
        "bits" in text for _, rows in sections_of(compiled(quantized_values(None))) for _, text in rows
    )
    plan, estimator = estimator_of(quantized_values(None))
    trains = what_trains({"language_model.x.weight": (4, 4)}, plan.stages[0])
    assert {each.dtype for each in assign(plan.stages[0], trains)} == {"bfloat16"}
    assert estimator.splits_weights


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("precision", [{}, {"train__bf16": False, "train__fp16": True}], ids=["bf16", "fp16"])
def test_no_proposal_splits_the_weights(gpu: str, precision: dict[str, Any]) -> None:
    plan, estimator = estimator_of(quantized_values({"bits": 4}, **precision), world_size=8, gpu=gpu)
    proposal = propose(estimator, plan.stages[0], gpu=GPUS[gpu], world_size=8)
    assert proposal is None or not any("zero3" in line for line in proposal.lines)


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"trainable": ["projector", "language_model"]}, ("stages", 0, "trainable", 1)),
        ({"trainable": ["language_model.layers.3.mlp.up_proj"]}, ("stages", 0, "trainable", 0)),
        ({"freeze": ["vision_tower"], "trainable": []}, ("stages", 0, "freeze")),
        ({"freeze": "none", "trainable": []}, ("stages", 0, "freeze")),
    ],
)
def test_few_bits_do_not_train_in_full(changes: dict[str, Any], path: tuple[str | int, ...]) -> None:
    (problem,) = problems_of(quantized_values({"bits": 4}, **{**changes, "lora": None}))
    assert problem.message == "a quantized language model cannot train in full"
    assert problem.path == path
    assert compiled(quantized_values(None, **{**changes, "lora": None}))


@pytest.mark.parametrize(
    "trainable",
    [["projector", "vision_tower", "lm_head"], ["language_model.norm"], ["language_model.embed_tokens"]],
)
def test_what_is_whole_may_train_with_and_without_adapters(trainable: list[str]) -> None:
    assert compiled(quantized_values({"bits": 4}, trainable=trainable))
    assert compiled(quantized_values({"bits": 8}, trainable=trainable, lora=None))


@pytest.mark.parametrize(
    "deepspeed",
    [
        "zero3",
        {
            "zero_optimization": {"stage": 3},
            "bf16": {"enabled": "auto"},
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_clipping": "auto",
        },
    ],
)
def test_zero3_is_refused(deepspeed: Any) -> None:
    (problem,) = problems_of(quantized_values({"bits": 4}, deepspeed=deepspeed))
    assert problem.path == ("stages", 0, "deepspeed")
    assert problem.message == "ZeRO-3 cannot split a quantized language model"


def test_dora_in_8_bits_is_refused() -> None:
    lora = {"lora": {"use_dora": True}}
    (problem,) = problems_of(quantized_values({"bits": 8}, **lora))
    assert problem.message == "DoRA supports 4 bits, not 8"
    assert problem.path == ("stages", 0, "lora", "use_dora")
    assert compiled(quantized_values({"bits": 4}, **lora))


def test_adapters_of_an_earlier_stage_are_not_merged() -> None:
    recipe = quantized_values({"bits": 4})
    second = {**recipe["stages"][0], "name": "more", "output_dir": "out/more"}
    recipe["stages"].append(second)
    (problem,) = problems_of(recipe)
    assert problem.path == ("stages", 1, "init_from")
    assert "cannot be merged into a quantized language model" in problem.message
    second["init_from"] = "base"
    assert compiled(recipe)
    second.pop("init_from")
    recipe["stages"][0] |= {"lora": None, "trainable": ["projector"]}
    assert compiled(recipe).stages[1].starts_from == (recipe["stages"][0]["output_dir"],)


def test_a_plan_without_the_key_is_read() -> None:
    plan = compiled(quantized_values(None))
    text = plan.model_dump_json().replace(',"quantization":null', "")
    assert "quantization" not in text
    assert type(plan).model_validate_json(text) == plan
    assert compiled(quantized_values({"bits": 4})).model.language_model.quantization == Quantization(bits=4)
