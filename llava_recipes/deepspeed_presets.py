"""The table of DeepSpeed presets: each config, and the file of the original LLaVA that it equals.

The table is below the recipe language, whose schema takes the names from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import JsonValue

Config = Mapping[str, JsonValue]

OFFLOADS = ("offload_optimizer", "offload_param")

_COMMON: Config = {
    "fp16": {
        "enabled": "auto",
        "loss_scale": 0,
        "loss_scale_window": 1000,
        "initial_scale_power": 16,
        "hysteresis": 2,
        "min_loss_scale": 1,
    },
    "bf16": {"enabled": "auto"},
    "train_micro_batch_size_per_gpu": "auto",
    "train_batch_size": "auto",
    "gradient_accumulation_steps": "auto",
}
_ZERO: Config = {
    "overlap_comm": True,
    "contiguous_gradients": True,
    "sub_group_size": 1e9,
    "reduce_bucket_size": "auto",
}
_ZERO_3: Config = {
    "stage": 3,
    **_ZERO,
    "stage3_prefetch_bucket_size": "auto",
    "stage3_param_persistence_threshold": "auto",
    "stage3_max_live_parameters": 1e9,
    "stage3_max_reuse_distance": 1e9,
    "stage3_gather_16bit_weights_on_model_save": True,
}


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A config, without keys whose default depends on the version of DeepSpeed."""

    zero: Config
    """Its `zero_optimization`."""
    file: str | None = None
    """The file in the original's `scripts/` that it equals."""
    blocks: Config = field(default_factory=dict)
    """Blocks that the file has as well, and that would replace keys of the recipe."""

    @property
    def config(self) -> dict[str, JsonValue]:
        """The whole config."""
        return {**_COMMON, "zero_optimization": {**self.zero}}

    @property
    def offloads(self) -> bool:
        """Whether part of the model or its optimizer is in the CPU's memory."""
        return any(block in self.zero for block in OFFLOADS)


PRESETS: Mapping[str, Preset] = {
    "zero2": Preset(zero={"stage": 2, **_ZERO}, file="zero2.json"),
    "zero3": Preset(zero=_ZERO_3, file="zero3.json"),
    "zero3_offload": Preset(
        zero={**_ZERO_3, **{block: {"device": "cpu", "pin_memory": True} for block in OFFLOADS}},
        file="zero3_offload.json",
        blocks={
            "optimizer": {"type": "AdamW", "params": {"lr": "auto"}},
            "scheduler": {"type": "WarmupLR"},
        },
    ),
}
DEEPSPEED_PRESETS = tuple(PRESETS)
