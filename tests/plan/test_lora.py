"""LoRA in a plan: what it adds, how it is written, and what is refused at its line."""

from __future__ import annotations

from typing import Any

import pytest

from llava_recipes.plan.trainable import summarize_adapters
from tests.plan.recipes import compiled, problems_of, stage_values

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
def test_what_does_not_fit_is_told_at_its_line(
    modules: list[str], changes: dict[str, Any], message: str
) -> None:
    problems = problems_of(stage_values(lora={"modules": modules}, **changes))
    assert problems[0].message == message
    assert problems[0].path == ("stages", 0, "lora", "modules", modules.index(message.split('"')[1]))
