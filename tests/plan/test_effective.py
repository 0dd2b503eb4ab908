"""The effective DeepSpeed config is the one that transformers makes of the recipe."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainingArguments
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

from llava_recipes.plan.arguments import keyword_arguments
from llava_recipes.plan.deepspeed import effective_deepspeed
from llava_recipes.versions import training_arguments
from tests.plan.recipes import compiled, stage_values

INLINE = {
    "bf16": {"enabled": "auto"},
    "gradient_clipping": "auto",
    "gradient_accumulation_steps": 3,
    "train_micro_batch_size_per_gpu": "auto",
    "zero_optimization": {"stage": 2, "reduce_bucket_size": 1000},
}


BF16 = {"bf16": True}


@pytest.mark.parametrize(
    ("engine", "precision"), [("zero2", {}), ("zero2", BF16), ("zero3", {}), ("zero3", BF16), (INLINE, BF16)]
)
def test_every_auto_is_filled_in_as_transformers_does(
    engine: str | dict[str, Any], precision: dict[str, bool]
) -> None:
    train = {
        "num_train_epochs": 1,
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 3,
        "max_grad_norm": 0.5,
        **precision,
    }
    stage = compiled(stage_values(deepspeed=engine, train=train)).stages[0]
    wanted = training_arguments({**keyword_arguments(stage.train), "bf16": False})
    arguments = TrainingArguments(output_dir="unused", use_cpu=True, **wanted)
    arguments.bf16 = stage.train.precision == "bf16"
    theirs = HfTrainerDeepSpeedConfig(stage.deepspeed)
    theirs.trainer_config_process(arguments)
    model = SimpleNamespace(config=SimpleNamespace(hidden_size=64))
    theirs.trainer_config_finalize(arguments, model, 25)
    ours = effective_deepspeed(stage, world_size=1, hidden=64)
    assert "auto" not in str(ours)
    assert ours == theirs.config


def test_the_plan_keeps_its_auto() -> None:
    stage = compiled(stage_values(deepspeed="zero2")).stages[0]
    assert effective_deepspeed(stage, world_size=8, hidden=64)["train_batch_size"] == 32  # type: ignore[index]
    assert stage.deepspeed is not None and stage.deepspeed["train_batch_size"] == "auto"


def test_sizes_that_are_not_known_stay_auto() -> None:
    stage = compiled(stage_values(deepspeed="zero2")).stages[0]
    config = effective_deepspeed(stage, world_size=1, hidden=None)
    assert config is not None and config["zero_optimization"]["reduce_bucket_size"] == "auto"  # type: ignore[index,call-overload]


def test_without_deepspeed_there_is_none() -> None:
    assert effective_deepspeed(compiled(stage_values()).stages[0], world_size=1, hidden=64) is None
