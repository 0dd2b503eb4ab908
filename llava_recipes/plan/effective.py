"""The DeepSpeed config as the Trainer hands it on: every "auto" replaced by the recipe's value."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

from pydantic import JsonValue

from llava_recipes.plan.deepspeed import zero_stage
from llava_recipes.plan.types import StagePlan


def effective_deepspeed(
    stage: StagePlan, *, world_size: int, hidden: int | None
) -> dict[str, JsonValue] | None:
    """A stage's DeepSpeed config with its "auto" values filled in; None without DeepSpeed.

    `hidden` is the language model's hidden size, which the sizes of buffers follow; what needs it stays
    "auto" where it is None.
    """
    if stage.deepspeed is None:
        return None
    config = deepcopy(stage.deepspeed)
    train, arguments = stage.train, stage.train.training_arguments
    values: dict[str, JsonValue] = {
        "train_micro_batch_size_per_gpu": train.per_device_train_batch_size,
        "gradient_accumulation_steps": train.gradient_accumulation_steps,
        "train_batch_size": train.per_device_train_batch_size
        * train.gradient_accumulation_steps
        * world_size,
        "gradient_clipping": arguments.get("max_grad_norm"),
        "bf16.enabled": train.precision == "bf16",
        "fp16.enabled": train.precision == "fp16",
    }
    if hidden is not None:
        values |= _buffer_sizes(config, hidden)
    _fill(config, values)
    return config


def _buffer_sizes(config: dict[str, JsonValue], hidden: int) -> dict[str, JsonValue]:
    sizes: dict[str, JsonValue] = {"zero_optimization.reduce_bucket_size": hidden * hidden}
    if zero_stage(config) == 3:
        sizes["zero_optimization.stage3_prefetch_bucket_size"] = int(0.9 * hidden * hidden)
        sizes["zero_optimization.stage3_param_persistence_threshold"] = 10 * hidden
    return sizes


def _fill(config: dict[str, JsonValue], values: Mapping[str, JsonValue]) -> None:
    for path, value in values.items():
        block, _, key = path.rpartition(".")
        place = config.get(block) if block else config
        if isinstance(place, dict) and place.get(key) == "auto":
            place[key] = value
