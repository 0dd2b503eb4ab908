"""Few bits in a plan: counted in bytes and not in parameters, and refused where they do not go."""

from __future__ import annotations

from typing import Any

import pytest

from llava_recipes.cli.plan_overview import sections_of
from llava_recipes.estimate.assignment import assign
from llava_recipes.estimate.cost import GPUS
from llava_recipes.estimate.fit import propose
from llava_recipes.plan.trainable import what_trains
from llava_recipes.recipe.schema import Quantization
from tests.estimate.estimates import VICUNA_7B, estimator_of, part, stage1_values
from tests.plan.recipes import compiled, problems_of

LINEAR = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
"""Weights of Vicuna-7B's linear layers."""
ROWS = 32 * (5 * 4096 + 2 * 11008)
LORA: dict[str, Any] = {"lora": {"r": 8}, "deepspeed": "zero2"}


def values(quantization: dict[str, Any] | None, **changes: Any) -> dict[str, Any]:
    found = stage1_values(VICUNA_7B, **{**LORA, **changes})
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
    plan, small = estimator_of(values(quantization), gpu="a100-80g")
    reference, large = estimator_of(values(None), gpu="a100-80g")
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
    plan = compiled(values(quantization))
    _, rows = next(sections_of(plan))
    assert dict(rows)["language_model"].endswith(f"{VICUNA_7B}, {words}")
    _, estimator = estimator_of(values(quantization))
    (stage,) = estimator.estimate().stages
    held = sum(each.num_parameters for each in stage.modules if each.dtype == dtype)
    assert held == LINEAR


def test_nothing_is_said_of_a_whole_model() -> None:
    assert not any("bits" in text for _, rows in sections_of(compiled(values(None))) for _, text in rows)
    plan, estimator = estimator_of(values(None))
    trains = what_trains({"language_model.x.weight": (4, 4)}, plan.stages[0])
    assert {each.dtype for each in assign(plan.stages[0], trains)} == {"bfloat16"}
    assert estimator.splits_weights


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("precision", [{}, {"train__bf16": False, "train__fp16": True}], ids=["bf16", "fp16"])
def test_no_proposal_splits_the_weights(gpu: str, precision: dict[str, Any]) -> None:
    plan, estimator = estimator_of(values({"bits": 4}, **precision), world_size=8, gpu=gpu)
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
    (problem,) = problems_of(values({"bits": 4}, **{**changes, "lora": None}))
    assert problem.message == "a quantized language model cannot train in full"
    assert problem.path == path
    assert compiled(values(None, **{**changes, "lora": None}))


@pytest.mark.parametrize(
    "trainable",
    [["projector", "vision_tower", "lm_head"], ["language_model.norm"], ["language_model.embed_tokens"]],
)
def test_what_is_whole_may_train_with_and_without_adapters(trainable: list[str]) -> None:
    assert compiled(values({"bits": 4}, trainable=trainable))
    assert compiled(values({"bits": 8}, trainable=trainable, lora=None))


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
    (problem,) = problems_of(values({"bits": 4}, deepspeed=deepspeed))
    assert problem.path == ("stages", 0, "deepspeed")
    assert problem.message == "ZeRO-3 cannot split a quantized language model"


def test_dora_in_8_bits_is_refused() -> None:
    lora = {"lora": {"use_dora": True}}
    (problem,) = problems_of(values({"bits": 8}, **lora))
    assert problem.message == "DoRA goes with 4 bits, and not with 8"
    assert problem.path == ("stages", 0, "lora", "use_dora")
    assert compiled(values({"bits": 4}, **lora))


def test_adapters_of_an_earlier_stage_are_not_merged() -> None:
    recipe = values({"bits": 4})
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
    plan = compiled(values(None))
    text = plan.model_dump_json().replace(',"quantization":null', "")
    assert "quantization" not in text
    assert type(plan).model_validate_json(text) == plan
    assert compiled(values({"bits": 4})).model.language_model.quantization == Quantization(bits=4)
